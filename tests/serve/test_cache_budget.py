"""Requests join as long as what they may need of memory fits, wait where it does not, and are refused where it never
will."""

import threading

import pytest
import torch
from starlette.testclient import TestClient

from tests.serve.conftest import lively_model
from tests.serve.test_worker import ask, wait_until
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.pipeline.requests import UnfitRequestError
from unimodal.serve.cache_budget import (
    MIB,
    MOST_PASSING,
    CacheBudget,
    explain_shortage,
    find_default_budget,
    read_free_memory,
)
from unimodal.serve.server import create_app
from unimodal.serve.settings import ServeConfig
from unimodal.serve.tickets import MemoryShort, Ticket
from unimodal.serve.waiting import WaitingRows
from unimodal.serve.worker import Worker

pytestmark = pytest.mark.sweep("the server")


@pytest.fixture(scope="module")
def model():
    return lively_model()


def make_text(length, answer, seed=0):
    config = GenerationConfig(max_new_tokens=answer, force="text", seed=seed)
    return GenerationRequest([5 + (seed + number) % 7 for number in range(length)], config)


def measure(model, request):
    return CacheBudget(model.engine, None).measure(Ticket(request))


def test_what_a_request_may_need_is_counted_in_blocks_of_all_its_streams(model):
    block = measure(model, make_text(10, 10))
    assert measure(model, make_text(30, 34)) == block and measure(model, make_text(30, 35)) == 2 * block
    layers = model.decoder.config
    entry = 2 * layers.num_hidden_layers * layers.num_key_value_heads * model.decoder.model.layers[0].self_attn.head_dim
    assert block == 64 * entry * 4
    guided = ask(model, "Draw a cat.", to="image", guidance=2.0)
    assert measure(model, guided) >= 2 * block


def watch_bytes(worker):
    """The most bytes that the rows took, and the most rows, at any step."""
    seen, take = [[0, 0]], worker._take_turn

    def note(batch, left):
        take(batch, left)
        seen[0] = [max(seen[0][0], batch.num_bytes), max(seen[0][1], len(batch))]

    worker._take_turn = note
    return seen


def test_long_requests_beside_short_ones_keep_to_the_budget_and_all_are_answered(model):
    """Room for three blocks: one long request and one short one, or three short ones."""
    long = [make_text(90, 60, seed) for seed in range(3)]
    short = [make_text(9, 20, seed) for seed in range(12)]
    block = measure(model, short[0])
    assert measure(model, long[0]) == 3 * block
    requests = [long[0], *short[:4], long[1], *short[4:8], long[2], *short[8:]]
    expected = [model.engine.generate([request.prompt], request.config)[0] for request in requests]
    worker = Worker(model, 16, cache_bytes=4 * block)
    seen = watch_bytes(worker)
    tickets = [worker.submit(request, f"client {number}") for number, request in enumerate(requests)]
    worker.start()
    assert [ticket.future.result(60) for ticket in tickets] == expected
    worker.stop()
    [[most, rows]] = seen
    assert 2 * block < most <= 4 * block and 2 <= rows <= 4


def test_what_rows_share_counts_once(model):
    """Eight answers to one long prompt fit where two such prompts would not."""
    requests = [make_text(130, 20)] * 8
    block = measure(model, make_text(9, 9))
    worker = Worker(model, 16, cache_bytes=3 * block + 8 * block)
    seen = watch_bytes(worker)
    tickets = [worker.submit(request) for request in requests]
    worker.start()
    answers = [ticket.future.result(60) for ticket in tickets]
    worker.stop()
    assert answers == [model.engine.generate([requests[0].prompt], requests[0].config)[0]] * 8
    assert seen[0][1] >= 6 and seen[0][0] <= 11 * block


def test_a_large_request_is_passed_but_not_for_ever():
    waiting, passed = WaitingRows(100), 0
    large = Ticket(make_text(9, 9), client="large")
    waiting.requests.append(large)
    for number in range(3 * MOST_PASSING):
        waiting.requests.append(Ticket(make_text(9, 9, number), client=f"small {number}"))
    while (ticket := waiting.find_next(0, 0, fits=lambda ticket: ticket is not large)) is not None:
        waiting.take(ticket)
        passed += 1
    assert passed == MOST_PASSING
    assert waiting.find_next(0, 0) is large


def test_what_never_fits_is_refused_in_one_line_and_others_go_on(model):
    block = measure(model, make_text(9, 9))
    worker = Worker(model, 4, cache_bytes=block)
    tickets = [worker.submit(request) for request in (make_text(9, 20), make_text(90, 60), make_text(9, 20, 1))]
    worker.start()
    with pytest.raises(
        UnfitRequestError, match=r"may need 0\.\d MiB of keys and values for 150 tokens, and this server"
    ):
        tickets[1].future.result(60)
    assert all(tickets[number].future.result(60) for number in (0, 2))
    wait_until(lambda: not worker.num_running + worker.num_waiting)
    worker.stop()


def test_the_server_refuses_by_http_what_never_fits(model):
    block = measure(model, make_text(9, 9))
    app = create_app(model, ServeConfig(cache_mb=3 * block / MIB))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        body = {"model": model.folder.name, "messages": [{"role": "user", "content": "hello " * 60}], "max_tokens": 60}
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400 and "(--cache)" in refused.json()["error"]["message"]
        assert "\n" not in refused.json()["error"]["message"]
        body["messages"][0]["content"] = "hi"
        assert client.post("/v1/chat/completions", json={**body, "max_tokens": 8}).status_code == 200


def test_a_shortage_says_what_helps(model, monkeypatch):
    """In the middle of a step: its rows fail with what helps, and the next request is answered."""
    worker, fail_now = Worker(model, 4, cache_bytes=10**9), threading.Event()
    run = type(model.engine.decoder.layers).run

    def run_short(layers, *given):
        if fail_now.is_set():
            fail_now.clear()
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")
        return run(layers, *given)

    monkeypatch.setattr(type(model.engine.decoder.layers), "run", run_short)
    fail_now.set()
    worker.start()
    with pytest.raises(MemoryShort, match=r"smaller --cache \(now 954 MiB\), --kv int8 or a smaller --max-batch"):
        worker.submit(make_text(9, 9)).future.result(60)
    assert worker.submit(make_text(9, 9)).future.result(60)
    worker.stop()
    other = ValueError("no")
    assert explain_shortage(other, None) is other
    assert isinstance(explain_shortage(torch.OutOfMemoryError("CUDA out of memory"), None), MemoryShort)


def test_the_default_is_a_share_of_what_is_free():
    free = read_free_memory()
    assert free > 2**26 and 0.3 * free < find_default_budget(torch.device("cpu")) < 0.7 * free


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves(tmp_path, version):
    names = ("memory.max", "memory.current", "memory.stat")
    if version == 1:
        names = tuple(f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat"))
        (tmp_path / "memory").mkdir()
    prefix = "total_" if version == 1 else ""
    stat = f"anon 5\n{prefix}inactive_file {10 * MIB}\n"
    for name, text in zip(names, (f"{64 * MIB}\n", f"{40 * MIB}\n", stat), strict=True):
        (tmp_path / name).write_text(text)
    assert read_free_memory(tmp_path) == 34 * MIB
    (tmp_path / names[1]).write_text(f"{90 * MIB}\n")
    assert read_free_memory(tmp_path) == 0
    (tmp_path / names[0]).write_text("max\n")
    assert read_free_memory(tmp_path) > 64 * MIB
    assert read_free_memory(tmp_path / "none") > 64 * MIB
