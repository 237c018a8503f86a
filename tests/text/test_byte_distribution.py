"""The next byte of a model of tokens: equal to the sum over all token sequences, written out."""

import itertools

import numpy as np
import pytest

from unimodal.text.byte_distribution import END, ByteDistribution, average
from unimodal.text.pretokens import make_word_pattern
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers.plain import list_byte_letters
from unimodal.text.trainers.subwords import make_byte_bpe

LETTERS = list_byte_letters()
SMALL = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "aba": 4, "Ġa": 5}
MERGES = [["a", "b"], ["ab", "a"], ["Ġ", "a"]]
STOP = 6  # a row that spells nothing


def make_small() -> OpenedTokenizer:
    return OpenedTokenizer(make_byte_bpe(SMALL, MERGES, make_word_pattern("free")), "small")


def think(ids, size: int = STOP + 1, seed: int = 0) -> np.ndarray:
    """A model whose distribution depends on all tokens so far."""
    return np.random.default_rng([seed, len(ids), *ids]).dirichlet(np.ones(size))


def enumerate_bytes(tokenizer: OpenedTokenizer, prefix: bytes, canonical: bool) -> np.ndarray:
    """The distribution of the next byte: every token sequence that reaches beyond the prefix, one by one."""
    sums = np.zeros(257)
    for count in range(1, len(prefix) + 2):
        for ids in itertools.product(range(STOP + 1), repeat=count):
            *before, last = ids
            if STOP in before:
                continue
            spelled = b"".join(tokenizer.spelled[row] for row in before)
            whole = spelled + tokenizer.spelled.get(last, b"")
            if len(spelled) > len(prefix) or (last != STOP and not whole.startswith(prefix)):
                continue  # covers: the last token reaches beyond the prefix, the others do not
            if len(whole) <= len(prefix) and not (last == STOP and spelled == prefix):
                continue
            if canonical and any(
                tokenizer.encode(b"".join(tokenizer.spelled[row] for row in ids[:end]).decode()) != list(ids[:end])
                for end in range(1, count + 1)
                if ids[end - 1] != STOP
            ):
                continue
            probability = np.prod([think(ids[:end])[ids[end]] for end in range(count)])
            sums[END if last == STOP else whole[len(prefix)]] += probability
    return sums / sums.sum()


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("prefix", [b"", b"a", b"ab", b"ba", b"a a", b"abab"])
def test_it_is_the_sum_over_all_token_sequences(prefix, canonical):
    tokenizer = make_small()
    ours = ByteDistribution(think, tokenizer.spelled, tokenizer.text.encode_batch, canonical).compute(prefix)
    assert ours.shape == (257,) and ours == pytest.approx(enumerate_bytes(tokenizer, prefix, canonical), abs=1e-12)
    assert set(np.flatnonzero(ours)) <= {ord("a"), ord("b"), ord(" "), END}


@pytest.mark.parametrize("canonical", [True, False])
def test_bytes_multiply_to_the_probability_of_a_text(canonical):
    """The chain rule: the model as it is gives each text the sum over the sequences that spell it and stop."""
    tokenizer = make_small()
    distribution = ByteDistribution(think, tokenizer.spelled, tokenizer.text.encode_batch, canonical)
    text, product = b"ab a", 1.0
    for end in range(len(text)):
        product *= distribution.compute(text[:end])[text[end]]
    product *= distribution.compute(text)[END]
    direct = sum(
        np.prod([think(ids[:end])[ids[end]] for end in range(count)]) * think(ids)[STOP]
        for count in range(1, 5)
        for ids in itertools.product(range(STOP), repeat=count)
        if b"".join(tokenizer.spelled[row] for row in ids) == text
    )
    assert bool(product == pytest.approx(direct, rel=1e-9)) is not canonical  # canonical leaves some out at each step


def test_a_prompt_that_ends_inside_a_token_is_answered_as_bytes():
    """A model that writes " a" and "aba" only: behind "ab" comes "a", which the tokens of "ab" never saw."""
    tokenizer = make_small()

    def write_aba(ids) -> np.ndarray:
        return np.eye(STOP + 1)[SMALL["aba"] if not ids else STOP]

    distribution = ByteDistribution(write_aba, tokenizer.spelled, tokenizer.text.encode_batch)
    assert distribution.compute("ab")[ord("a")] == 1 and distribution.compute("aba")[END] == 1
    assert distribution.write("a", 10) == b"ba" and distribution.write("", 2, seed=3) == b"ab"
    with pytest.raises(ValueError, match="is no text that this model can write"):
        distribution.compute("b")


def test_characters_of_several_bytes_are_written_byte_by_byte():
    vocab = {letter: value for value, letter in enumerate(LETTERS)}
    cyrillic = ["".join(LETTERS[byte] for byte in letter.encode()) for letter in "жд"]
    vocab |= {letter: 256 + number for number, letter in enumerate(cyrillic)}
    merges = [[letter[0], letter[1]] for letter in cyrillic]
    tokenizer = OpenedTokenizer(make_byte_bpe(vocab, merges, make_word_pattern("free")), "bytes")

    def think_wide(ids) -> np.ndarray:
        return think(ids, 259)

    distribution = ByteDistribution(think_wide, tokenizer.spelled, tokenizer.text.encode_batch)
    first, second = "ж".encode()
    found = distribution.compute(bytes([first]))
    others = {256: second, 257: "д".encode()[1]}
    # behind the first byte: the rest of the two rows, or a byte that makes neither of the two letters
    weights = np.zeros(257)
    for row, byte in others.items():
        weights[byte] += think_wide(())[row]
    alone = think_wide(())[first] * think_wide((first,))
    for byte in set(range(0x80, 0xC0)) - set(others.values()):
        weights[byte] += alone[byte]
    weights[END] = alone[258]
    assert found == pytest.approx(weights / weights.sum(), abs=1e-12)


def test_models_with_different_tokenizers_are_averaged_and_too_many_covers_refused(monkeypatch):
    small = make_small()
    letters = OpenedTokenizer(make_byte_bpe({"a": 0, "b": 1, "Ġ": 2}, [], make_word_pattern("free")), "letters")
    one = ByteDistribution(think, small.spelled, small.text.encode_batch)
    other = ByteDistribution(lambda ids: think(ids, 4, 1), letters.spelled, letters.text.encode_batch)
    mean = average([one, other], "ab")
    assert mean == pytest.approx((one.compute("ab") + other.compute("ab")) / 2) and mean.sum() == pytest.approx(1)
    monkeypatch.setattr("unimodal.text.byte_distribution.MOST_COVERS", 20)
    with pytest.raises(ValueError, match="more than 20 encodings"):
        ByteDistribution(think, small.spelled, small.text.encode_batch, canonical=False).compute("abababab")
