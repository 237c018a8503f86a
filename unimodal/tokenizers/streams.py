"""Streams of codes with rates or lengths of their own ⇄ the one `Codes` that a vocabulary lays out as a span.

A tokenizer of several streams joins them at the end of `encode` and splits them at the start of `decode`; everything
between sees ordinary codes [B, N, G]. `split` is the exact inverse of `join`.

- `InterleavedStreams`: streams that run in time together, such as SNAC's (arXiv 2410.14411). One position is one frame;
  its groups are the codes of that frame, earlier ones first and coarse before fine. For rates (1, 2, 4) that is
  0 1 2 2 1 2 2, the order in which Orpheus writes SNAC.
- `ConcatenatedStreams`: streams one after another, such as the scales of VAR (arXiv 2404.02905), coarse to fine. A
  prefix of whole scales may stand for all.

Shapes: B batch, F frames, N positions, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import prod
from typing import Protocol

import torch

from unimodal.tokenizers.codes import Codes, Grid


class StreamLayout(Protocol):
    """How several streams become one `Codes`, and come back."""

    def join(self, streams: Sequence[Codes]) -> Codes: ...
    def split(self, codes: Codes) -> tuple[Codes, ...]: ...


@dataclass(frozen=True)
class InterleavedStreams:
    """Streams whose rates are whole multiples of one frame rate.

    rates: codes of each stream in a frame. groups: codebooks of each stream, by default one each.
    Raises ValueError for rates or groups that are not whole numbers above 0.
    """

    rates: tuple[int, ...]
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", (1,) * len(self.rates))
        if not self.rates or len(self.groups) != len(self.rates) or min(*self.rates, *self.groups) < 1:
            raise ValueError(f"streams need a rate and groups above 0 each; got rates {self.rates}, {self.groups}")

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(stream, step within the frame, group of the stream) of each group of the joined codes."""
        found = [
            (stream, step, group)
            for stream, (rate, count) in enumerate(zip(self.rates, self.groups, strict=True))
            for step in range(rate)
            for group in range(count)
        ]
        return sorted(found, key=lambda place: (Fraction(place[1], self.rates[place[0]]), place[0], place[2]))

    @property
    def num_groups(self) -> int:
        """G of the joined codes."""
        return sum(rate * count for rate, count in zip(self.rates, self.groups, strict=True))

    def sizes(self, codebook_sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Sizes of each stream's codebooks → sizes of the groups of the joined codes."""
        return tuple(codebook_sizes[stream][group] for stream, _, group in self.places)

    def choose_groups(self, counts: Sequence[int]) -> tuple[int, ...]:
        """The groups of the joined codes that hold the first `counts` groups of each stream; 0 leaves a stream out."""
        return tuple(at for at, (stream, _, group) in enumerate(self.places) if group < counts[stream])

    def join(self, streams: Sequence[Codes]) -> Codes:
        """Streams [B, F · rate, groups] → codes [B, F, G]. Raises ValueError unless they have the same frames."""
        if len(streams) != len(self.rates):
            raise ValueError(f"there are {len(self.rates)} streams; got {len(streams)}")
        shaped, masks = [], []
        for index, (stream, rate, count) in enumerate(zip(streams, self.rates, self.groups, strict=True)):
            batch, num, groups = stream.ids.shape
            if num % rate or groups != count:
                raise ValueError(
                    f"stream {index} has [{num}, {groups}] codes; it needs {count} groups and a multiple of {rate}"
                )
            shaped.append(stream.ids.view(batch, num // rate, rate, groups))  # [B, F, rate, groups]
            masks.append(stream.mask.view(batch, num // rate, rate))
        mask = masks[0][..., 0]
        if any(one.shape[:2] != mask.shape or bool((one != mask.unsqueeze(-1)).any()) for one in masks):
            raise ValueError("an item must have the same whole frames in every stream; pad the medium to whole frames")
        ids = torch.stack([shaped[stream][:, :, step, group] for stream, step, group in self.places], dim=-1)
        return Codes(ids, mask, order="time")

    def split(self, codes: Codes) -> tuple[Codes, ...]:
        """Codes [B, F, G] → streams [B, F · rate, groups]. Raises ValueError for another number of groups."""
        if codes.ids.shape[2] != self.num_groups:
            raise ValueError(f"these streams have {self.num_groups} codes a frame; got {codes.ids.shape[2]}")
        batch, frames, _ = codes.ids.shape
        parts = [
            codes.ids.new_zeros(batch, frames, rate, count)
            for rate, count in zip(self.rates, self.groups, strict=True)
        ]  # fmt: skip
        for at, (stream, step, group) in enumerate(self.places):
            parts[stream][:, :, step, group] = codes.ids[:, :, at]
        return tuple(
            Codes(part.flatten(1, 2), codes.mask.repeat_interleave(rate, dim=1), order="time")
            for part, rate in zip(parts, self.rates, strict=True)
        )


@dataclass(frozen=True)
class ConcatenatedStreams:
    """Streams of fixed grids one after another: the scales of a picture, coarse to fine.

    grids: (t, h, w) of each stream; their lengths are t · h · w. All have the same number of groups.
    """

    grids: tuple[Grid, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each stream."""
        return tuple(prod(grid) for grid in self.grids)

    def join(self, streams: Sequence[Codes]) -> Codes:
        """Streams [B, length, G], all or the first of them → codes [B, N, G]. Raises ValueError for other lengths."""
        wanted = self.lengths[: len(streams)]
        if not streams or [stream.ids.shape[1] for stream in streams] != list(wanted):
            raise ValueError(
                f"the streams have {self.lengths} codes; got {tuple(stream.ids.shape[1] for stream in streams)}"
            )
        mask = torch.cat([stream.mask for stream in streams], dim=1)
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("an item may only lack its last streams; give all that come before one that is there")
        return Codes(torch.cat([stream.ids for stream in streams], dim=1), mask, order="scales")

    def split(self, codes: Codes) -> tuple[Codes, ...]:
        """Codes [B, N, G] → as many whole streams as they hold. ValueError where they end within a stream."""
        ends = list(accumulate(self.lengths))
        num = codes.ids.shape[1]
        if num not in ends:
            raise ValueError(f"{num} codes end within a scale; give one of {', '.join(map(str, ends))}")
        lengths = self.lengths[: ends.index(num) + 1]
        parts = zip(codes.ids.split(lengths, 1), codes.mask.split(lengths, 1), self.grids, strict=False)
        return tuple(Codes(ids, mask, grid) for ids, mask, grid in parts)
