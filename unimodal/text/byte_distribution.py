"""Exact probabilities of the next byte, from a model of tokens (Phan et al. 2024, "Exact Byte-Level Probabilities from
Tokenized Language Models for FIM-Tasks and Model Ensembles", arXiv:2410.09303).

A model of tokens answers a prompt that ends inside a token badly: the rest of the token is no continuation that it was
trained on. The probability of a text as bytes is the sum over its covers, which are the token sequences that spell it
and whose last token may go beyond it; the next byte's is the ratio of two such sums. So a prompt may end anywhere, and
models with different tokenizers can be averaged, byte by byte.

Covers are `canonical` as in the paper: those that the tokenizer itself would write, which are few. What the model gives
to others is left out, and the rest divided by its sum at the end, as in the authors' program; here every beginning of
a cover has to be canonical too. With `canonical=False` all covers count, and the result is the model's own
distribution over bytes; their number grows fast with the prompt.

Legend: V rows of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BYTES = 256
END = 256  # the place of all that is no byte: the end of the text, and other rows that spell nothing
MOST_COVERS = 20_000

#: the tokens so far → the probability of each row to come next, [V]
NextTokens = Callable[[Sequence[int]], Floats]
#: texts → their ids
EncodeBatch = Callable[[Sequence[str]], list[list[int]]]


class ByteDistribution:
    """What a model of tokens says of the next byte."""

    def __init__(
        self,
        next_tokens: NextTokens,
        spelled: Mapping[int, bytes],
        encode_batch: EncodeBatch,
        canonical: bool = True,
    ) -> None:
        """next_tokens: the model behind whatever stands before the text. spelled: row → the bytes that it stands for.

        encode_batch: the tokenizer, without special tokens.
        """
        self.canonical = canonical
        self._next_tokens = next_tokens
        self._encode_batch = encode_batch
        self._spelled = {row: piece for row, piece in spelled.items() if piece}
        self._by_first: dict[int, list[int]] = {}
        for row, piece in self._spelled.items():
            self._by_first.setdefault(piece[0], []).append(row)

    def compute(self, prefix: bytes | str) -> Floats:
        """[257]: the probability of each byte behind `prefix`, and at `END` that the text ends.

        Raises ValueError for a prefix that has no cover, or, if all covers count, too many.
        """
        wanted = prefix.encode() if isinstance(prefix, str) else prefix
        sums = np.zeros(NUM_BYTES + 1)
        # the sequences that spell a beginning of the prefix, by its length, with their probabilities
        states: list[dict[tuple[int, ...], float]] = [{} for _ in range(len(wanted) + 1)]
        states[0][()] = 1.0
        num_covers = 0
        for length, known in enumerate(states):
            rest = wanted[length:]
            for ids, probability in known.items():
                num_covers += 1
                if num_covers > MOST_COVERS:
                    raise ValueError(
                        f"{wanted[:40]!r} has more than {MOST_COVERS:,} encodings; count canonical ones alone"
                    )
                following = np.asarray(self._next_tokens(ids), np.float64)
                rows = self._find_rows(rest)
                for row in self._keep_valid(ids, rows) if self.canonical else rows:
                    piece, share = self._spelled[row], probability * float(following[row])
                    if len(piece) > len(rest):
                        sums[piece[len(rest)]] += share
                    else:
                        longer = states[length + len(piece)]
                        longer[*ids, row] = longer.get((*ids, row), 0.0) + share
                if not rest:
                    silent = [row for row in range(len(following)) if row not in self._spelled]
                    sums[END] += probability * float(following[silent].sum())
        if not sums.sum() > 0:
            raise ValueError(f"{wanted[:40]!r} is no text that this model can write")
        return sums / sums.sum()

    def write(self, prefix: bytes | str, num_bytes: int, seed: int | None = None) -> bytes:
        """At most so many bytes behind `prefix`, up to the end of the text: the likeliest each, or drawn by a seed."""
        text = prefix.encode() if isinstance(prefix, str) else prefix
        start = len(text)
        rng = None if seed is None else np.random.default_rng(seed)
        while len(text) < start + num_bytes:
            found = self.compute(text)
            byte = int(found.argmax()) if rng is None else int(rng.choice(NUM_BYTES + 1, p=found))
            if byte == END:
                break
            text += bytes([byte])
        return text[start:]

    def _find_rows(self, rest: bytes) -> list[int]:
        """The rows that go on with the prefix, and may go beyond it."""
        if not rest:
            return list(self._spelled)
        found = self._by_first.get(rest[0], [])
        return [row for row in found if rest.startswith(self._spelled[row]) or self._spelled[row].startswith(rest)]

    def _keep_valid(self, ids: tuple[int, ...], rows: Sequence[int]) -> list[int]:
        """The rows behind which the sequence is one that the tokenizer writes."""
        before = b"".join(self._spelled[row] for row in ids)
        texts: list[str] = []
        owners: list[tuple[int, bool]] = []  # (row, whether a character of its text was completed)
        for row in rows:
            whole, part = _split_characters(before + self._spelled[row])
            if part is None:
                continue
            ends = _complete(part) if part else [""]
            texts += [whole + end for end in ends]
            owners += [(row, bool(part))] * len(ends)
        kept: set[int] = set()
        for (row, is_part), found in zip(owners, self._encode_batch(texts), strict=True):
            wanted = [*ids, row]
            if (found[: len(wanted)] if is_part else found) == wanted:
                kept.add(row)
        return [row for row in rows if row in kept]


def average(distributions: Sequence[ByteDistribution], prefix: bytes | str) -> Floats:
    """[257]: the mean of what several models say of the next byte, whatever their tokenizers."""
    return np.mean([one.compute(prefix) for one in distributions], axis=0)


def _split_characters(data: bytes) -> tuple[str, bytes | None]:
    """The whole characters of a text and the bytes of one that is begun; None for bytes that begin no UTF-8."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        whole, part = data[: error.start], data[error.start :]
        return whole.decode(), part if error.reason == "unexpected end of data" else None


def _complete(part: bytes) -> list[str]:
    """Characters that begin with these bytes: all for one byte that is missing; for more, one for each next byte."""
    found = []
    missing = (2 if part[0] < 0xE0 else 3 if part[0] < 0xF0 else 4) - len(part)
    for value in range(0x80, 0xC0):
        try:
            found.append((part + bytes([value]) + b"\x80" * (missing - 1)).decode())
        except UnicodeDecodeError:
            continue
    return found
