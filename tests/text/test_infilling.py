"""A gap in a text as bytes: what a model of tokens says of it, written out; the orders and marks of code models."""

import numpy as np
import pytest

from tests.text.test_byte_distribution import MERGES, SMALL, STOP
from unimodal.text.byte_distribution import ByteDistribution
from unimodal.text.infilling import KNOWN_MARKS, GapMarks, arrange_gap, fill_gap, find_gap_marks
from unimodal.text.pretokens import make_word_pattern
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers.subwords import make_byte_bpe

MARKS = GapMarks(prefix=7, suffix=8, middle=9)
NUM_ROWS = 10


def make_small(names=KNOWN_MARKS[0]) -> OpenedTokenizer:
    """Letters a and b, and the marks behind the row that ends a text."""
    data = make_byte_bpe(SMALL, MERGES, make_word_pattern("free"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": STOP + number, "content": name, **flags} for number, name in enumerate(["<end>", *names])]
    return OpenedTokenizer({**data, "added_tokens": added}, "small")


def follow(read: list[int], written: list[int]):
    """A model that, behind `read`, writes these rows and then ends; anything else it ends at once."""

    def next_tokens(ids):
        assert list(ids[: len(read)]) == read, "what is read ahead stands as it should"
        found = np.full(NUM_ROWS, 1e-6)
        done = list(ids[len(read) :])
        row = written[len(done)] if done == written[: len(done)] and len(done) < len(written) else STOP
        found[row] = 1
        return found / found.sum()

    return next_tokens


@pytest.mark.parametrize("names", KNOWN_MARKS)
def test_marks_are_found_by_the_names_that_code_models_give_them(names):
    assert find_gap_marks(make_small(names).text) == MARKS


def test_a_tokenizer_without_marks_and_an_unknown_order_are_one_line():
    text = make_small(()).text
    with pytest.raises(ValueError, match="has no marks for a gap, such as .*; give the rows of its own"):
        arrange_gap(text, "a", "b")
    with pytest.raises(ValueError, match="order is 'smp'; use psm or spm"):
        arrange_gap(text, "a", "b", "smp", MARKS)


def test_a_gap_inside_a_token_is_filled_as_bytes():
    """The model knows `aba ab` around the suffix `b`: cut behind the first letter, what follows is still known."""
    tokenizer = make_small()
    known = [SMALL["aba"], SMALL["Ġ"], SMALL["ab"]]
    read = [MARKS.prefix, MARKS.suffix, SMALL["b"], MARKS.middle]
    for cut in range(6):
        whole = "aba ab"
        rows = tokenizer.text.encode(whole)
        assert rows == known
        assert fill_gap(follow(read, rows), tokenizer, whole[:cut], "b", 20) == whole[cut:].encode()
    cut = tokenizer.text.encode("ab")
    assert follow(read, known)([*read, *cut]).argmax() == STOP  # by tokens it does not know how to go on


def test_in_the_other_order_both_sides_are_tokens_of_their_own():
    tokenizer = make_small()
    a, b, ab = SMALL["a"], SMALL["b"], SMALL["ab"]
    read = [5, MARKS.prefix, a, MARKS.suffix, b, MARKS.middle]  # 5: what every sequence begins with
    found = fill_gap(follow(read, [ab]), tokenizer, "a", "b", 20, order="psm", start=[5])
    assert found == b"ab"
    assert fill_gap(follow(read, [ab]), tokenizer, "a", "b", 1, order="psm", start=[5]) == b"a"


@pytest.mark.parametrize("canonical", [True, False])
def test_what_is_drawn_follows_the_exact_distribution(canonical):
    tokenizer = make_small()
    ahead = [MARKS.prefix, MARKS.suffix, *tokenizer.text.encode("ba"), MARKS.middle]

    def think(ids):
        return np.random.default_rng([len(ids), *ids]).dirichlet(np.ones(NUM_ROWS))

    exact = ByteDistribution(
        lambda ids: think([*ahead, *ids]), tokenizer.spelled, tokenizer.text.encode_batch, canonical
    ).compute("ab")
    drawn = [
        fill_gap(think, tokenizer, "ab", "ba", 1, seed=seed, canonical=canonical) for seed in range(400)
    ]  # an empty one is the end
    for byte in (b"a", b"b", b" "):
        assert drawn.count(byte) / 400 == pytest.approx(exact[byte[0]], abs=0.08)
    assert fill_gap(think, tokenizer, "ab", "ba", 1) in (bytes([exact.argmax()]) if exact.argmax() < 256 else b"",)
