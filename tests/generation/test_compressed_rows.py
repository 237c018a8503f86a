"""Rows under compression in a running batch: each answers as it would alone, whoever is beside it."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.generation.test_continuous import drive
from tests.generation.test_engine import ALL_GREEDY, MIXED, varied
from unimodal.compression import METHODS, open_methods
from unimodal.compression.learned import DecoderShape, LearnedMethod
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.generation.continuous import ContinuousBatch, _group_alike
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig, GenerationRequest

NAMES = [name for name, method in METHODS.items() if not method.is_learned]
LEARNED = ("acm", "still", "pmod")
CACHE_NAMES = [name for name, method in METHODS.items() if method.acts_on == "cache"]


def make_for(model, name, keep, **settings):
    """A method of that name; a learned one with a random module for the model."""
    kind = METHODS[name]
    if issubclass(kind, LearnedMethod):
        torch.manual_seed(0)
        settings[kind.part] = kind.make_part(DecoderShape.of(model.config)).eval()
    return kind(keep, **settings, **({"chunk": 2} if name == "still" else {}))


@pytest.fixture
def show(vocabulary, ask):
    """A question with a picture and, with `num`, a sound of so many codes."""

    def make(seed, num=0, words=(3, 4)):
        draws = np.random.default_rng(seed)
        spans = vocabulary.encode_span("image", draws.integers(0, 24, 6))
        if num:
            spans = [*spans, *vocabulary.encode_span("audio", draws.integers(0, 12, num))]
        return ask([*words, *spans])

    return make


def answer_alone(engine, request):
    with open_methods(request.methods, engine):
        return engine.generate([request.prompt], request.config)[0]


def draw_case(rng, engine, ask, show):
    """Requests with their steps of arrival: any methods, media, settings, seeds."""
    plain, configs = varied(ask, ALL_GREEDY if rng.random() < 0.5 else MIXED)
    pool = [(), *((make_for(engine.model, rng.choice([*NAMES, *LEARNED]), keep),) for keep in (0.3, 0.6))]
    if rng.random() < 0.3:
        pool.append((METHODS["stride"](0.5), METHODS["snapkv"](0.5)))
    requests = []
    for number in range(rng.randint(2, 5)):
        config = rng.choice(configs)
        limits = {"force": "text"} if config.force == "video" else {}
        config = config.model_copy(update={"seed": number, "max_new_tokens": 14, **limits})
        prompt = show(rng.randrange(99), rng.randrange(9)) if rng.random() < 0.8 else plain[number]
        requests.append(GenerationRequest(prompt, config, methods=rng.choice(pool)))
    arrivals = [[] for _ in range(8)]
    for request, at in zip(requests, sorted(rng.randrange(8) for _ in requests), strict=True):
        arrivals[at].append(request)
    return requests, arrivals


def test_any_methods_side_by_side_answer_as_alone(campaign, model, vocabulary, ask, show):
    engine = Engine(model, vocabulary)
    for rng in campaign(slice=12, whole=300):
        requests, arrivals = draw_case(rng, engine, ask, show)
        expected = [answer_alone(engine, request) for request in requests]
        batch = ContinuousBatch(engine)
        assert drive(batch, arrivals) == expected, [request.methods for request in requests]
        assert not engine.intercepted and "forward" not in vars(model.model)


@pytest.mark.sweep
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_rows_join_the_cache_of_a_method_and_answer_as_alone(name, model, vocabulary, ask, show):
    """Of words too, and with the positions counted again where the method may: every second one."""
    engine, number = Engine(model, vocabulary), list(METHODS).index(name)
    positions = "compacted" if number % 2 and METHODS[name].acts != "store" else "kept"
    methods = (make_for(model, name, 0.4, scope="prompt", positions=positions),)
    _, [config, *_] = varied(ask, ALL_GREEDY)
    config = config.model_copy(update={"max_new_tokens": 5, "force": "text"})
    prompts = [ask([3, 4]), show(number, 7), show(number + 1, words=(5, 6, 7, 8, 9, 10))]
    plain, *held = [
        GenerationRequest(p, config, methods=m) for p, m in zip(prompts, ((), methods, methods), strict=True)
    ]
    expected = [answer_alone(engine, request) for request in (plain, *held)]
    assert drive(ContinuousBatch(engine), [[plain, held[0]], [], held[1:]]) == expected


def test_what_is_kept_is_told_and_counted(model, vocabulary, show, ask):
    engine, told = Engine(model, vocabulary), []
    config = GenerationConfig(max_new_tokens=3, force="text", sampling=ALL_GREEDY)
    prompt, methods = show(1, 8), (DivPrune(0.5),)
    batch = ContinuousBatch(engine)
    requests = [GenerationRequest(prompt, config, None, None, 1, methods, told.append) for _ in range(2)]
    keys = batch.admit([*requests, GenerationRequest(prompt, config)])
    assert [(event.row, event.num_tokens, event.num_kept) for event in told] == [
        (key, len(prompt), len(prompt) - 7) for key in keys[:2]
    ]
    assert GenerationRequest(prompt, config, num_read=9).length == 9 and requests[0].length == len(prompt)


def test_a_row_that_is_refused_leaves_the_others(model, vocabulary, show):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=4, force="text", sampling=ALL_GREEDY)
    fine, wrong = ((METHODS["fastv"](0.5, layer=layer),) for layer in (1, 9))
    batch = ContinuousBatch(engine)
    first = GenerationRequest(show(1), config, methods=fine)
    batch.admit([first])
    with pytest.raises(ValueError, match="layer 9"):
        batch.admit([GenerationRequest(show(2), config), GenerationRequest(show(2), config, methods=wrong)])
    assert len(batch) == 1
    assert [done.answer for done in _finish(batch, first)] == [answer_alone(engine, first)]


def _finish(batch, request):
    [key] = batch.admit([request])
    done = []
    while len(batch):
        done += batch.advance_rows()
    return [one for one in done if one.key == key]


def test_contexts_of_the_caller_and_of_a_row_do_not_meet(model, vocabulary, show):
    """A batch in whose thread somebody opens a context compresses its own rows only."""
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=5, force="text", sampling=ALL_GREEDY)
    request = GenerationRequest(show(3), config, methods=(METHODS["h2o"](0.4),))
    expected = answer_alone(engine, request)
    batch = ContinuousBatch(engine)
    [key] = batch.admit([request])
    with ExitStack() as stack:
        stack.enter_context(open_methods((METHODS["random"](0.2),), engine))
        done = []
        while len(batch):
            done += batch.advance_rows()
    assert [one.answer for one in done] == [expected] and done[0].key == key


@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if issubclass(kind, LearnedMethod)))
def test_methods_with_other_weights_are_not_read_together(name, model):
    """Equal settings, each with a module of its own: two lanes of a running batch."""
    kind = METHODS[name]
    first, second = (kind(**{kind.part: kind.make_part(DecoderShape.of(model.config))}) for _ in range(2))
    assert first == replace(first) and first != second
    requests = [GenerationRequest([1], GenerationConfig(), methods=(one,)) for one in (first, second, replace(first))]
    assert _group_alike(requests) == [[0, 2], [1]]


def test_pairs_of_other_prompts_are_another_method():
    pairs = torch.zeros(1, 2, 4, dtype=torch.int64)
    one, other = METHODS["fasa"](pairs=pairs), METHODS["fasa"](pairs=pairs.clone())
    assert one == replace(one) == METHODS["fasa"](pairs=pairs) and one != other
