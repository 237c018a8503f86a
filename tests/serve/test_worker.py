"""Answers of several rows in the one batch: nobody waits for them, neighbours change nothing, they can be ended."""

import dataclasses
import threading
import time
from concurrent.futures import CancelledError

import pytest

from tests.pipeline.test_speech_reading import reads_twice, says, spoken
from tests.serve.conftest import lively_model
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.request import PAUSE, GenerationConfig, GenerationRequest
from unimodal.pipeline.rows import make_row
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Turn
from unimodal.serve.tickets import Accounts, Ticket
from unimodal.serve.waiting import WaitingRows
from unimodal.serve.worker import Worker

pytestmark = pytest.mark.sweep("the server")


def ask(model, words, **settings):
    return make_row(model, Document([Turn("user", words)]), AnswerSettings(**settings))


def wait_until(true, within_s=20.0):
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def count_while_answering(model, beside, wanted, max_batch=16):
    """(steps, rows of these steps, pieces of work) from a request's coming to its answer, beside others at work."""
    worker, counts, found = Worker(model, max_batch), [0, 0, 0], []
    compose, over = worker._compose, threading.Event()

    def count_piece(batch):
        counts[2] += 1
        compose(batch)

    def count_step(seconds, rows, waiting):
        counts[0] += 1
        counts[1] += rows
        if counts[0] == 6 and not over.ticket:  # in the middle of the others' work
            counts[:] = [0, 0, 0]
            over.ticket = worker.submit(wanted)
            over.ticket.future.add_done_callback(lambda _: (found.append(list(counts)), over.set()))

    over.ticket = None
    worker._compose, worker.on_turn = count_piece, count_step
    others = [worker.submit(request) for request in beside]
    worker.start()
    assert over.wait(60)
    assert not all(other.future.done() for other in others)
    worker.stop()
    return found[0]


def test_a_text_beside_speech_waits_no_longer_than_beside_pictures():
    """Counted, so that no clock decides: it has its row at once and as many steps as it has tokens, beside 8 rows at
    most; and a turn does a piece of work or as many as take no longer than a step."""
    model = says(sayings=8)
    text = ask(model, "hello", to="text", text_tokens=12, seed=1)
    pictures = [ask(model, "Draw a red apple.", to="image", seed=seed) for seed in range(8)]
    speech = [ask(model, "Say: well it is sunny", to="audio", seed=seed) for seed in range(8)]
    heard = [make_row(model, spoken(*[3, 1, 4, 1, 5, 9] * 5), AnswerSettings(to="text")) for _ in range(8)]
    assert all(request.compose is not None for request in (*speech, *heard))
    [ids] = model.engine.generate([text.prompt], text.config)
    for beside in (pictures, speech, [*heard, *pictures]):
        steps, rows, pieces = count_while_answering(model, beside, text)
        assert steps <= len(ids) + 2 and rows <= 9 * steps
        assert pieces <= 4 * steps  # of tiny ones: several are as short as a step


def test_speech_of_the_worker_is_that_of_the_pipeline_whoever_its_neighbours_are():
    model = says(sayings=3)
    wanted = [("Say: hi", {"to": "audio", "seed": seed}) for seed in (3, 4, 5)]
    wanted += [("Draw a cat.", {"to": "image", "seed": 2}), ("hello", {"to": "text", "seed": 0})]
    search = {"to": "image", "seed": 2, "search": "best-of-n", "search_settings": {"n": 3}}
    wanted.append(("Draw a cat.", search))
    alone = []
    for words, settings in wanted:
        [answer] = model.answers([Document([Turn("user", words)])], **settings)
        alone.append(
            [list(map(int, part.part.codes.flatten())) if part.modality != "text" else part.text for part in answer]
        )
    worker = Worker(model, max_batch=5)
    tickets = [worker.submit(ask(model, words, **settings)) for words, settings in wanted]
    worker.start()
    answers = [model.template.parse_answer(ticket.future.result(60)) for ticket in tickets]
    worker.stop()
    for parts, expected in zip(answers, alone, strict=True):
        assert [
            list(map(int, part.codes.flatten())) if hasattr(part, "codes") else part.text for part in parts
        ] == expected


