"""What prompts have in common, so that it is read once.

Guidance twins, several answers to one prompt and questions about one picture begin with the same tokens. Prompts are
put into a tree (the radix tree of SGLang, arXiv 2312.07104): a stretch that several share is read as one stream, from
which the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.vocabulary.positions import Position

#: fewer tokens in common are read by each: another pass of the decoder would take longer
LEAST_SHARED = 64


@dataclass(eq=False)
class Stretch:
    """Tokens ``begin``..``end`` that the prompts ``members`` have in common, as all before. parts: what follows."""

    members: list[int]
    begin: int
    end: int
    parts: list[Stretch]


def split_prompts(
    prompts: Sequence[Sequence[Position]], members: Sequence[int], begin: int, least: int = LEAST_SHARED
) -> list[Stretch]:
    """The stretches of distinct prompts that are equal up to ``begin``. The last token of each is shared by none."""
    groups: dict[tuple[Position, ...] | int, list[int]] = {}
    for member in members:
        prompt = prompts[member]
        shares = len(prompt) > begin + least
        groups.setdefault(tuple(prompt[begin : begin + least]) if shares else member, []).append(member)
    found = []
    for group in groups.values():
        first = prompts[group[0]]
        if len(group) == 1:
            found.append(Stretch(group, begin, len(first), []))
            continue
        end = min(count_common(first, prompts[member]) for member in group[1:])
        end = min(end, *(len(prompts[member]) - 1 for member in group))
        found.append(Stretch(group, begin, end, split_prompts(prompts, group, end, least)))
    return found


def find_unique(prompts: Sequence[Sequence[Position]]) -> tuple[list[tuple[Position, ...]], list[int]]:
    """The distinct prompts, and for each prompt its index among them: equal prompts are read once."""
    found: dict[tuple[Position, ...], int] = {}
    numbers = [found.setdefault(tuple(prompt), len(found)) for prompt in prompts]
    return list(found), numbers


def count_common(a: Sequence[Position], b: Sequence[Position]) -> int:
    """The length of the longest common beginning of two sequences."""
    begin, most = 0, min(len(a), len(b))
    while begin < most and list(a[begin : begin + 64]) == list(b[begin : begin + 64]):
        begin += 64
    for index in range(begin, most):
        if a[index] != b[index]:
            return index
    return most
