"""GRAT (arXiv 2505.14687): tokens of a grid in groups, and one set of groups that all tokens of a group attend to.

The grid is cut into boxes, and tokens are ordered box by box, so that a box is a stretch of the sequence and a block of
a GPU's kernel. A group attends to the groups around it ("surrounding"), or to those in line with it along some axis
("cross"). Tokens around the grid, such as a text, are attended to by all and attend to all. Nothing is trained.

Shapes: B items, H heads, N tokens, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.attention.replacing import ReplacedAttention, SeesPair, attend_pairs

Pattern = Literal["cross", "surrounding"]


class GroupedAttention(ReplacedAttention):
    """Within it, attention over a grid is that of groups to groups (GRAT, arXiv 2505.14687).

    group: tokens of a box along each axis of the grid. pattern: "cross", groups of the same place along an axis that
    has several; "surrounding", groups at most `radius` away along every axis. Raises ValueError for boxes that do not
    fill the grid, an unknown pattern and a negative radius.
    """

    paper: ClassVar[str] = "GRAT, arXiv 2505.14687"

    def __init__(
        self,
        grid: Sequence[int],
        group: Sequence[int],
        pattern: Pattern = "cross",
        radius: int = 1,
        before: int = 0,
        after: int = 0,
    ):
        super().__init__(grid, before, after)
        if len(group) != len(self.grid) or any(
            size < 1 or side % size for side, size in zip(grid, group, strict=False)
        ):
            raise ValueError(f"groups of {tuple(group)} do not fill a grid of {self.grid}; choose divisors")
        if pattern not in ("cross", "surrounding"):
            raise ValueError(f"pattern {pattern!r} is unknown; use cross or surrounding")
        if radius < 0:
            raise ValueError(f"radius is {radius}; give a number of groups from 0 on")
        self.group, self.pattern, self.radius = tuple(group), pattern, radius

    @cached_property
    def order(self) -> Tensor:
        """Places of the sequence in the order of groups, int64 [N]; the tokens around the grid stay where they are."""
        places = order_by_groups(self.grid, self.group) + self.before
        end = self.before + len(places)
        return torch.cat([torch.arange(self.before), places, torch.arange(end, end + self.after)])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        order = self.order.to(query.device)
        sees = find_group_pairs(
            self.grid, self.group, self.pattern, self.radius, self.before, self.after, str(query.device)
        )
        query, key, value = (each[:, :, order] for each in (query, key, value))
        made = attend_pairs(query, key, value, sees, scale)
        return torch.empty_like(made).index_copy_(2, order, made)


def order_by_groups(grid: Sequence[int], group: Sequence[int]) -> Tensor:
    """The places of a grid, int64 [N], box by box, both boxes and places within a box in the grid's own order."""
    places = torch.arange(math.prod(grid))
    split = places.reshape([part for side, size in zip(grid, group, strict=True) for part in (side // size, size)])
    num = len(grid)
    return split.permute(*range(0, 2 * num, 2), *range(1, 2 * num, 2)).flatten()


def link_groups(num_groups: Sequence[int], pattern: Pattern, radius: int) -> Tensor:
    """Which group attends to which, bool [G, G]. num_groups: along each axis."""
    axes = torch.meshgrid(*(torch.arange(num) for num in num_groups), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], -1)  # [G, axes]
    apart = (places[:, None] - places[None]).abs()
    if pattern == "surrounding":
        return (apart <= radius).all(-1)
    counted = torch.tensor([num > 1 for num in num_groups])  # one group along an axis is no line across it
    return ((apart == 0) & counted).any(-1) | (apart == 0).all(-1)


@lru_cache(maxsize=16)
def find_group_pairs(
    grid: tuple[int, ...],
    group: tuple[int, ...],
    pattern: Pattern,
    radius: int,
    before: int,
    after: int,
    device: str,
) -> SeesPair:
    """Which ordered token sees which, the same in all items and heads."""
    linked = link_groups([side // size for side, size in zip(grid, group, strict=True)], pattern, radius)
    size, count = math.prod(group), len(linked)
    whole = torch.ones(count + 1, count + 1, dtype=torch.bool)  # the last one is the tokens around the grid
    whole[:count, :count] = linked
    inside = torch.arange(size * count) // size
    group_of = torch.cat([torch.full((before,), count), inside, torch.full((after,), count)]).to(device)
    whole = whole.to(device)

    def sees(item: Tensor, head: Tensor, at: Tensor, other: Tensor) -> Tensor:
        return whole[group_of[at], group_of[other]]

    return sees