@pytest.mark.parametrize("what", ["speech", "transcript"])
def test_a_cancelled_answer_of_several_rows_leaves_nothing_behind(what):
    model = says(sayings=4) if what == "speech" else reads_twice()
    wanted = (
        ask(model, "Say: hi", to="audio")
        if what == "speech"
        else make_row(model, spoken(*range(9)), AnswerSettings(to="text"))
    )
    reached, cancelled = threading.Event(), threading.Event()

    def hold(on_token, number):  # no answer is finished before it is left
        reached.set()
        assert cancelled.wait(30)
        return (yield from compose(on_token, number))

    compose = wanted.compose
    if what == "transcript":
        wanted = dataclasses.replace(wanted, compose=hold)
    worker = Worker(model, max_batch=4)
    kept = worker.submit(ask(model, "Draw a cat.", to="image"))
    left = [worker.submit(wanted) for _ in range(3)]  # one is composed at a time: the others wait
    if what == "speech":  # its rows have made a step
        worker.on_turn = lambda *_: (reached.set(), cancelled.wait(30))
    worker.start()
    assert reached.wait(30)
    for ticket in left:
        worker.cancel(ticket)
    cancelled.set()
    wait_until(lambda: worker.num_running + worker.num_waiting == (not kept.future.done()))
    for ticket in left:
        with pytest.raises(CancelledError):
            ticket.future.result(0)
    assert kept.future.result(30)
    wait_until(lambda: not worker.num_rows and not worker._waiting.drafts)
    assert worker.submit(ask(model, "Draw a cat.", to="image")).future.result(30)
    worker.stop()


def test_rows_go_on_while_a_long_prompt_is_read(monkeypatch):
    """Counted: between two steps of the rows no more of it is read than a slice, short ones pass it, and its answer is
    the one that it has alone."""
    monkeypatch.setattr("unimodal.serve.long_prompts.SLICE_BESIDE_ROWS", 4)
    monkeypatch.setattr("unimodal.serve.long_prompts.SLICE", 8)
    model = lively_model()
    long = GenerationRequest([*[5, 6, 7] * 9, 5], GenerationConfig(max_new_tokens=6, force="text", seed=4))
    short = GenerationRequest([5, 6, 7], GenerationConfig(max_new_tokens=4, force="text", seed=5))
    picture = ask(model, "Draw a cat.", to="image")
    picture = dataclasses.replace(picture, prompt=picture.prompt[:4])  # nothing of it is long
    alone = [model.engine.generate([one.prompt], one.config)[0] for one in (long, short, picture)]
    worker, read, events = Worker(model, max_batch=8), [], []
    tickets = [worker.submit(one) for one in (picture, long, short)]
    twin = dataclasses.replace(long)
    tickets.append(worker.submit(twin))  # the same prompt again: it is read once
    for name, ticket in zip(("picture", "long", "short"), tickets, strict=False):
        ticket.future.add_done_callback(lambda _, name=name: events.append(name))

    original = ContinuousBatch.read_ahead

    def read_ahead(batch, request, most):
        before = batch.reader.num_read
        ready = original(batch, request, most)
        read.append((len(batch), most, batch.reader.num_read - before))
        return ready

    monkeypatch.setattr(ContinuousBatch, "read_ahead", read_ahead)
    worker.start()
    answers = [ticket.future.result(60) for ticket in tickets]
    worker.stop()
    assert answers == [alone[2], alone[0], alone[1], alone[0]]
    assert [sorted(events)[0], len(events)] == ["long", 3] and events.index("short") < events.index("long")
    slices = [num for _, _, num in read if num]
    assert slices and all(num <= most for _, most, num in read) and sum(slices) < len(long.prompt)
    assert any(rows for rows, _, num in read if num)


