"""Streams that all end at one slot of the cache: left padding, masks, and moves of slots when a stream falls behind.

Decoders whose streams start together align them on the right, so that a step writes one slot for all of them.

Shapes: S streams, N tokens of a prompt, P tokens of a step, V latest slots of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts
from unimodal.vocabulary.positions import NOTHING, Position


def pad_left(prompts: Prompts, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of unequal lengths -> ids int64 [S, N], padded on the left, and the number of pads of each, int64 [S].

    Where a prompt has summed positions, the ids are [S, N, G], with -1 for codes that a position does not have.
    """
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    rows: list[list[Position]] = [[*[pad_id] * pad, *prompt] for pad, prompt in zip(pads, prompts, strict=True)]
    ids = stack_positions(rows, device)
    return ids, torch.tensor(pads, dtype=torch.int64, device=device)


def stack_positions(rows: Sequence[Sequence[Position]], device: torch.device) -> Tensor:
    """Positions [S][P] -> ids int64 [S, P], or [S, P, G] where some are summed."""
    width = max((len(one) for row in rows for one in row if isinstance(one, tuple)), default=0)
    if not width:
        return torch.tensor(rows, dtype=torch.int64, device=device)
    parts = [[one if isinstance(one, tuple) else (one,) for one in row] for row in rows]
    filled = [[(*one, *[NOTHING] * (width - len(one))) for one in row] for row in parts]
    return torch.tensor(filled, dtype=torch.int64, device=device)


def build_visible_mask(visible: Tensor | None, pads: Tensor, begin: int, end: int) -> Tensor:
    """Which slots the tokens at slots begin..end see, bool [S, P, end]; left padding is never seen.

    visible: bool [S or 1, P, V], for the last V slots; all earlier ones are seen. None is causal.
    """
    slots = torch.arange(end, device=pads.device)
    queries = slots[begin:, None]
    if visible is None:
        seen = (slots <= queries)[None]  # aligned bottom-right: a new token sees itself and all before
    else:
        earlier = torch.ones(len(visible), end - begin, end - visible.shape[2], dtype=torch.bool, device=pads.device)
        seen = torch.cat([earlier, visible], 2)
    return (seen & (slots >= pads[:, None, None])) | (slots == queries)  # a padding query sees itself: no NaN


def count_unread(prompts: Prompts, prefixes: Sequence[CachedPrefix | None]) -> int:
    """How many last tokens of every prompt must be read: those behind the shortest prefix, and at least one."""
    held = [0 if prefix is None else prefix.num_tokens for prefix in prefixes or [None] * len(prompts)]
    return max(1, *(len(prompt) - num for prompt, num in zip(prompts, held, strict=True)))


def close_gap(pads: Tensor) -> tuple[Tensor, int]:
    """Remove the left padding that all remaining streams share: their pads int64 [S], and the number of slots to cut.

    A stream that has left may have been the longest. If its length stayed, a cache made for the longest stream would be
    full before the others are finished.
    """
    gap = int(pads.min()) if len(pads) else 0
    return pads - gap, gap


@dataclass(frozen=True)
class Move:
    """Where `plan_moves` puts a stream: its new left padding, and the old slots that go behind it, in order."""

    pad: int
    slots: list[int]


def plan_moves(pads: Sequence[int], kept: Sequence[Sequence[int]], length: int, num_new: int) -> tuple[list[Move], int]:
    """Move streams after each has kept only those of its last ``num_new`` slots that ``kept`` numbers.

    All streams end at the same slot, so one that keeps fewer tokens than another moves. Returns a move for each stream,
    and the new length of the cache, that of the longest stream.
    """
    begin = length - num_new
    taken = [
        [*range(pad, begin), *(begin + number for number in numbers)] for pad, numbers in zip(pads, kept, strict=True)
    ]
    longest = max(map(len, taken))
    return [Move(longest - len(slots), slots) for slots in taken], longest
