"""Vector quantization: the nearest row of a learned table (van den Oord et al., arXiv 1711.00937).

Shapes: B batch, N positions, M real positions, D dimensions, C codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, select_real
from unimodal.tokenizers.parts.quantizers.table import Gradient, Search, TableQuantizer
from unimodal.tokenizers.parts.quantizers.upkeep import CodebookUpkeep


class VectorQuantizer(TableQuantizer):
    """A learned table; see `TableQuantizer` for search, loss and gradient.

    learned_by: "gradient" of the loss; "averages", the running averages of the vectors that chose a row (with `decay`),
    where the loss holds the commitment alone. start: "uniform" rows in ±1/C; "kmeans", the cluster means of the first
    real vectors of training. dead_share, pull_unused: how unused rows come back; see `CodebookUpkeep`.
    """

    codebook: Tensor

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
        learned_by: Literal["gradient", "averages"] = "gradient",
        decay: float = 0.99,
        start: Literal["uniform", "kmeans"] = "uniform",
        dead_share: float = 0.0,
        pull_unused: bool = False,
    ):
        super().__init__(
            codebook_size,
            num_dims,
            search,
            normalize_latents,
            normalize_codes,
            commitment,
            gradient,
            entropy_weight,
            temperature,
        )
        self.learned_by_gradient = learned_by == "gradient"
        averaged, bound = learned_by == "averages", 1 / codebook_size
        rows = torch.empty(codebook_size, num_dims).uniform_(-bound, bound)
        if averaged:  # no gradient trains it: a checkpoint of a training holds it as a buffer
            self.register_buffer("codebook", rows)
        else:
            self.codebook = nn.Parameter(rows)
        self.upkeep: CodebookUpkeep | None = None
        if averaged or start == "kmeans" or dead_share or pull_unused:
            self.upkeep = CodebookUpkeep(
                codebook_size,
                num_dims,
                averaged,
                decay,
                start == "kmeans",
                dead_share=dead_share,
                pull_unused=pull_unused,
                unit=normalize_codes,
            )
            self.upkeep.begin(self.codebook.data)

    @property
    def rows(self) -> Tensor:
        rows = self.codebook.float()
        if self.upkeep is not None and self.training:
            rows = rows.clone()  # upkeep changes the codebook before the gradient is taken
        return normalize(rows, dim=-1) if self.normalize_codes else rows

    def look_up_batch(self, ids: Tensor) -> Tensor:
        # scaled one by one: the table may be large, the ids few
        rows = torch.embedding(self.codebook, ids.select(-1, 0)).float()
        if not self.normalize_codes:
            return rows
        if rows.requires_grad:
            return normalize(rows, dim=-1)
        return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12))  # `normalize` in place

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        if self.upkeep is not None and self.training:
            vectors = select_real(self.prepare(z.detach()), mask)
            self.upkeep.start(self.codebook.data, self._keep_length(vectors), options.generator)
        found = super().quantize_batch(z, mask, options)
        if options.learn:
            self.learn_from(select_real(z.detach(), mask), select_real(found.ids, mask), options.generator)
        return found

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        if self.upkeep is not None and self.training:
            vectors = z if self.upkeep.pull_unused else self._keep_length(self.prepare(z))
            self.upkeep.learn(self.codebook.data, vectors, ids[:, 0], generator)

    def _keep_length(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1) if self.normalize_codes else vectors