@pytest.mark.parametrize("how", ["cancelled", "failed", "stopped"])
def test_a_long_prompt_that_goes_leaves_nothing_behind(monkeypatch, how):
    monkeypatch.setattr("unimodal.serve.long_prompts.SLICE_BESIDE_ROWS", 2)
    monkeypatch.setattr("unimodal.serve.long_prompts.SLICE", 2)
    model = lively_model()
    long = GenerationRequest([5, 6, 7] * 9, GenerationConfig(max_new_tokens=4, force="text"))
    worker, reached, go_on = Worker(model, max_batch=4), threading.Event(), threading.Event()
    original, calls = ContinuousBatch.read_ahead, []

    def read_ahead(batch, request, most):
        calls.append(request)
        if len(calls) == 3:
            reached.set()
            assert go_on.wait(30)
            if how == "failed":
                raise RuntimeError("no memory")
        return original(batch, request, most)

    monkeypatch.setattr(ContinuousBatch, "read_ahead", read_ahead)
    ticket = worker.submit(long)
    worker.start()
    assert reached.wait(30) and worker.num_waiting == 1
    if how == "cancelled":
        worker.cancel(ticket)
    if how == "stopped":
        worker._stopping = True
    go_on.set()
    if how == "cancelled":
        with pytest.raises(CancelledError):
            ticket.future.result(30)
    else:
        assert {"failed": "no memory", "stopped": "shutting down"}[how] in str(ticket.future.exception(30))
    if how != "stopped":
        wait_until(lambda: not worker._long.tickets and not worker.num_waiting)
        again = worker.submit(long)
        assert again.future.result(30) == model.engine.generate([long.prompt], long.config)[0]
    worker.stop()
    assert not worker._long.tickets


def test_what_fails_in_an_answer_of_several_rows_fails_it_alone():
    model, ended = lively_model(), []
    good = GenerationRequest([1, 2, 3], GenerationConfig(max_new_tokens=4, force="text"))

    def compose(how):
        def begin(on_token, row):
            try:
                if how == "at once":
                    raise ValueError("at once")
                yield PAUSE
                yield [good, good if how == "later" else GenerationRequest([10**6], good.config), good]
                raise ValueError("later")
            finally:
                ended.append(how)

        return begin

    worker = Worker(model, max_batch=8)
    tickets = [
        worker.submit(GenerationRequest([1], good.config, None, compose(how))) for how in ("at once", "row", "later")
    ]
    picture = worker.submit(ask(model, "Draw a cat.", to="image"))
    worker.start()
    for ticket, message in zip(tickets, ("at once", "outside", "later"), strict=True):
        assert message in str(ticket.future.exception(30))
    assert picture.future.result(30) and sorted(ended) == ["at once", "later", "row"]
    wait_until(lambda: not worker.num_rows and not worker.num_running)
    worker.stop()


def test_stopping_ends_answers_of_several_rows():
    model = says(sayings=4)
    worker = Worker(model, max_batch=4)
    tickets = [worker.submit(ask(model, "Say: hi", to="audio", seed=seed)) for seed in range(3)]
    reached = threading.Event()
    worker.on_turn = lambda *_: reached.set()
    worker.start()
    assert reached.wait(30)
    worker.stop()
    errors = [ticket.future.exception(10) for ticket in tickets]
    assert errors[1:] and all(error is None or "shutting down" in str(error) for error in errors)
    assert not worker._composing


