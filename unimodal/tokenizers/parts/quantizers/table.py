"""What quantizers with a table of rows share: the search, the loss, the gradient.

Shapes: B batch, N positions, D dimensions, C codes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from unimodal.tokenizers.parts.quantizers.entropy import measure_entropy
from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    average_real,
    pass_straight_through,
)

Search = Literal["euclidean", "cosine", "dot"]
Gradient = Literal["straight", "rotation"]


class TableQuantizer(Quantizer):
    """One table [C, D]; a vector becomes its nearest row.

    search: by what "nearest" is meant. Systems differ in what they do around it, and released weights need their own:
    normalize_latents: vectors are scaled to length 1 before all else. normalize_codes: rows are scaled to length 1
    wherever they are used, so that what comes out has length 1 (LlamaGen, TiTok's first weights); without it a cosine
    search still gives rows as they are stored (ImageFolder).
    Loss: ‖sg(z) - e‖² + commitment · ‖z - sg(e)‖², the mean over real positions, and in training entropy_weight ·
    entropy of softmax(affinity / temperature) (LlamaGen's code).
    gradient: "straight" passes it through unchanged; "rotation" turns and scales it as the vector is turned and scaled
    to its row (the rotation trick, Fifty et al., arXiv 2410.06424): values are then the rows up to 5e-6.
    """

    def __init__(
        self,
        codebook_size: int,
        num_dims: int,
        search: Search = "euclidean",
        normalize_latents: bool = False,
        normalize_codes: bool = False,
        commitment: float = 0.25,
        gradient: Gradient = "straight",
        entropy_weight: float = 0.0,
        temperature: float = 0.01,
    ):
        super().__init__()
        self.num_dims, self.codebook_sizes = num_dims, (codebook_size,)
        self.search, self.commitment, self.gradient = search, commitment, gradient
        self.normalize_latents, self.normalize_codes = normalize_latents, normalize_codes
        self.entropy_weight, self.temperature = entropy_weight, temperature

    #: False where the table is learned without one: the loss then holds the commitment alone
    learned_by_gradient: bool = True

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """The rows as they come out, float32 [C, D], with gradient."""

    @property
    def codebook_size(self) -> int:
        """C"""
        return self.codebook_sizes[0]

    def measure_affinity(self, z: Tensor, rows: Tensor) -> Tensor:
        """How near every row is, higher for nearer: the negative squared distance, the cosine or the dot product.

        z: float32 [..., D]; rows: [C, D] → [..., C].
        """
        if self.search == "dot":
            return z @ rows.T
        if self.search == "cosine":
            return normalize(z, dim=-1) @ normalize(rows, dim=-1).T
        return (2 * z @ rows.T - z.square().sum(-1, keepdim=True)) - rows.square().sum(-1)

    def find_nearest(self, z: Tensor, rows: Tensor) -> Tensor:
        """z: float32 [..., D]; rows: [C, D] → ids int64 [...]."""
        with torch.no_grad():
            return self.measure_affinity(z, rows).argmax(-1)

    def prepare(self, z: Tensor) -> Tensor:
        """The vectors as they are searched and compared."""
        return normalize(z, dim=-1) if self.normalize_latents else z

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        z = self.prepare(z)
        rows = self.rows
        ids = self.find_nearest(z, rows)
        chosen = rows[ids]
        loss = self.commitment * average_real((z - chosen.detach()).square(), mask)
        if self.learned_by_gradient:
            loss = loss + average_real((chosen - z.detach()).square(), mask)
        loss = loss + self._measure_usage(z, rows, mask)
        return Quantized(self.pass_gradient(z, chosen), ids.unsqueeze(-1), loss, chosen)

    def pass_gradient(self, z: Tensor, chosen: Tensor) -> Tensor:
        """The chosen rows with a gradient to z."""
        if self.gradient == "rotation":
            turned: Tensor = rotate_to(z, chosen.detach())
            return turned
        return pass_straight_through(z, chosen)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return self._measure_usage(self.prepare(z), self.rows, mask)

    def _measure_usage(self, z: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """The weighted entropy loss of prepared vectors; 0 out of training."""
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        return (
            self.entropy_weight * measure_entropy(self.measure_affinity(z, rows) / self.temperature, mask).make_loss()
        )

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return embedding(ids[..., 0], self.rows)

    def make_table(self, group: int = 0) -> Tensor | None:
        return self.rows.detach().cpu()
