"""Pictures that are written in rows: no code can stand where a mark belongs, whatever is sampled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.generation.spans import find_open_span, read_open_grid
from unimodal.vocabulary import Block, Control, Segment, SpanLayout
from unimodal.vocabulary.adopted import AdoptedVocabulary
from unimodal.vocabulary.grid import GridMarks

MARKS = GridMarks(digits=tuple(range(10)), times=10, open=41, end_of_row=42, end_of_grid=43, grid=(2, 3))
VOCABULARY = AdoptedVocabulary(
    60,
    [Control("<|image_start|>", 50), Control("<|image_end|>", 51), Control("<|bos|>", 52),
     Control("<|end_of_turn|>", 53), Control("<|pad|>", 54)],
    [Block(name="image", modality="image", start=20, size=20)],
    [SpanLayout("image", [Segment("image", 6)], MARKS)],
    [41, 42, 43],
)  # fmt: skip


def make_grammar(max_new_tokens, prompt=(), grid=None):
    return Grammar(VOCABULARY, GenerationConfig(max_new_tokens=max_new_tokens, force="image", grid=grid), prompt)


def written(grammar, state, seed):
    """Rows drawn at random from what is allowed, to the end."""
    noise = np.random.default_rng(seed)
    rows = []
    while not state.finished:
        allowed = [row for start, end in grammar.list_allowed(state) for row in range(start, end)]
        rows.append(int(noise.choice(allowed)))
        grammar.advance(state, rows[-1])
    return rows


@given(st.sampled_from([None, (1, 1), (3, 2), (12, 10)]), st.integers(0, 100))
def test_any_sample_is_a_whole_picture(grid, seed):
    length = VOCABULARY.count_span_rows("image", grid=grid) + 1
    grammar = make_grammar(length, grid=grid)
    rows = written(grammar, grammar.start(), seed)
    assert len(rows) == length and rows[-1] == 53
    modality, codes, found = VOCABULARY.read_span(rows[:-1])
    assert modality == "image" and found == (grid or (2, 3))
    assert VOCABULARY.encode_span("image", codes, found) == rows[:-1]
    with pytest.raises(ValueError, match=f"takes at least {length}"):
        make_grammar(length - 1, grid=grid)


@given(st.integers(1, 30), st.integers(0, 20))
def test_a_picture_that_the_prompt_opens_is_finished_in_its_own_size(cut, seed):
    whole = VOCABULARY.encode_span("image", [number % 20 for number in range(15)], (3, 5))
    prompt = [52, 3, *whole[:cut]]
    span = find_open_span(VOCABULARY, prompt)
    assert list(span) == whole[:cut] if cut < len(whole) else not len(span)
    grid = read_open_grid(VOCABULARY, span)
    assert grid == (None if cut < 5 or cut >= len(whole) else (3, 5))
    if grid is None:
        return
    grammar = make_grammar(len(whole) - cut + 1, prompt)
    rows = written(grammar, grammar.start(), seed)
    assert VOCABULARY.read_span([*whole[:cut], *rows[:-1]])[2] == (3, 5)


def test_steps_count_codes_and_no_marks():
    grammar = make_grammar(30)
    state = grammar.start()
    span = VOCABULARY.encode_span("image", [1, 2, 3, 4, 5, 6])
    seen = []
    for row in span:
        grammar.advance(state, row)
        seen.append((grammar.count_span_steps(state), grammar.find_segment(state)))
    # start 2 * 3 open | c c c row | c c c row | end of grid, end
    assert [step for step, _ in seen] == [0, 0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 0]
    blocks = [segment for _, segment in seen]
    assert blocks[0] is None and blocks[4] == ("image", 3) and blocks[-2] is None
