"""Tokenizers drawn at random from a text, so that a hypernetwork meets other tokenizers than the one it will serve.

As in zero-shot tokenizer transfer (Minixhofer, Ponti and Vulić 2024, arXiv:2405.07883): the pieces of the words of a
batch are scored by their number times their length; normal noise is added to the shares, of a deviation that is itself
drawn from a log-normal distribution; and the best are the rows of a Unigram tokenizer, behind a row for every byte.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from unimodal.text.pretokens import cut, make_splitter, make_word_pattern
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.tokenizer import TokenizerModel
from unimodal.text.trainers.plain import list_byte_letters
from unimodal.text.trainers.subwords import BYTE_LEVEL, make_data, make_sequence

LONGEST = 16  # letters of a piece, as bytes
NOISE_MEDIAN, NOISE_SPREAD = 1e-5, 4.0
_WORST = -1e5  # the score of a piece that noise has taken all from


def sample_tokenizer(lines: Sequence[str], num_rows: int, rng: random.Random) -> OpenedTokenizer:
    """A byte-level Unigram tokenizer of at most so many rows, 256 of them bytes."""
    letters = list_byte_letters()
    scores: Counter[str] = Counter()
    for word, count in Counter(cut(make_word_pattern("free"), [f" {line}" for line in lines])).items():
        spelled = "".join(letters[byte] for byte in word.encode())
        for start in range(len(spelled)):
            for end in range(start + 1, min(start + LONGEST, len(spelled)) + 1):
                scores[spelled[start:end]] += count * (end - start)
    total = sum(scores.values()) or 1
    deviation = NOISE_MEDIAN * math.exp(rng.gauss(0, NOISE_SPREAD))
    noisy = {}
    for piece in sorted(scores):
        share = scores[piece] / total + rng.gauss(0, deviation)
        noisy[piece] = math.log(share) if share > 0 else _WORST
    least = math.log(min(scores.values(), default=1) / total)
    rows = [(letter, least) for letter in letters]
    best = sorted((piece for piece in noisy if len(piece) > 1), key=lambda piece: -noisy[piece])
    rows += [(piece, noisy[piece]) for piece in best[: max(0, num_rows - len(rows))]]
    splitter = make_sequence(make_splitter(make_word_pattern("free")), BYTE_LEVEL)
    model: TokenizerModel = {"type": "Unigram", "byte_fallback": False, "vocab": rows}
    return OpenedTokenizer(make_data(model, splitter, BYTE_LEVEL), "sampled")
