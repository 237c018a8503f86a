"""Vector quantization: the nearest row of a learned table (van den Oord et al., arXiv 1711.00937).

Shapes: B batch, N positions, D dimensions, C codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    average_real,
    pass_straight_through,
)

Search = Literal["euclidean", "cosine", "dot"]


class VectorQuantizer(Quantizer):
    """One table [C, D]; a vector becomes its nearest row.

    search: by what "nearest" is meant. Systems differ in what they do around it, and released weights need their own:
    normalize_latents: vectors are scaled to length 1 before all else. normalize_codes: rows are scaled to length 1
    wherever they are used, so that what comes out has length 1 (LlamaGen, TiTok's first weights); without it a cosine
    search still gives rows as they are stored (ImageFolder).
    Loss: ‖sg(z) - e‖² + commitment · ‖z - sg(e)‖², the mean over real positions.
    """

    def __init__(
        self,
        codebook_size: int,
        num_dims: int,
        search: Search = "euclidean",
        normalize_latents: bool = False,
        normalize_codes: bool = False,
        commitment: float = 0.25,
    ):
        super().__init__()
        self.num_dims, self.codebook_sizes = num_dims, (codebook_size,)
        self.search, self.commitment = search, commitment
        self.normalize_latents, self.normalize_codes = normalize_latents, normalize_codes
        self.codebook = nn.Parameter(
            torch.empty(codebook_size, num_dims).uniform_(-1 / codebook_size, 1 / codebook_size)
        )

    @property
    def rows(self) -> Tensor:
        """The rows [C, D] as they come out, with gradient."""
        return normalize(self.codebook.float(), dim=-1) if self.normalize_codes else self.codebook.float()

    def find_nearest(self, z: Tensor) -> Tensor:
        """z: float32 [..., D] → ids int64 [...]."""
        rows = self.rows
        if self.search == "dot":
            return (z @ rows.T).argmax(-1)
        if self.search == "cosine":
            return (normalize(z, dim=-1) @ normalize(rows, dim=-1).T).argmax(-1)
        distance = z.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * z @ rows.T
        return distance.argmin(-1)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        z = normalize(z, dim=-1) if self.normalize_latents else z
        ids = self.find_nearest(z.detach())
        values = self.rows[ids]
        loss = average_real((values - z.detach()).square(), mask)
        loss = loss + self.commitment * average_real((z - values.detach()).square(), mask)
        return Quantized(pass_straight_through(z, values), ids.unsqueeze(-1), loss, values)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.rows[ids[..., 0]]

    def make_table(self, group: int = 0) -> Tensor | None:
        return self.rows.detach().cpu()
