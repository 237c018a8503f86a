"""Too many, too slow, gone, or broken: each request fails by itself, and the server stays well."""

import asyncio
import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
import torch

from tests.serve.conftest import image_part, json_head, lively_model, pixels, png, serving, user
from unimodal.pipeline.rows import make_row
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Turn
from unimodal.serve.tickets import Ticket
from unimodal.serve.worker import Worker

pytestmark = pytest.mark.sweep("the server")


LONG = {"modalities": ["text"], "max_tokens": 400, "temperature": 1.0, "seed": 1}


@pytest.fixture
def slow(monkeypatch):
    """Makes every step of a server's decoder take so long, until its `step_s` is changed."""

    def make(served, seconds=0.05):
        engine = served.model.engine
        logits = engine.head.compute_logits
        served.step_s = seconds

        def slowly(*given):
            time.sleep(served.step_s)
            return logits(*given)

        monkeypatch.setattr(engine.head, "compute_logits", slowly)

    return make


def well(served):
    """It is idle, healthy, and answers."""
    assert served.idle()
    served.step_s = 0.0
    assert served.get("/health").json()["status"] == "ok"
    answer = served.post("/v1/images/generations", {"prompt": "a cat", "seed": 1})
    return answer.status_code == 200


def test_over_the_queue_limit_the_answer_is_429_at_once(slow):
    with serving(max_batch=2, queue_limit=1) as served:
        slow(served)

        def ask(number):
            started = time.monotonic()
            answer = served.post("/v1/chat/completions", {"messages": [user("hi")], **LONG, "max_tokens": 20})
            return answer, time.monotonic() - started

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        codes = [answer.status_code for answer, _ in answers]
        assert codes.count(200) >= 3 and codes.count(429) >= 1 and set(codes) == {200, 429}
        refused = [answer for answer, _ in answers if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all(answer.json()["error"]["type"] == "rate_limit_error" for answer in refused)
        with pytest.raises(openai.RateLimitError):
            served.service.num_inside += 3
            try:
                served.client().chat.completions.create(model=served.name, messages=[user("hi")])
            finally:
                served.service.num_inside -= 3
        served.step_s = 0.02
        patient = served.client(max_retries=8)  # the client's own way with Retry-After
        with ThreadPoolExecutor(5) as pool:
            kept = [pool.submit(patient.images.generate, model=served.name, prompt="a cat") for _ in range(5)]
            assert all(len(one.result().data) == 1 for one in kept)
        assert well(served)


def test_several_pictures_take_several_places():
    with serving(max_batch=2, queue_limit=2) as served:
        never = served.post("/v1/images/generations", {"prompt": "a cat", "n": 5})  # trying again would not help
        assert (
            never.status_code == 400
            and never.json()["error"]["param"] == "n"
            and "4" in never.json()["error"]["message"]
        )
        served.service.num_inside += 2
        assert served.post("/v1/images/generations", {"prompt": "a cat", "n": 3}).status_code == 429
        served.service.num_inside -= 2
        assert served.post("/v1/images/generations", {"prompt": "a cat", "n": 4}).status_code == 200
        assert served.service.num_inside == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_504_and_frees_its_row(slow, stream):
    with serving(timeout_s=1.0) as served:
        slow(served, 0.1)
        started = time.monotonic()
        answer = served.post("/v1/chat/completions", {"messages": [user("hi")], **LONG, "stream": stream})
        assert time.monotonic() - started < 20
        if stream:
            last = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")][-1]
            assert answer.status_code == 200 and last["error"]["type"] == "timeout_error"
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"
        assert served.idle()
        if stream:
            with pytest.raises(openai.APIError, match="within"):
                list(served.client().chat.completions.create(
                    model=served.name, messages=[user("hi")], stream=True, **LONG
                ))  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(slow, stream):
    with serving() as served:
        slow(served, 0.1)
        body = json.dumps({"messages": [user("hi")], **LONG, "stream": stream}).encode()
        head = json_head(len(body))
        connection = socket.create_connection(("127.0.0.1", served.port))
        connection.sendall(head + body)
        while not served.service.worker.num_running:
            time.sleep(0.01)
        if stream:
            assert b"200 OK" in connection.recv(100)
        connection.close()
        assert served.idle()
        lines = served.get("/metrics").text.splitlines()
        assert 'unimodal_requests_total{endpoint="/v1/chat/completions",status="499"} 1.0' in lines
        assert well(served)


def test_a_client_that_leaves_while_it_waits_frees_its_place(slow):
    with serving(max_batch=1) as served:
        slow(served, 0.1)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(served.post, "/v1/images/generations", {"prompt": "a cat", "seed": 1})
            while not served.service.worker.num_running:
                time.sleep(0.01)
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{served.url}/v1/images/generations", json={"prompt": "a dog"}, timeout=0.7)
            end = time.monotonic() + 5
            while served.service.num_inside > 1 and time.monotonic() < end:
                time.sleep(0.02)
            assert served.service.worker.num_waiting == 0 and served.service.num_inside == 1
            served.step_s = 0.0
            assert first.result().status_code == 200


def test_dropped_clients_in_a_crowd_disturb_nobody():
    with serving(max_batch=8) as served:

        def picture(answer):
            return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])).int()

        expected = picture(served.post("/v1/images/generations", {"prompt": "a cat", "seed": 9}))

        async def crowd():
            async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:

                async def stays():
                    return picture(await client.post("/v1/images/generations", json={"prompt": "a cat", "seed": 9}))

                async def leaves(after):
                    one = asyncio.ensure_future(
                        client.post("/v1/chat/completions", json={"messages": [user("hi")], **LONG})
                    )
                    await asyncio.sleep(after)
                    one.cancel()

                return await asyncio.gather(*(stays() for _ in range(8)), *(leaves(0.02 * n) for n in range(12)))

        with ThreadPoolExecutor(1) as thread:  # a loop of another test's browser may run in this one
            pictures = thread.submit(asyncio.run, crowd()).result()
        for found in pictures[:8]:  # the same codes; decoded in another batch, a value may round otherwise
            assert int((found - expected).abs().max()) <= 1
        assert well(served)


def test_a_failing_step_fails_its_rows_and_the_next_request_is_answered(monkeypatch):
    with serving() as served:
        logits = served.model.engine.head.compute_logits
        broken = threading.Event()
        broken.set()

        def failing(*given):
            if broken.is_set():
                raise RuntimeError("secret details")
            return logits(*given)

        monkeypatch.setattr(served.model.engine.head, "compute_logits", failing)
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(served.post, "/v1/images/generations", {"prompt": "a cat"}) for _ in range(3)]
        assert {one.result().status_code for one in asked} == {500}
        assert "secret" not in asked[0].result().text and asked[0].result().json()["error"]["type"] == "server_error"
        stream = served.post("/v1/chat/completions", {"messages": [user("hi")], "stream": True})
        assert '"server_error"' in stream.text and "secret" not in stream.text
        broken.clear()
        assert well(served)


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_a_failure_in_coding_fails_one_request_of_those_coded_together(monkeypatch, what):
    with serving() as served:
        coder = served.model.coder
        original = getattr(coder, what)
        bad = coder.read(png(13), "image")
        marked = coder.encode("image", [bad])[0] if what == "encode" else None

        def failing(modality, items):
            for item in items:
                if what == "encode" and torch.equal(item, bad):
                    raise RuntimeError("cannot see this one")
                if what == "decode" and number_of.get(bytes(item)) == 2:
                    raise ValueError("cannot show this one")
            time.sleep(0.05)  # so that others come together
            return original(modality, items)

        number_of = {}
        if what == "decode":
            for seed in range(5):
                settings = AnswerSettings(to="image", seed=seed)
                request = make_row(served.model, Document([Turn("user", "Draw a cat.")]), settings)
                answer = lively_model_answers(request)
                number_of[bytes(answer)] = seed
        monkeypatch.setattr(coder, what, failing)

        def ask(seed):
            if what == "decode":
                return served.post("/v1/images/generations", {"prompt": "a cat", "seed": seed}).status_code
            picture = png(13 if seed == 2 else seed)
            body = {"messages": [user(image_part(picture), "?")], "modalities": ["text"], "max_tokens": 5}
            return served.post("/v1/chat/completions", body).status_code

        with ThreadPoolExecutor(5) as pool:
            codes = list(pool.map(ask, range(5)))
        assert codes == [200, 200, 500, 200, 200]
        assert marked is None or len(marked) == 64
        assert well(served)


def lively_model_answers(request):
    """The codes of the picture that a request gives."""
    model = lively_model()
    [ids] = model.engine.generate([request.prompt], request.config)
    return next(part.codes for part in model.template.parse_answer(ids) if hasattr(part, "codes"))


def test_a_prompt_that_fails_to_join_takes_no_other_with_it():
    worker = Worker(lively_model(), max_batch=8)
    model = worker.model
    good, bad = (
        make_row(model, Document([Turn("user", "a cat")]), AnswerSettings(to="image", seed=1)) for _ in range(2)
    )
    object.__setattr__(bad, "prompt", [10**6])
    tickets = [worker.submit(request) for request in (good, bad, good)]
    worker.start()
    assert isinstance(tickets[1].future.exception(60), ValueError)
    assert tickets[0].future.result(60) == tickets[2].future.result(60)
    worker.stop()
    assert not worker.alive
    with pytest.raises(RuntimeError, match="shutting down"):
        worker.submit(good)


def test_stopping_fails_what_is_not_finished(slow):
    with serving(max_batch=1) as served:
        slow(served, 0.2)
        request = make_row(served.model, Document([Turn("user", "a cat")]), AnswerSettings(to="image"))
        tickets: list[Ticket] = [served.service.worker.submit(request) for _ in range(2)]
        while not served.service.worker.num_running:
            time.sleep(0.01)
        served.service.worker.stop()
        for ticket in tickets:
            assert "shutting down" in str(ticket.future.exception(10))
        assert served.get("/health").status_code == 503
        refused = served.post("/v1/images/generations", {"prompt": "a cat"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
