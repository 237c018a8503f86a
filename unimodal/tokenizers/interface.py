"""The one contract of every media tokenizer: media in, integer codes out, and back.

Shapes: B batch, N codes, G codebook groups, T samples or frames.

A tokenizer is an ``nn.Module`` built from a pydantic config. ``encode`` and ``decode`` are batched, padding-invariant
(an item gives the same codes alone and beside longer neighbours) and run under ``inference_mode``. It saves to a folder
of ``config.json`` and ``model.safetensors`` and knows the hash of its weights, which the vocabulary manifest records.

A ``MediaReader`` is for models that read a medium through continuous features: media in, input embeddings out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unimodal.tokenizers.stored import StoredModule


@dataclass(frozen=True)
class Codes:
    """Integer codes of a batch of media.

    ids: int64 [B, N, G], each in ``[0, codebook_sizes[g])``; the value behind ``mask == False`` is 0.
    mask: bool [B, N], True where a code is real.
    grid: (t, h, w) of the codes if they form a grid, else None.
    order: how the N codes are laid out, e.g. ``"raster"`` or ``"time"``.
    """

    ids: Tensor
    mask: Tensor
    grid: tuple[int, int, int] | None = None
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.dim() != 3:
            raise ValueError(f"Codes.ids must be int64 [B, N, G]; got {self.ids.dtype} {tuple(self.ids.shape)}")
        if self.mask.dtype != torch.bool or self.mask.shape != self.ids.shape[:2]:
            raise ValueError(f"Codes.mask must be bool {tuple(self.ids.shape[:2])}; got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def row(self, index: int) -> Tensor:
        """The real codes of one item, int64 [n, G]."""
        return self.ids[index][self.mask[index]]

    def to(self, device: torch.device | str) -> Codes:
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    @staticmethod
    def from_rows(rows: list[Tensor], **layout: Any) -> Codes:
        """Pads a list of int64 [n] or [n, G] to one batch."""
        rows = [row.long().unsqueeze(-1) if row.dim() == 1 else row.long() for row in rows]
        num = max((row.shape[0] for row in rows), default=0)
        ids = torch.zeros(len(rows), num, rows[0].shape[1] if rows else 1, dtype=torch.int64)
        mask = torch.zeros(len(rows), num, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : row.shape[0]] = row
            mask[index, : row.shape[0]] = True
        return Codes(ids, mask, **layout)


class MediaTokenizer(StoredModule, ABC):
    """Media ⇄ codes. Subclasses set the class attributes and implement ``encode`` and ``decode``."""

    #: one size per group; a position may use any of them (see ``segments``)
    codebook_sizes: tuple[int, ...]
    #: (block name, count or None for any length) in sequence order: how the vocabulary lays a span out
    segments: tuple[tuple[str, int | None], ...]
    #: block name → number of values, for every block named in ``segments``
    block_sizes: dict[str, int]
    tokens_per_item: int | None = None
    tokens_per_second: float | None = None
    #: True if a prefix of the codes decodes to a coarser result
    ordered: bool = False

    @abstractmethod
    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Codes:
        """x: [B, C, …] float; lengths: int64 [B] samples or frames that are real, None if all are."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """The inverse of ``encode``, up to the loss of quantization: [B, C, …]."""


class MediaReader(StoredModule, ABC):
    """Pictures → what a decoder is fed for them, in place of embedding rows (N of width D for each)."""

    num_features: int  # N
    width: int  # D

    @abstractmethod
    def fit(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] → float [3, h, w] in [0, 1], as the reader was trained to see it."""

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """Fitted pictures [B, 3, h, w] → features [B, N, D]."""
