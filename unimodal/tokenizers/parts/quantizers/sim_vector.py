"""SimVQ: a table of random rows that stay, seen through one learned linear map, so that every row moves with each
gradient (Zhu et al., arXiv 2411.02038). The table is vector-quantize-pytorch's ``SimVQ``.

Shapes: D dimensions, C codes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize
from vector_quantize_pytorch import SimVQ

from unimodal.tokenizers.parts.quantizers.table import Gradient, Search, TableQuantizer


class SimVectorQuantizer(TableQuantizer):
    """See `TableQuantizer` for search, loss and gradient; with "rotation" and a commitment of 0.25 loss and gradient
    are the library's. frozen_dims: width of the rows that stay; D by default."""

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
        frozen_dims: int | None = None,
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
        self.table = SimVQ(dim=num_dims, codebook_size=codebook_size, frozen_codebook_dim=frozen_dims)

    @property
    def rows(self) -> Tensor:
        rows = self.table.codebook.float()
        return normalize(rows, dim=-1) if self.normalize_codes else rows