def test_requests_and_drafts_share_the_rows():
    """Drafts never have more than half, both kinds get on, and a batch of one row takes them in turn."""

    def fill(max_batch, num_requests, num_drafts):
        waiting, taken, counts = WaitingRows(max_batch), [], [0, 0]
        owner = object()
        some = GenerationRequest([1], GenerationConfig())
        waiting.requests.extend(Ticket(some) for _ in range(num_requests))
        waiting.drafts.extend(Ticket(some, owner) for _ in range(num_drafts))
        while (ticket := waiting.find_next(*counts)) is not None:
            waiting.take(ticket)
            counts[ticket.owner is owner] += 1
            taken.append(ticket)
        return counts, waiting

    assert fill(8, 0, 20)[0] == [0, 4]
    assert fill(8, 20, 0)[0] == [8, 0]
    assert fill(8, 20, 20)[0] == [4, 4]
    assert fill(8, 1, 20)[0] == [1, 4]
    _, one = fill(1, 3, 3)
    kinds = [one._draft_was_last]
    for _ in range(5):
        ticket = one.find_next(0, 0)
        one.take(ticket)
        kinds.append(ticket.owner is not None)
    assert kinds == [kinds[0] ^ (number % 2 == 1) for number in range(6)]


def take_in_turns(waits, comes=lambda number: (), steps=60):
    """Who has the only row at each step. waits: client → (requests, tokens of a prompt, of an answer); comes: more
    (client, …) of these before a step."""
    waiting, order, sizes = WaitingRows(1), [], {}

    def add(client, count, prompt, answer):
        for _ in range(count):
            waiting.accounts.enter(client, waiting.requests)
            ticket = Ticket(GenerationRequest([1] * prompt, GenerationConfig()), client=client)
            waiting.requests.append(ticket)
            sizes[ticket] = answer

    for client, some in waits.items():
        add(client, *some)
    for number in range(steps):
        for one in comes(number):
            add(*one)
        ticket = waiting.find_next(0, 0)
        if ticket is None:
            break
        waiting.take(ticket)
        ticket.charge(waiting.accounts, sizes[ticket] // 2)
        ticket.charge(waiting.accounts, sizes[ticket])
        order.append(ticket.client)
    return order


def test_clients_are_given_equal_shares_of_tokens():
    crowd = take_in_turns({"many": (40, 10, 10), "few": (3, 10, 10)})
    assert [number for number, client in enumerate(crowd) if client == "few"] == [1, 3, 5]
    large = take_in_turns({"large": (20, 100, 300), "small": (40, 10, 10)}, steps=42)
    assert large.count("small") == 40 and large.count("large") == 2  # 400 tokens each
    # who comes back has saved nothing up while he was away, and owes what he was given above the others
    back = take_in_turns({"here": (60, 10, 10), "away": (1, 10, 10)},
                         lambda number: [("away", 9, 10, 10)] if number == 30 else [])  # fmt: skip
    assert back[:2] == ["here", "away"] and "away" not in back[2:30]
    assert 8 <= back[30:48].count("away") <= 9
    owing = take_in_turns({"here": (60, 10, 10), "away": (1, 10, 110)},
                          lambda number: [("away", 9, 10, 10)] if number == 3 else [])  # fmt: skip
    assert owing[1] == "away" and "away" not in owing[2:7] and owing[7:12].count("away") >= 2


def test_one_client_of_many_requests_does_not_keep_another_waiting(monkeypatch):
    model = lively_model()
    worker, order, held = Worker(model, max_batch=2), [], []
    charge = Accounts.charge
    monkeypatch.setattr(
        Accounts, "charge", lambda *given: (held.append(worker._changed._is_owned()), charge(*given))
    )  # of two threads: never without the lock

    def submit(client, seed):
        one = GenerationRequest([5, 6, 7], GenerationConfig(max_new_tokens=5, force="text", seed=seed))
        ticket = worker.submit(one, client)
        ticket.future.add_done_callback(lambda _: order.append(client))
        return ticket

    tickets = [submit("many", seed) for seed in range(20)] + [submit("one", 99)]
    worker.start()
    for ticket in tickets:
        ticket.future.result(60)
    worker.stop()
    assert order.index("one") <= 3 and held and all(held)
