"""A gap in a text is filled byte by byte, by a model that learnt to fill in the middle (Bavarian et al. 2022,
arXiv:2207.14255), as in Phan et al. 2024 (arXiv:2410.09303).

Three marks tell such a model what stands before and behind a gap. There are two orders:

    psm   PREFIX before SUFFIX behind MIDDLE     and the middle follows
    spm   PREFIX SUFFIX behind MIDDLE before     and the middle goes on with what stands before (Bavarian's SPMv2)

By tokens, a text that breaks off inside a word is answered badly in `spm`: its last token was never seen there. As
bytes it has an exact answer, the sum over the covers of what stands before (`byte_distribution.py`). In `psm` the
covers are those of the middle alone, since a mark stands between. Models differ in what they were trained on: Code
Llama and the StarCoders on both, Qwen2.5-Coder and DeepSeek-Coder on `psm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unimodal.text.byte_distribution import ByteDistribution, Floats, NextTokens
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.tokenizer import TextTokenizer

Order = Literal["psm", "spm"]

#: the marks before the prefix, the suffix and the middle, as tokenizers of code models have them
KNOWN_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek-Coder
)


@dataclass(frozen=True)
class GapMarks:
    """The rows of the marks before what stands before a gap, before what stands behind it, and before the middle."""

    prefix: int
    suffix: int
    middle: int


def find_gap_marks(text: TextTokenizer) -> GapMarks:
    """The marks of a tokenizer, by their usual names. Raises ValueError for a tokenizer that has none of these."""
    rows = {token["content"]: token["id"] for token in text.base_added_tokens}
    for names in KNOWN_MARKS:
        if all(name in rows for name in names):
            return GapMarks(*(rows[name] for name in names))
    raise ValueError(
        f"this tokenizer has no marks for a gap, such as {' '.join(KNOWN_MARKS[0])}; "
        "give the rows of its own, or take a model that learnt to fill in the middle"
    )


def arrange_gap(
    text: TextTokenizer, before: str, behind: str, order: Order = "spm", marks: GapMarks | None = None
) -> tuple[list[int], str]:
    """What a model reads ahead of what it writes, as ids; and how what it writes begins: `before` in `spm`.

    marks: by default those of `find_gap_marks`. Raises ValueError for an unknown order.
    """
    found = marks or find_gap_marks(text)
    if order == "spm":
        return [found.prefix, found.suffix, *text.encode(behind), found.middle], before
    if order == "psm":
        return [found.prefix, *text.encode(before), found.suffix, *text.encode(behind), found.middle], ""
    raise ValueError(f"order is {order!r}; use psm or spm")


def fill_gap(
    next_tokens: NextTokens,
    tokenizer: OpenedTokenizer,
    before: str,
    behind: str,
    num_bytes: int,
    order: Order = "spm",
    marks: GapMarks | None = None,
    start: Sequence[int] = (),
    seed: int | None = None,
    canonical: bool = True,
) -> bytes:
    """At most so many bytes for the gap, up to where the model ends them: the likeliest each, or drawn by a seed.

    next_tokens: the tokens so far → the probability of each row to come next, float [V]. start: what every sequence of
    the model begins with, such as its bos. canonical: as of `ByteDistribution`. Rows that spell nothing end the middle,
    the model's own mark for its end among them. Raises ValueError as `arrange_gap`, and for a text that the model
    cannot write.
    """
    ahead, begun = arrange_gap(tokenizer.text, before, behind, order, marks)

    def read_next(ids: Sequence[int]) -> Floats:
        return np.asarray(next_tokens([*start, *ahead, *ids]), np.float64)

    return ByteDistribution(read_next, tokenizer.written, tokenizer.text.encode_batch, canonical).write(
        begun, num_bytes, seed
    )
