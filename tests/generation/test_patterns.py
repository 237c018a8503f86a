"""Answers whose codes are written delayed or coarse first: whole spans in every decoder, and as a naive loop writes
them."""

import pytest
import torch

from tests.generation.conftest import TINY
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.build import build_nano
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary
from unimodal.vocabulary.media_blocks import order_layouts

ALL_GREEDY = dict.fromkeys(("text", "image", "audio"), GREEDY)


@pytest.fixture(scope="module")
def vocabulary():
    """Pictures of three places with two groups, coarse first; sounds of any length in three delayed groups."""
    blocks = [
        Block(name=name, modality=name, group=group, size=size)
        for name, sizes in (("image", (11, 7)), ("audio", (6, 5, 4)))
        for group, size in enumerate(sizes)
    ]
    layouts = [SpanLayout("image", [Segment("image", 3)]), SpanLayout("audio", [Segment("audio")])]
    ordered = order_layouts(layouts, blocks, {"image": "coarse_first", "audio": "delay 0 1 1"})
    return Vocabulary.build(30, blocks, ordered, text_reserved=[0, 7])


@pytest.fixture(scope="module")
def model(vocabulary):
    control = vocabulary.get_control_id
    ids = {"pad_id": control("<|pad|>"), "bos_id": control("<|bos|>"), "eos_id": control("<|eos|>")}
    return build_nano(vocabulary.size, TINY, seed=0, **ids).eval()


def list_requests(ask, **common):
    rows = [
        (ask([3, 4]), {"force": "image"}),
        (ask([9]), {"force": "audio", "max_codes": {"audio": 5}}),
        (ask([9, 8]), {"force": "audio", "min_codes": {"audio": 4}, "max_codes": {"audio": 4}}),
        (ask([6, 6]), {}),
    ]
    settings = [GenerationConfig(**{"max_new_tokens": 40, "seed": n, **common, **c}) for n, (_, c) in enumerate(rows)]
    return [prompt for prompt, _ in rows], settings


@torch.inference_mode()
def write_naively(model, vocabulary, prompt, config):
    grammar = Grammar(vocabulary, config, prompt)
    state, answer = grammar.start(), []
    while not state.finished:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1]
        allowed = [row for start, end in grammar.list_allowed(state) for row in range(start, end)]
        answer.append(max(allowed, key=lambda row: float(logits[row])))
        grammar.advance(state, answer[-1])
    return answer


def check_spans(vocabulary, config, answer):
    if config.force is None:
        return
    modality, codes = vocabulary.decode_span(answer[:-1])
    assert modality == config.force and vocabulary.encode_span(modality, codes) == answer[:-1]
    assert config.min_codes.get(modality, 1) <= len(codes) <= config.max_codes.get(modality, len(codes))


@pytest.mark.sweep("campaigns of the engine")
@pytest.mark.parametrize("name", ["lean", "reference"])
def test_greedy_answers_are_a_naive_loops(name, model, vocabulary, ask):
    engine = Engine(model, vocabulary, name)
    prompts, configs = list_requests(ask, sampling=ALL_GREEDY)
    answers = engine.generate(prompts, configs)
    for prompt, config, answer in zip(prompts, configs, answers, strict=True):
        assert answer == write_naively(model, vocabulary, prompt, config)
        check_spans(vocabulary, config, answer)
    cut = answers[1][:6]  # within the span
    [rest] = engine.generate([[*prompts[1], *cut]], configs[1])
    assert [*cut, *rest] == answers[1]


@pytest.mark.parametrize("name", ["jacobi", "sjd"])
def test_fast_decoders_keep_the_order(name, model, vocabulary, ask):
    engine = Engine(model, vocabulary, "lean")
    prompts, configs = list_requests(ask, sampling=ALL_GREEDY)
    assert engine.generate(prompts, configs, method=make_decoder(name)) == engine.generate(prompts, configs)
    prompts, configs = list_requests(ask)
    for config, answer in zip(configs, engine.generate(prompts, configs, method=make_decoder(name)), strict=True):
        check_spans(vocabulary, config, answer)
