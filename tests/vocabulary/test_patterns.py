"""Codes in another order than step by step: they come back, no malformed span can be written, and the published orders
and ids are those of MusicGen and Moshi."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.objectives.next_token import HeadGroups
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, parse_vocabulary
from unimodal.vocabulary.media_blocks import order_layouts
from unimodal.vocabulary.patterns import (
    MOSHI_DELAYS,
    MUSICGEN_DELAYS,
    PUBLISHED_NOTHING,
    CodePattern,
    delay_codes,
    make_pattern,
    undo_delay,
)


def build(sizes, count=None, order="flat"):
    """Sounds of one group a size, of `count` steps or any number, in an order."""
    blocks = [Block(name="audio", modality="audio", group=group, size=size) for group, size in enumerate(sizes)]
    layouts = [SpanLayout("audio", [Segment("audio", count)])]
    return Vocabulary.build(5, blocks, order_layouts(layouts, blocks, {"audio": order}), text_reserved=[0])


@st.composite
def orders(draw):
    """(sizes of groups, an order that fits them)"""
    groups = draw(st.integers(2, 5))
    sizes = tuple(draw(st.integers(1, 6)) for _ in range(groups))
    kind = draw(st.sampled_from(["delay", "delay-any", "coarse_first"]))
    if kind == "coarse_first":
        return sizes, f"coarse_first {draw(st.integers(1, groups - 1))}"
    delays = list(range(groups))
    if kind == "delay-any":
        delays = draw(st.lists(st.integers(0, 4), min_size=groups, max_size=groups))
        delays[draw(st.integers(0, groups - 1))] = 0
    return sizes, f"delay {' '.join(map(str, delays))}"


@examples(60)
@given(orders(), st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_codes_come_back_from_any_order_and_a_span_that_is_not_whole_is_refused(order, steps, fixed, seed):
    sizes, text = order
    vocabulary = build(sizes, steps if fixed else None, text)
    codes = np.random.default_rng(seed).integers(0, sizes, (steps, len(sizes)))
    rows = vocabulary.encode_span("audio", codes)
    assert len(rows) == vocabulary.count_span_rows("audio", steps) == 2 + codes.size + (not fixed)
    assert np.array_equal(vocabulary.decode_span(rows)[1], codes)
    assert parse_vocabulary(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    flat = build(sizes, steps if fixed else None).encode_span("audio", codes)
    assert sorted(set(rows)) == sorted({*flat, *(set() if fixed else {vocabulary.get_control_id("frame")})})
    for broken in (rows[:-2] + rows[-1:], rows[:1] + rows[2:], rows[:-1]):
        with pytest.raises(ValueError):
            vocabulary.decode_span(broken)


@examples(60)
@given(orders(), st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 4), st.integers(0, 9999))
def test_whatever_is_drawn_is_a_whole_span_within_its_limits(order, fixed, least, seed):
    """Any row that is allowed, at random, also behind a prompt that ends within the span; no other row is taken."""
    sizes, text = order
    vocabulary, rng = build(sizes, fixed, text), np.random.default_rng(seed)
    most = least + int(rng.integers(0, 4))
    limits = {} if fixed else {"min_codes": {"audio": least}, "max_codes": {"audio": most}}
    config = GenerationConfig(max_new_tokens=80, force="audio", **limits)
    answer = draw_answer(Grammar(vocabulary, config), vocabulary, rng)
    _, codes = vocabulary.decode_span(answer[:-1])
    assert vocabulary.encode_span("audio", codes) == answer[:-1]
    assert len(codes) == fixed or least <= len(codes) <= most
    begun = answer[: rng.integers(1, len(answer) - 1)]
    rest = draw_answer(Grammar(vocabulary, config, begun), vocabulary, rng)
    assert vocabulary.decode_span([*begun, *rest][:-1])[0] == "audio"


def draw_answer(grammar, vocabulary, rng):
    state, answer = grammar.start(), []
    while not state.finished:
        allowed = [row for start, end in grammar.list_allowed(state) for row in range(start, end)]
        other = int(rng.choice(sorted(set(range(vocabulary.size)) - set(allowed))))
        with pytest.raises(ValueError, match="cannot come next"):
            grammar.advance(state.copy(), other)
        answer.append(int(rng.choice(allowed)))
        if vocabulary.find_block(answer[-1]) is not None:
            assert vocabulary.find_block(answer[-1]).group == grammar.find_group(state)
        grammar.advance(state, answer[-1])
    return answer


@examples(40)
@given(orders(), st.integers(1, 5), st.integers(0, 99))
def test_training_scores_every_choice_among_what_may_be_drawn(order, steps, seed):
    """The softmax of each code and of the mark holds all rows that the grammar allows in its place."""
    import torch

    sizes, text = order
    vocabulary = build(sizes, None, text)
    groups = HeadGroups.from_vocabulary(vocabulary)
    rows = vocabulary.encode_span("audio", np.random.default_rng(seed).integers(0, sizes, (steps, len(sizes))))
    grammar = Grammar(vocabulary, GenerationConfig(max_new_tokens=200, force="audio"))
    state = grammar.advance(grammar.start(), rows[0])
    for previous, row in zip(rows, rows[1:-1], strict=False):
        group, index = groups.assign(torch.tensor([row]), torch.tensor([previous]))
        spec = groups.groups[int(group)]
        scored = [*(r for piece in spec.pieces for r in piece), *spec.exits]
        assert scored[int(index)] == row
        allowed = {r for start, end in grammar.list_allowed(state) for r in range(start, end)}
        assert allowed <= set(scored)
        grammar.advance(state, row)


def test_the_orders_of_the_page():
    def spell(order):
        vocabulary = build((9, 9, 9), None, order)
        codes = np.arange(3)[:, None].repeat(3, 1)
        named = {vocabulary.get_control_id("frame"): "|"}
        named |= {block.start + step: f"{'abc'[block.group]}{step}" for block in vocabulary.blocks for step in range(3)}
        return " ".join(named[row] for row in vocabulary.encode_span("audio", codes)[1:-1])

    assert spell("flat") == "a0 b0 c0 a1 b1 c1 a2 b2 c2"
    assert spell("delay") == spell("delay 0 1 2") == "a0 a1 b0 a2 b1 c0 | b2 c1 c2"
    assert spell("coarse-first") == "a0 a1 a2 | b0 c0 b1 c1 b2 c2"
    assert spell("coarse_first 2") == "a0 b0 a1 b1 a2 b2 | c0 c1 c2"


@examples(20)
@given(st.integers(3, 12), st.integers(0, 99))
def test_delayed_codes_are_those_of_musicgen(steps, seed):
    """transformers' mask of MusicGen begins with a column of the id that stands for no code; it masks from 3 on."""
    import torch
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    codes = np.random.default_rng(seed).integers(0, 2048, (steps, 4))
    delayed = delay_codes(codes, MUSICGEN_DELAYS)
    begun = torch.tensor(np.concatenate([np.full((1, 4), PUBLISHED_NOTHING), codes]).T)
    config = MusicgenDecoderConfig()

    class Masked:  # what the method reads of a model, without its weights
        num_codebooks = 4

    Masked.config = config
    _, mask = MusicgenForCausalLM.build_delay_pattern_mask(Masked(), begun, PUBLISHED_NOTHING, steps + 4)
    assert np.array_equal(mask.numpy().T[1:], delayed)
    assert np.array_equal(undo_delay(delayed, MUSICGEN_DELAYS), codes)
    assert config.pad_token_id == config.vocab_size == PUBLISHED_NOTHING


