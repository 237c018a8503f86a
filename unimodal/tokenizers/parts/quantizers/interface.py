"""What every quantizer promises: vectors in; nearby representable vectors, their integer codes and a loss out.

Shapes: B batch, N positions, D quantized dimensions, M positions of codes (N but for codes of several scales), G groups
(codes at one position).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """What a quantizer made of a batch.

    values: float32 [B, N, D], the quantized vectors, with a gradient to what was quantized. ids: int64 [B, M, G].
    loss: scalar with gradient, what the quantizer adds to the training loss; 0 where it adds nothing. rows: float32
    [B, N, D], the quantized vectors as `look_up` gives them, with a gradient to the codebook, where one is learned, and
    to nothing else. numbers: to log.
    """

    values: Tensor
    ids: Tensor
    loss: Tensor
    rows: Tensor
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizeOptions:
    """What ``forward`` was given beside vectors and mask; see there. learn: False where the caller calls `learn_from`
    itself, once for several uses of one codebook."""

    generator: torch.Generator | None = None
    kept: Tensor | None = None
    learn: bool = True


class Quantizer(nn.Module, ABC):
    """Vectors [B, N, D] ⇄ codes [B, M, G]. Ids are int64 and made in float32, whatever the autocast. `look_up` of
    the ids gives the values; with one level, `forward` of what `look_up` gives has the same ids again (but for finite
    scalars, which are bounded on the way in: their inverse is `to_ids`)."""

    num_dims: int  # D
    #: values of each of the G codes at a position
    codebook_sizes: tuple[int, ...]
    #: levels of each dimension where a code is a tuple of scalars (dimension 0 fastest); None elsewhere
    levels: tuple[int, ...] | None = None
    #: how many steps refine each other (books of a residual code, scales of a multi-scale one); 1 elsewhere
    num_levels: int = 1
    #: see `lend_rows`
    lent_rows: Tensor | None = None

    @contextmanager
    def lend_rows(self, rows: Tensor) -> Iterator[None]:
        """Within it, ``look_up`` takes the first id of a position as a place in rows: float32 [R, D], in place of the
        codebook: so that a decoder that is given ids decodes any vectors (soft codes, say)."""
        self.lent_rows = rows
        try:
            yield
        finally:
            self.lent_rows = None

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        kept: Tensor | None = None,
    ) -> Quantized:
        """z: [B, N, D] → the quantized batch. mask: bool [B, N], False where a position is padding: it counts in no
        loss and no running statistic. generator: on the CPU, of what is drawn in training. kept: int64 [B], how many
        levels of each item count, from 1 to `num_levels`; by default what `draw_kept` draws in training and all
        otherwise.

        Raises ValueError for vectors of another width and for other numbers of levels.
        """
        if z.dim() != 3 or z.shape[-1] != self.num_dims:
            raise ValueError(f"{type(self).__name__} quantizes [B, N, {self.num_dims}]; got {tuple(z.shape)}")
        if kept is None and self.training:
            kept = self.draw_kept(len(z), generator)
        if kept is not None:
            if len(kept) != len(z) or not 1 <= int(kept.min()) <= int(kept.max()) <= self.num_levels:
                raise ValueError(
                    f"kept must be one number from 1 to {self.num_levels} for each of {len(z)} items; "
                    f"got {kept.tolist()}"
                )
            kept = kept.to(z.device)
        with leave_autocast(z.device):
            return self.quantize_batch(z.float(), mask, QuantizeOptions(generator, kept))

    def look_up(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → quantized vectors float32 [..., D], where codes are of one scale; [B, M, G] → [B, N, D]
        otherwise. Fewer groups, or fewer scales, are allowed where they refine each other."""
        if self.lent_rows is not None:
            return self.lent_rows[ids[..., 0]]
        if not torch.is_autocast_enabled(ids.device.type):  # entering a context costs as much as a small look-up
            return self.look_up_batch(ids)
        with torch.autocast(ids.device.type, enabled=False):
            return self.look_up_batch(ids)

    @abstractmethod
    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        """``forward`` of float32 vectors of the right width, outside autocast."""

    @abstractmethod
    def look_up_batch(self, ids: Tensor) -> Tensor:
        """``look_up`` outside autocast."""

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """What the loss holds beside the distances of vectors and codes: an entropy, say. z: float32 [B, N, D]; scalar
        with gradient."""
        return z.new_zeros(())

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        """What is learned without a gradient: a codebook of running averages, rows that no vector uses. z: float32
        [M, D], the vectors of the real positions; ids: int64 [M, G], theirs."""

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """How many levels of each item count in a step of training, int64 [B]; None for all of them."""
        return None

    def count_codes(self, num_positions: int) -> int:
        """M for N positions."""
        return num_positions

    def make_table(self, group: int = 0) -> Tensor | None:
        """The vectors of every code of a group, float32 [size, K] on the CPU, near ones for codes that are alike; None
        where there are too many to list."""
        return None


def leave_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it no autocast changes a precision; nothing is entered where none is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def average_real(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values [B, N, …] over the positions that are real; 0 where none is."""
    if mask is None:
        return values.mean()
    real = values[mask]
    return real.mean() if real.numel() else values.sum() * 0


def pass_straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The quantized values with the gradient of z (straight-through estimator, arXiv 1308.3432)."""
    return z + (quantized - z).detach()


def select_real(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values [B, N, …] of the real positions, [M, …]."""
    return values.flatten(0, 1) if mask is None else values[mask]


def draw_uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), the same on every device for a generator on the CPU."""
    where = device if generator is None else generator.device
    return torch.rand(*shape, generator=generator, device=where).to(device)


def draw_kept_levels(
    batch: int, num_levels: int, share: float, fewest: int, generator: torch.Generator | None
) -> Tensor | None:
    """Quantizer dropout (SoundStream, arXiv 2107.03312): for each item, with probability `share`, a uniform number of
    levels from `fewest` to all, int64 [B]; all levels for the others. None where nothing is ever dropped."""
    if share <= 0 or num_levels == 1:
        return None
    drawn = torch.rand(batch, 2, generator=generator)  # an item's own, whatever stands beside it
    levels = fewest + (drawn[:, 0] * (num_levels + 1 - fewest)).long()
    return torch.where(drawn[:, 1] < share, levels, num_levels)
