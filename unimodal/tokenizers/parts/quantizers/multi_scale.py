"""Multi-scale residual quantization: a map is quantized small, then what is left of it larger and larger.

VAR (arXiv 2404.02905) has one code a cell of each scale; XQ-GAN and ImageFolder (arXiv 2412.01762, 2410.01756) add
quantizer dropout, products and sign codes; TokenFlow (arXiv 2412.03069) leaves the convolutions out.

Shapes: B batch, H and W cells of the largest scale, N = H·W, D dimensions, S scales of h·w cells, M = Σ h·w, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    draw_kept_levels,
    pass_straight_through,
    select_real,
)

Interpolation = Literal["bicubic", "bilinear", "nearest"]


class Phi(nn.Conv2d):
    """h·(1 − ratio) + convolution(h)·ratio: repairs what enlarging a small map spoils."""

    def __init__(self, num_dims: int, ratio: float):
        super().__init__(num_dims, num_dims, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, input: Tensor) -> Tensor:
        return input * (1 - self.ratio) + super().forward(input) * self.ratio


class MultiScaleQuantizer(Quantizer):
    """Scale by scale, small ones first: what is left of the map is averaged down, quantized by `book`, enlarged to
    H × W, passed through a Phi, added to the sum and subtracted from what is left.

    What a book's `look_up` gives is what is subtracted: rows as they are stored, found by cosine (ImageFolder), or rows
    of length 1 (TokenFlow), as the book has it.

    scales: sides of each scale, a number for a square; the last is the map's own. num_phis: how many Phis the scales
    share by their place; 0 for none (TokenFlow), S for one each. gains: what the book's values are multiplied by at
    each scale, kept with the weights (ImageFolder's sign codes: scale^s / √D). normalize_latents: each vector of the
    map is scaled to length 1, once, before the first scale (the same codes).
    loss_of: "sum" compares the sum after each scale with the map, and the sum passes its gradient straight through
    (VAR); "scales" takes each scale's loss and gradient from the book (TokenFlow).
    commitment: of "sum". VAR averages it over the scales; ImageFolder's released code sums it: give S times as much.
    dropout, fewest_kept: with this probability an item keeps a uniform number of scales from fewest_kept on. Drawn for
    every item; XQ-GAN's code drops in a fixed share of the batch.
    skip: probability that an item leaves one scale out, never the first, in training; TokenFlow's code draws it once
    a batch.

    Raises ValueError for scales that do not grow and for settings that do not fit each other.
    """

    gains: Tensor | None

    def __init__(
        self,
        book: Quantizer,
        scales: Sequence[int | tuple[int, int]],
        num_phis: int = 4,
        phi_ratio: float = 0.5,
        interpolation: Interpolation = "bicubic",
        gains: Sequence[float] | None = None,
        normalize_latents: bool = False,
        loss_of: Literal["sum", "scales"] = "sum",
        commitment: float = 0.25,
        dropout: float = 0.0,
        fewest_kept: int = 1,
        skip: float = 0.0,
    ):
        super().__init__()
        self.scales = tuple((side, side) if isinstance(side, int) else (side[0], side[1]) for side in scales)
        if not self.scales or min(min(scale) for scale in self.scales) < 1:
            raise ValueError(f"scales are sides of at least 1 cell; got {list(scales)}")
        if any(small[side] > large[side] for small, large in pairwise(self.scales) for side in (0, 1)):
            raise ValueError(f"a scale is at least as large as the one before it; got {list(scales)}")
        if gains is not None and len(gains) != len(self.scales):
            raise ValueError(f"gains are one number for each of {len(self.scales)} scales; got {len(gains)}")
        if not 1 <= fewest_kept <= len(self.scales):
            raise ValueError(f"fewest_kept is from 1 to {len(self.scales)} scales; got {fewest_kept}")
        if book.num_levels > 1:
            raise ValueError(f"scales are made of a book of one level; {type(book).__name__} has {book.num_levels}")
        self.book, self.num_dims, self.codebook_sizes = book, book.num_dims, book.codebook_sizes
        self.num_levels, self.interpolation, self.loss_of = len(self.scales), interpolation, loss_of
        self.normalize_latents, self.commitment = normalize_latents, commitment
        self.dropout, self.fewest_kept, self.skip = dropout, fewest_kept, skip
        self.phis = nn.ModuleList(Phi(self.num_dims, phi_ratio) for _ in range(num_phis))
        self.register_buffer("gains", None if gains is None else torch.tensor(gains))
        self._phi_of_scale = assign_phis(self.num_levels, num_phis)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W), the map's cells."""
        return self.scales[-1]

    @property
    def scale_counts(self) -> tuple[int, ...]:
        """Codes of each scale."""
        return tuple(height * width for height, width in self.scales)

    def count_codes(self, num_positions: int) -> int:
        return sum(self.scale_counts)

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return draw_kept_levels(batch, self.num_levels, self.dropout, self.fewest_kept, generator)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        height, width = self.grid
        if z.shape[1] != height * width:
            raise ValueError(f"the largest scale has {height}×{width} = {height * width} positions; got {z.shape[1]}")
        whole = find_whole_rows(z, mask)
        z = normalize(z, dim=-1) if self.normalize_latents else z
        wanted = to_map(z, self.grid)
        left = wanted if self.loss_of == "scales" else wanted.detach()
        values, total = torch.zeros_like(wanted), torch.zeros_like(wanted)
        skipped = self._draw_skipped(len(z), options.generator).to(z.device)
        own = QuantizeOptions(options.generator, learn=False)
        ids, losses, lessons = [], [], []
        for level, scale in enumerate(self.scales):
            used = whole & (level != skipped)
            counted = used if options.kept is None else used & (level < options.kept)
            small = to_rows(left if scale == self.grid else interpolate(left, scale, mode="area"))
            mask_here, vectors = counted[:, None].expand(small.shape[:2]), self._divide(small, level)
            found = self.book.quantize_batch(vectors, mask_here, own)
            ids.append(found.ids)
            lessons.append((select_real(vectors.detach(), mask_here), select_real(found.ids, mask_here)))
            rows = self._enlarge(self._multiply(found.rows, level), level)
            if self.loss_of == "scales":
                values = values + self._enlarge(self._multiply(found.values, level), level) * spread(counted)
                losses.append((found.loss, counted))
                total = total + rows * spread(counted)
            else:
                entropy = self.book.regularize(
                    self._multiply(to_rows(wanted - total.detach()), level), counted[:, None].expand(z.shape[:2])
                )
                total = total + rows * spread(counted)
                error = average_rows((total - wanted.detach()).square(), counted)
                commitment = average_rows((total.detach() - wanted).square(), counted)
                losses.append((error + self.commitment * commitment + entropy, counted))
            left = left - rows.detach() * spread(used)
        if options.learn:  # once, from all scales
            vectors, chosen = (torch.cat(part) for part in zip(*lessons, strict=True))
            self.book.learn_from(vectors, chosen, options.generator)
        total = to_rows(total)
        values = pass_straight_through(z, total) if self.loss_of == "sum" else to_rows(values)
        return Quantized(values, torch.cat(ids, dim=1), self._average_scales(losses), total)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, M', G], the codes of the first scales → float32 [B, N, D]. ValueError for a scale in part."""
        return self.look_up_scales(ids)[-1]

    def look_up_scales(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, M', G] of whole scales → the map after each of them, float32 [S', B, N, D]."""
        with torch.autocast(ids.device.type, enabled=False):
            total, totals = None, []
            for level, part in enumerate(self.split_scales(ids)):
                rows = self._enlarge(self._multiply(self.book.look_up(part), level), level)
                total = rows if total is None else total + rows
                totals.append(to_rows(total))
            return torch.stack(totals)

    def make_next_inputs(self, ids: Tensor) -> Tensor:
        """What a next-scale model reads: for every scale but the first, the map so far, averaged down to it; ids: int64
        [B, M, G] → float32 [B, M − cells of the first scale, D] (VAR's teacher forcing)."""
        height, width = self.grid
        maps = [to_map(rows, (height, width)) for rows in self.look_up_scales(ids)[: self.num_levels - 1]]
        smaller = [interpolate(x, size, mode="area") for x, size in zip(maps, self.scales[1:], strict=False)]
        return torch.cat([to_rows(x) for x in smaller], dim=1)

    def split_scales(self, ids: Tensor) -> list[Tensor]:
        """ids: int64 [B, M', G] → the codes of each scale, [B, h·w, G]. ValueError for a scale in part."""
        given, ends = ids.shape[1], [sum(self.scale_counts[: level + 1]) for level in range(self.num_levels)]
        if given not in ends:
            raise ValueError(f"codes of whole scales come in {', '.join(map(str, ends))} positions; got {given}")
        return list(ids.split(self.scale_counts[: ends.index(given) + 1], dim=1))

    def make_table(self, group: int = 0) -> Tensor | None:
        return self.book.make_table(group)

    def _enlarge(self, rows: Tensor, level: int) -> Tensor:
        """The values of a scale, [B, h·w, D] → what they add to the map, [B, D, H, W]."""
        small = to_map(rows, self.scales[level])
        corners = None if self.interpolation == "nearest" else False
        same = level == self.num_levels - 1 or self.scales[level] == self.grid
        large = small if same else interpolate(small, self.grid, mode=self.interpolation, align_corners=corners)
        return self.phis[self._phi_of_scale[level]](large) if self.phis else large

    def _multiply(self, rows: Tensor, level: int) -> Tensor:
        return rows if self.gains is None else rows * self.gains[level]

    def _divide(self, rows: Tensor, level: int) -> Tensor:
        return rows if self.gains is None else rows / self.gains[level]

    def _draw_skipped(self, batch: int, generator: torch.Generator | None) -> Tensor:
        """Which scale each item leaves out, int64 [B]; -1 for none."""
        if not self.training or self.skip <= 0 or self.num_levels == 1:
            return torch.full((batch,), -1)
        drawn = torch.rand(batch, 2, generator=generator)
        levels = 1 + (drawn[:, 0] * (self.num_levels - 1)).long()
        return torch.where(drawn[:, 1] < self.skip, levels, -1)

    def _average_scales(self, losses: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean of the scales' losses; a scale that only some items used counts by their share ("scales")."""
        if self.loss_of == "sum":
            return torch.stack([loss for loss, _ in losses]).mean()
        weights = torch.stack([counted.float().mean() for _, counted in losses])
        return (torch.stack([loss for loss, _ in losses]) * weights).sum() / weights.sum().clamp(min=1e-9)


def assign_phis(num_levels: int, num_phis: int) -> list[int]:
    """Which Phi each scale uses: the one whose tick is nearest to the scale's place in [0, 1]. Ticks lie between 1/(2K)
    and 1 − 1/(2K), for K = 4 between 1/12 and 11/12. Many scales lie between two ticks: there NumPy's rounding decides,
    as in VAR's code, and released weights depend on it."""
    if not num_phis:
        return []
    edge = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    ticks = np.linspace(edge, 1 - edge, num_phis)
    places = [level / max(num_levels - 1, 1) for level in range(num_levels)]
    return [int(np.argmin(np.abs(ticks - place))) for place in places]


def find_whole_rows(z: Tensor, mask: Tensor | None) -> Tensor:
    """Which items are real, bool [B]. ValueError for a map of which a part is padding."""
    if mask is None:
        return torch.ones(len(z), dtype=torch.bool, device=z.device)
    if bool((mask.any(1) != mask.all(1)).any()):
        raise ValueError("a map is real or padding as a whole; a mask within it cannot be averaged to scales")
    return mask.all(1)


def average_rows(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of values [B, …] over the items that count; 0 where none does."""
    return values[counted].mean() if bool(counted.any()) else values.sum() * 0


def spread(counted: Tensor) -> Tensor:
    """bool [B] → float [B, 1, 1, 1]."""
    return counted.float()[:, None, None, None]


def to_map(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h·w, D], row-major → [B, D, h, w]."""
    return rows.transpose(1, 2).unflatten(2, size)


def to_rows(cells: Tensor) -> Tensor:
    """[B, D, h, w] → [B, h·w, D], row-major."""
    return cells.flatten(2).transpose(1, 2)
