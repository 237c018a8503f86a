"""What every quantizer promises: vectors in; nearby representable vectors, their integer codes and a loss out.

Shapes: B batch, N positions, D quantized dimensions, G groups (codes at one position).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """What a quantizer made of a batch.

    values: float32 [B, N, D], the quantized vectors, with a gradient to what was quantized. ids: int64 [B, N, G].
    loss: scalar with gradient, what the quantizer adds to the training loss; 0 where it adds nothing. numbers: to log.
    """

    values: Tensor
    ids: Tensor
    loss: Tensor
    numbers: dict[str, float] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Vectors [B, N, D] ⇄ codes [B, N, G]. Ids are int64 and made in float32, whatever the autocast; `look_up` gives
    for every id what `forward` gave it for, and `forward` gives the id of what `look_up` gave."""

    num_dims: int  # D
    #: values of each of the G codes at a position
    codebook_sizes: tuple[int, ...]
    #: levels of each dimension where a code is a tuple of scalars (dimension 0 fastest); None elsewhere
    levels: tuple[int, ...] | None = None

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z: [B, N, D] → the quantized batch. mask: bool [B, N], False where a position is padding: it counts in no
        loss and no running statistic.

        Raises ValueError for vectors of another width.
        """
        if z.dim() != 3 or z.shape[-1] != self.num_dims:
            raise ValueError(f"{type(self).__name__} quantizes [B, N, {self.num_dims}]; got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize_batch(z.float(), mask)

    @abstractmethod
    def quantize_batch(self, z: Tensor, mask: Tensor | None) -> Quantized:
        """``forward`` of float32 vectors of the right width, outside autocast."""

    @abstractmethod
    def look_up(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → quantized vectors float32 [..., D]. Fewer groups are allowed where groups refine each
        other."""

    def make_table(self, group: int = 0) -> Tensor | None:
        """The vectors of every code of a group, float32 [size, K] on the CPU, near ones for codes that are alike; None
        where there are too many to list."""
        return None


def average_real(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values [B, N, …] over the positions that are real."""
    return values.mean() if mask is None else values[mask].mean()


def pass_straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The quantized values with the gradient of z (straight-through estimator, arXiv 1308.3432)."""
    return z + (quantized - z).detach()
