"""A span whose second segment follows the first without a frame mark: two codebooks, one picture."""

import numpy as np
import pytest

from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, parse_vocabulary

PICTURE = [Segment("semantic", 3), Segment("image", 5, mark=False)]


@pytest.fixture
def vocabulary() -> Vocabulary:
    blocks = [
        Block(name="semantic", modality="image", size=50),
        Block(name="image", modality="image", size=40),
        Block(name="video", modality="video", size=20),
    ]
    layouts = [SpanLayout("image", PICTURE), SpanLayout("video", [*PICTURE, Segment("video", 4), Segment("video", 4)])]
    return Vocabulary.build(100, blocks, layouts)


@pytest.mark.parametrize(("modality", "steps", "marks"), [("image", 8, 0), ("video", 16, 2)])
def test_spans_round_trip(vocabulary: Vocabulary, modality: str, steps: int, marks: int) -> None:
    codes = np.arange(steps) % 20
    rows = vocabulary.encode_span(modality, codes)
    assert len(rows) == vocabulary.count_span_rows(modality) == steps + marks + 2
    assert rows.count(vocabulary.get_control_id("<|frame|>")) == marks
    assert rows[4] == vocabulary.get_block_range("image").start + codes[3]
    found, decoded = vocabulary.decode_span(rows)
    assert found == modality and decoded.tolist() == codes.tolist()
    assert parse_vocabulary(vocabulary.to_dict()).get_layout(modality) == vocabulary.get_layout(modality)


@pytest.mark.parametrize("modality", ["image", "video"])
def test_the_grammar_samples_only_well_formed_spans(vocabulary: Vocabulary, modality: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        grammar = Grammar(vocabulary, GenerationConfig(max_new_tokens=40, force=modality))
        state = grammar.start()
        rows: list[int] = []
        while not state.finished:
            ranges = grammar.list_allowed(state)
            steady = grammar.count_steady(state)
            start, end = ranges[random.integers(len(ranges))]
            rows.append(int(random.integers(start, end)))
            grammar.advance(state, rows[-1])
            assert steady >= 1
            if steady > 1:
                assert grammar.list_allowed(state) == ranges
        begin = rows.index(vocabulary.get_start_id(modality))
        end = rows.index(vocabulary.get_end_id(modality)) + 1
        assert vocabulary.decode_span(rows[begin:end])[0] == modality


def test_an_unmarked_segment_needs_a_fixed_length_before_it() -> None:
    blocks = [Block(name="audio", modality="audio", size=4)]
    layout = SpanLayout("audio", [Segment("audio", None), Segment("audio", 2, mark=False)])
    with pytest.raises(ValueError, match="no mark behind its segment of free length"):
        Vocabulary.build(10, blocks, [layout])
