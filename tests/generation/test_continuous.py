"""Rows that join and leave a running batch answer as each would alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.campaigns import examples
from tests.generation.test_engine import ALL_GREEDY, MIXED, varied
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.slot_decoders import LeanSlots, ReferenceSlots
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.generation.sampling import GREEDY


@pytest.fixture(params=["lean", "packed", "fixed-shape", "reference"])
def engine(request, model, vocabulary):
    if request.param == "packed":
        return Engine(model, vocabulary, weights="float32")
    if request.param == "reference":
        return Engine(model, vocabulary, "reference")
    if request.param == "fixed-shape":
        return Engine(model, vocabulary, CompiledDecoder(model, backend=None))
    return Engine(model, vocabulary, "lean", weights="model")


def drive(batch, arrivals):
    """Admits the requests of each step before it, and steps on until all are done: answers in order of arrival."""
    answers, order = {}, []
    waiting = list(arrivals)
    while waiting or len(batch):
        order += batch.admit(waiting.pop(0) if waiting else [])
        for done in batch.advance_rows():
            assert done.error is None and done.key not in answers
            answers[done.key] = done.answer
    return [answers[key] for key in order]


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("sampling", [ALL_GREEDY, MIXED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("schedule", ["together", "one a step", "late", "in twos"])
def test_answers_are_those_given_alone_whenever_a_row_joins(engine, ask, sampling, schedule):
    prompts, configs = varied(ask, sampling)
    requests = [GenerationRequest(p, c) for p, c in zip(prompts, configs, strict=True)]
    arrivals = {
        "together": [requests],
        "one a step": [[r] for r in requests],
        "late": [requests[:2], *([[]] * 7), requests[2:3], *([[]] * 30), requests[3:]],
        "in twos": [requests[:2], [], [], requests[2:4], [], [], [], requests[4:]],
    }[schedule]
    expected = [engine.generate([p], c)[0] for p, c in zip(prompts, configs, strict=True)]
    assert len({tuple(answer) for answer in expected}) == len(expected)
    batch = ContinuousBatch(engine)
    assert drive(batch, arrivals) == expected
    assert drive(batch, arrivals) == expected  # and again over the places that the first left behind


@pytest.mark.sweep("campaigns of the engine")
@settings(examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    starts=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    cancelled=st.sets(st.integers(0, 11)),
    run_on=st.integers(1, 6),
)
def test_any_timetable_and_any_row_taken_out(model, vocabulary, ask, starts, seed, cancelled, run_on):
    engine = Engine(model, vocabulary)
    prompts, configs = varied(ask, MIXED)
    wanted = [
        GenerationRequest(prompts[i % len(prompts)], configs[i % len(prompts)].model_copy(update={"seed": seed + i}))
        for i in range(len(starts))
    ]
    batch, answers, number_of, step = ContinuousBatch(engine, run_on), {}, {}, 0
    while step <= max(starts) or len(batch):
        newcomers = [i for i, start in enumerate(starts) if start == step]
        number_of.update(zip(batch.admit([wanted[i] for i in newcomers]), newcomers, strict=True))
        answers.update({number_of[done.key]: done.answer for done in batch.advance_rows()})
        if step == 5:
            batch.cancel([key for key, number in number_of.items() if number in cancelled])
        step += 1
    for number, request in enumerate(wanted):
        if number in answers:
            assert answers[number] == engine.generate([request.prompt], request.config)[0]
        else:
            assert number in cancelled and starts[number] <= 5


def test_the_decoder_follows_the_engine(model, vocabulary):
    for decoder, weights in (("auto", "auto"), ("lean", "model")):
        engine = Engine(model, vocabulary, decoder, weights)
        slots = ContinuousBatch(engine).run.slots
        assert type(slots) is LeanSlots and slots.layers is engine.decoder.layers  # the weights are not copied again
    assert type(ContinuousBatch(Engine(model, vocabulary, "reference")).run.slots) is ReferenceSlots


def test_guidance_that_is_over_costs_no_second_stream(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(
        max_new_tokens=30, force="video", sampling=ALL_GREEDY, guidance={"video": 3.0},
        guidance_interval={"video": (0, 3)}, unconditional=ask(),
    )  # fmt: skip
    other = GenerationConfig(max_new_tokens=12, force="text", sampling=ALL_GREEDY)
    batch, streams, answers = ContinuousBatch(engine, 1), [], {}
    keys = batch.admit([GenerationRequest(ask([3, 4]), config), GenerationRequest(ask([5]), other)])
    while len(batch):
        streams.append(batch.num_streams)
        answers.update({done.key: done.answer for done in batch.advance_rows()})
    assert streams[0] == 3 and streams[-1] == 1
    assert [answers[key] for key in keys] == engine.generate([ask([3, 4]), ask([5])], [config, other])


@pytest.mark.sweep
def test_a_watcher_may_end_its_row_or_fail_and_its_neighbours_go_on(engine, ask):
    prompts, configs = varied(ask, MIXED)
    expected = [engine.generate([p], c)[0] for p, c in zip(prompts, configs, strict=True)]
    heard = []

    def failing(event):
        if event.index == 4:
            raise RuntimeError("no")

    watchers = [heard.append, lambda event: event.index == 2, failing, None, None, None]
    batch = ContinuousBatch(engine)
    keys = batch.admit([GenerationRequest(*row) for row in zip(prompts, configs, watchers, strict=True)])
    done = {}
    while len(batch):
        done.update({d.key: d for d in batch.advance_rows()})
    answers = [done[key].answer for key in keys]
    assert answers[1] == expected[1][:3] and answers[2] == expected[2][:5]
    assert [answers[i] for i in (0, 3, 4, 5)] == [expected[i] for i in (0, 3, 4, 5)]
    assert str(done[keys[2]].error) == "no" and all(done[key].error is None for key in keys if key != keys[2])
    assert [event.id for event in heard] == expected[0] and [event.finished for event in heard][-2:] == [False, True]
    assert {event.row for event in heard} == {keys[0]}


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("sampling", [ALL_GREEDY, MIXED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_prompt_that_is_read_in_slices_between_steps_is_answered_as_alone(engine, ask, sampling, most):
    prompts, configs = varied(ask, sampling)
    requests = [GenerationRequest(p, c) for p, c in zip(prompts, configs, strict=True)]
    expected = [engine.generate([p], c)[0] for p, c in zip(prompts, configs, strict=True)]
    batch, answers, order = ContinuousBatch(engine), {}, []
    for request in requests:
        turns = 0
        while not batch.read_ahead(request, most):
            turns += 1
            answers.update({done.key: done.answer for done in batch.advance_rows()})
        # every stream of the request leaves `most` tokens at most, and no turn reads more than these
        longest = max(len(p) for p in (request.prompt, request.config.unconditional or ()))
        assert turns >= -(-longest // most) - 2
        order += batch.admit([request])
        assert batch.run.slots.num_computed <= most
    while len(batch):
        answers.update({done.key: done.answer for done in batch.advance_rows()})
    assert [answers[key] for key in order] == expected
    assert not batch.reader.find_prefixes([prompts[-1]])  # what joined is held no longer


def test_what_was_read_ahead_is_used_for_that_request_alone(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    batch = ContinuousBatch(engine)
    long, other = (
        GenerationRequest(ask([3] * num), GenerationConfig(max_new_tokens=8, force="audio", max_codes={"audio": 2}))
        for num in (20, 17)
    )
    assert not batch.read_ahead(long, 4)
    [key] = batch.admit([other])  # joins meanwhile, and changes nothing
    while not batch.read_ahead(long, 4):
        batch.advance_rows()
    num_read = batch.reader.num_read
    assert len(long.prompt) - 4 <= num_read < len(long.prompt)
    batch.forget_read()
    assert not batch.read_ahead(long, 4) and batch.reader.num_read == num_read + 4  # from the beginning
    with pytest.raises(ValueError, match="empty"):
        batch.read_ahead(GenerationRequest([], GenerationConfig()), 4)
    assert batch.clear() in ([key], []) and not batch.read_ahead(long, 4) and batch.reader.num_read == 4


def test_what_cannot_be_kept_is_refused_and_changes_nothing(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    batch = ContinuousBatch(engine)
    good = GenerationRequest(ask([3]), GenerationConfig(max_new_tokens=20, force="image", seed=3))
    [key] = batch.admit([good])
    batch.advance_rows()
    for bad in (
        GenerationRequest(ask([3]), GenerationConfig(max_new_tokens=2, force="image")),
        GenerationRequest(ask(range(1, 30)), GenerationConfig(max_new_tokens=120)),
        GenerationRequest([], GenerationConfig()),
        GenerationRequest(ask([3]), GenerationConfig(force="image", guidance={"image": 2.0})),
    ):
        for refuse in (batch.check, lambda bad: batch.admit([good, bad])):
            with pytest.raises(ValueError, match="max_new_tokens|empty|unconditional"):
                refuse(bad)
    assert len(batch) == 1
    [done] = [d for _ in range(20) for d in batch.advance_rows()]
    assert done.key == key and done.answer == engine.generate([good.prompt], good.config)[0]


def test_after_a_failed_step_the_batch_can_be_cleared_and_used(model, vocabulary, ask, monkeypatch):
    engine = Engine(model, vocabulary)
    batch = ContinuousBatch(engine)
    request = GenerationRequest(ask([3]), GenerationConfig(max_new_tokens=20, force="image", sampling=ALL_GREEDY))
    keys = batch.admit([request, request])
    batch.advance_rows()
    with monkeypatch.context() as patch:
        patch.setattr(batch.engine.head, "compute_logits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            while True:
                batch.advance_rows()
    assert batch.clear() == keys and len(batch) == 0
    assert drive(batch, [[request]]) == engine.generate([request.prompt], request.config)


@pytest.mark.sweep("campaigns of the engine")
def test_memory_settles_and_places_are_used_again(model, vocabulary, ask):
    batch = ContinuousBatch(Engine(model, vocabulary))
    requests = [
        GenerationRequest(
            ask([3] * (i % 5)), GenerationConfig(max_new_tokens=40, force="audio", max_codes={"audio": 6 + i % 7})
        )
        for i in range(60)
    ]
    drive(batch, [[r] for r in requests])
    slots = batch.run.slots
    num_bytes = slots.cached.num_bytes
    assert not slots.streams and not slots.cached.num_bytes_used and not batch.run.waiting
    drive(batch, [[r] for r in requests])
    assert slots.cached.num_bytes == num_bytes <= 32 * slots.cached.weigh([1])


def test_half_precision_streams(make_model, vocabulary, ask):
    """The slots in bfloat16: the cache's type is the model's, and answers still end by the grammar."""
    engine = Engine(make_model().to(torch.bfloat16), vocabulary)
    config = GenerationConfig(max_new_tokens=20, force="image", sampling=dict.fromkeys(("text", "image"), GREEDY))
    [answer] = drive(ContinuousBatch(engine), [[GenerationRequest(ask([3, 4]), config)]])
    assert len(answer) == len(engine.generate([ask([3, 4])], config)[0]) == 9
