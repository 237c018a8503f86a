"""A teacher with another text tokenizer: distillation by approximate likelihood matching (ALM, arXiv 2503.20083).

Both models read the same text in their own tokens. Where the ends of a token of both meet, a chunk ends; each model
gives a chunk the product of its tokens' probabilities, and the student is to give it the teacher's:

    loss = mean over chunks of -(y log x + (1 - y) log(1 - x)),   x, y = p_student, p_teacher of the chunk ^ (1 / τ)

as in the authors' code (`alm_diff_fn: binary_ce`, `binarization_temp` 100). `chunks: words` ends a chunk only before
white space, where both tokenizers cut anyhow; `shared` wherever ends meet, which is biased by where a tokenizer likes
to cut. The code's own remedies for that, the probability of a following space and pairs measured beforehand, are not
here.

The teacher reads the texts of a document one behind the other, without turn marks and media. Codes of media are learnt
as in next-token training.

Shapes: T tokens of the student's batch, U of the teacher's, C chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import Config
from unimodal.text.tokenizer import TextTokenizer

EPSILON = 1e-6


class LikelihoodConfig(Config):
    chunks: Literal["words", "shared"] = "words"
    temperature: float = Field(default=100.0, gt=0)


@dataclass
class Chunks:
    """The teacher's reading of a batch, and the C chunks.

    ids, position_ids: [1, U]. mine, other: the chunk of each token, int64 [T] and [U], -1 for none. num: C.
    """

    ids: Tensor
    position_ids: Tensor
    mine: Tensor
    other: Tensor
    num: int


def find_chunks(
    ids: Tensor, labels: Tensor, position_ids: Tensor, text: TextTokenizer, other: TextTokenizer, begin: int, which: str
) -> Chunks:
    """ids, labels and position_ids [B, N] of packed documents. begin: the teacher's row before a document.

    A text whose tokens are not those that the tokenizer gives it (cut in the middle) is read, and has no chunks.
    """
    flat, wanted = ids.reshape(-1).tolist(), (labels.reshape(-1) >= 0).tolist()
    firsts = (position_ids.reshape(-1) == 0).tolist()
    mine = torch.full((len(flat),), -1, dtype=torch.int64)
    read: list[int] = []
    places: list[int] = []
    of: list[int] = []
    num, at = 0, 0
    while at < len(flat):
        if firsts[at]:
            read, places, of = [*read, begin], [*places, 0], [*of, -1]
        last = at
        while last < len(flat) and flat[last] < text.size and (last == at or not firsts[last]):
            last += 1
        if last == at:
            at += 1
            continue
        words = text.decode(flat[at:last])
        rows, spans = text.locate(words)
        theirs, their_spans = other.locate(words)
        chunk_of = [-1] * len(theirs)
        if rows == flat[at:last]:
            for first, end, their_first, their_end in _align(words, spans, their_spans, which):
                if all(wanted[at + first : at + end]):
                    mine[at + first : at + end] = num
                    chunk_of[their_first:their_end] = [num] * (their_end - their_first)
                    num += 1
        read, of = [*read, *theirs], [*of, *chunk_of]
        places += range(places[-1] + 1, places[-1] + 1 + len(theirs))
        at = last
    device = ids.device
    return Chunks(
        torch.tensor([read], device=device), torch.tensor([places], device=device), mine.to(device),
        torch.tensor(of, device=device), num,
    )  # fmt: skip


def _align(
    words: str, spans: list[tuple[int, int]], others: list[tuple[int, int]], which: str
) -> list[tuple[int, int, int, int]]:
    """Chunks of one text: (first, end) of the one's tokens and (first, end) of the other's."""
    ends = {span[1]: number + 1 for number, span in enumerate(spans)}  # the last token that ends there
    other_ends = {span[1]: number + 1 for number, span in enumerate(others)}
    found, begin, other_begin = [], 0, 0
    for place in sorted(ends.keys() & other_ends.keys()):
        if which == "words" and place < len(words) and not words[place].isspace():
            continue
        end, other_end = ends[place], other_ends[place]
        if end > begin and other_end > other_begin:
            found.append((begin, end, other_begin, other_end))
            begin, other_begin = end, other_end
    return found


def match_likelihoods(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the chunks, each [C] → the loss of each, [C]."""
    known, found = (x.clamp(max=0) / temperature - EPSILON for x in (teacher, student))
    return -(known.exp() * found - torch.expm1(known) * log1mexp(found))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, without loss where x is near 0 or far from it."""
    near = x > -0.6931471805599453
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )
