"""What tokenizers give: integer codes, or continuous latents, of a batch of media.

Shapes: B batch, N positions, G groups (codes at one position), D width of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # time, rows and columns


@dataclass(frozen=True)
class Codes:
    """Integer codes of a batch of media, with several codes at one position where there are groups.

    ids: int64 [B, N, G], each in ``[0, codebook_sizes[g])``; 0 where the mask is False.
    mask: bool [B, N], True where a position is real.
    grid: (t, h, w) of the positions if they form a grid, else None.
    order: how the N positions are laid out, e.g. ``"raster"``, ``"time"`` or ``"scales"``.

    Streams with rates of their own are joined to one `Codes` by `unimodal.tokenizers.streams`.
    Raises ValueError for tensors of another type or shape.
    """

    ids: Tensor
    mask: Tensor
    grid: Grid | None = None
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.dim() != 3:
            raise ValueError(f"Codes.ids must be int64 [B, N, G]; got {self.ids.dtype} {tuple(self.ids.shape)}")
        if self.mask.dtype != torch.bool or self.mask.shape != self.ids.shape[:2]:
            raise ValueError(f"Codes.mask must be bool {tuple(self.ids.shape[:2])}; got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def counts(self) -> list[int]:
        """How many positions of each item are real."""
        return self.mask.sum(1).tolist()

    def row(self, index: int) -> Tensor:
        """The real codes of one item, int64 [n, G]."""
        return self.ids[index][self.mask[index]]

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on another device."""
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    @staticmethod
    def whole(ids: Tensor, grid: Grid | None = None, order: str = "raster") -> Codes:
        """Codes [B, N] or [B, N, G] that are all real."""
        ids = ids.unsqueeze(-1) if ids.dim() == 2 else ids
        return Codes(ids, torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device), grid, order)

    @staticmethod
    def from_rows(rows: list[Tensor], grid: Grid | None = None, order: str = "raster") -> Codes:
        """One batch of items of different lengths, each int64 [n] or [n, G]."""
        rows = [row.long().unsqueeze(-1) if row.dim() == 1 else row.long() for row in rows]
        num = max((row.shape[0] for row in rows), default=0)
        ids = torch.zeros(len(rows), num, rows[0].shape[1] if rows else 1, dtype=torch.int64)
        mask = torch.zeros(len(rows), num, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : row.shape[0]] = row
            mask[index, : row.shape[0]] = True
        return Codes(ids, mask, grid, order)


@dataclass(frozen=True)
class Latents:
    """Continuous latents of a batch of media: values float [B, N, D], 0 where the mask (bool [B, N]) is False.

    grid and order are those of `Codes`. Raises ValueError for tensors of another type or shape.
    """

    values: Tensor
    mask: Tensor
    grid: Grid | None = None
    order: str = "raster"

    def __post_init__(self) -> None:
        if not self.values.is_floating_point() or self.values.dim() != 3:
            raise ValueError(
                f"Latents.values must be float [B, N, D]; got {self.values.dtype} {tuple(self.values.shape)}"
            )
        if self.mask.dtype != torch.bool or self.mask.shape != self.values.shape[:2]:
            raise ValueError(f"Latents.mask must be bool {tuple(self.values.shape[:2])}; got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def counts(self) -> list[int]:
        """How many positions of each item are real."""
        return self.mask.sum(1).tolist()

    def row(self, index: int) -> Tensor:
        """The real latents of one item, float [n, D]."""
        return self.values[index][self.mask[index]]

    def to(self, device: torch.device | str) -> Latents:
        """The same latents on another device."""
        return replace(self, values=self.values.to(device), mask=self.mask.to(device))