@examples(30)
@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 99))
def test_moshis_streams_come_back_and_a_cut_one_gives_its_whole_steps(steps, cut, seed):
    """Text of 32,000 and twice eight books of 2,048: semantic ones at once, the others a step later."""
    rng = np.random.default_rng(seed)
    nothing = [32_000, *[PUBLISHED_NOTHING] * 16]
    codes = rng.integers(0, nothing, (steps, 17))
    delayed = delay_codes(codes, MOSHI_DELAYS, nothing)
    assert delayed.shape == (steps + 1, 17)
    assert delayed[0].tolist() == [c if d == 0 else n for c, d, n in zip(codes[0], MOSHI_DELAYS, nothing, strict=True)]
    assert np.array_equal(undo_delay(delayed, MOSHI_DELAYS, nothing), codes)
    assert np.array_equal(undo_delay(delayed[:cut], MOSHI_DELAYS, nothing), codes[: max(0, min(cut, steps + 1) - 1)])
    for group, delay in enumerate(MOSHI_DELAYS):
        assert (delayed[delay : delay + steps, group] == codes[:, group]).all()


def test_orders_that_do_not_fit_are_one_line():
    for text, said in (
        *(
            (text, "is no order of codes; write flat, delay")
            for text in ("backwards", "", "flat 1", "coarse_first 1 2")
        ),
        ("delay 1 2 3", "delays are one for each of 3 groups, and one of them 0"),
        ("delay 0 1", "delays are one for each of 3 groups"),
        ("coarse_first 3", "coarse is from 1 to 2 of 3 groups; got 3"),
    ):
        with pytest.raises(ValueError, match=said):
            make_pattern(text, 3)
    blocks = [Block(name="image", modality="image", size=4)]
    layouts = [SpanLayout("image", [Segment("image", 2)])]
    with pytest.raises(ValueError, match="code_order names 'image', which has one code a step; leave it out"):
        order_layouts(layouts, blocks, {"image": "delay"})
    with pytest.raises(ValueError, match="code_order names 'audio', but there are spans of image only"):
        order_layouts(layouts, blocks, {"audio": "delay"})
    pattern = CodePattern(kind="delay", delays=(0, 1))
    blocks = [Block(name="audio", modality="audio", group=g, size=4, layout="summed") for g in range(2)]
    with pytest.raises(ValueError, match="has a pattern; it needs one segment of codes at positions of their own"):
        Vocabulary.build(3, blocks, [SpanLayout("audio", [Segment("audio")], pattern=pattern)])
