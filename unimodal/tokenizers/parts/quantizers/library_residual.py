"""Residual vector quantization by vector-quantize-pytorch, for systems whose authors use it and whose weights are so
named. Books of our own are in `residual.py`.

Shapes: B batch, N positions, D dimensions, L levels, which are the groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    pass_straight_through,
)


class LibraryResidualQuantizer(Quantizer):
    """L books of `codebook_size` rows of width `code_width`, between two projections of the whole where that is not D
    (SoundStream, arXiv 2107.03312). Rows are running averages, with `decay`; those that fewer than `dead_below` vectors
    choose are drawn anew. The gradient is the library's (its rotation trick, arXiv 2410.06424), and every level learns
    from all real positions, kept or not.
    """

    def __init__(
        self,
        num_dims: int,
        codebook_size: int,
        num_levels: int,
        code_width: int | None = None,
        decay: float = 0.9,
        commitment: float = 1.0,
        dead_below: float = 2.0,
    ):
        super().__init__()
        if min(num_dims, codebook_size, num_levels, num_dims if code_width is None else code_width) < 1:
            raise ValueError("widths, rows and levels are numbers from 1 on")
        self.num_dims, self.num_levels = num_dims, num_levels
        self.codebook_sizes = (codebook_size,) * num_levels
        self.network = ResidualVQ(
            dim=num_dims,
            codebook_size=codebook_size,
            num_quantizers=num_levels,
            codebook_dim=num_dims if code_width is None else code_width,
            decay=decay,
            commitment_weight=commitment,
            threshold_ema_dead_code=dead_below,
        )

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        with _draw_by(options.generator):
            found, ids, losses = self.network(z, mask=mask, freeze_codebook=not options.learn)
        ids = ids.clamp_min(0)  # -1 where the mask is False
        rows = found.detach() if options.kept is None else self._look_up_kept(ids, options.kept)
        return Quantized(pass_straight_through(found, rows), ids, losses.mean(), rows)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., L'], the codes of the first levels → float32 [..., D]."""
        if not 1 <= ids.shape[-1] <= self.num_levels:
            raise ValueError(f"there are codes of {self.num_levels} books; got {ids.shape[-1]}")
        flat = ids.reshape(1, -1, ids.shape[-1])
        missing = self.num_levels - flat.shape[-1]
        flat = torch.nn.functional.pad(flat, (0, missing), value=-1)  # the library adds nothing for -1
        return self.network.get_output_from_indices(flat).reshape(*ids.shape[:-1], self.num_dims).float()

    def _look_up_kept(self, ids: Tensor, kept: Tensor) -> Tensor:
        dropped = torch.arange(self.num_levels, device=ids.device) >= kept[:, None, None]
        return self.network.get_output_from_indices(ids.masked_fill(dropped, -1)).float()

    def make_table(self, group: int = 0) -> Tensor | None:
        """The rows of a book before the projection of the whole, float [size, code_width]."""
        return self.network.codebooks[group].detach().float().cpu()


@contextmanager
def _draw_by(generator: torch.Generator | None) -> Iterator[None]:
    """What the library draws comes from the generator, if there is one, and leaves torch's own state alone."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
