"""Classification from stored codes: no picture is needed once its codes are kept (SeiT, arXiv 2303.11114).

Shapes: B batch, h and w rows and columns of codes, C codes, D width of a code's vector, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.trunks.vit import GridSize, LearnedPositions, VitBlock


class CodeClassifier(nn.Module):
    """Codes of a picture → logits of L labels.

    The codes' vectors, which stay as they are, go through a 4×4 convolution of stride 2 (SeiT's stem-adaptor) into
    transformer blocks; the mean over positions is read by a linear layer.
    """

    def __init__(self, table: Tensor, grid: GridSize, width: int, num_layers: int, num_heads: int, num_labels: int):
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table.detach().clone())
        self.stem = nn.Conv2d(table.shape[1], width, 4, stride=2, padding=1)
        self.positions = LearnedPositions((grid[0] // 2, grid[1] // 2), width)
        self.blocks = nn.ModuleList(VitBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_labels)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, h, w] → their vectors float [B, D, h, w], which augmentations of vectors take."""
        return self.table[ids].permute(0, 3, 1, 2)

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors: float [B, D, h, w] → logits [B, L]."""
        maps = self.stem(vectors)
        x = maps.flatten(2).transpose(1, 2) + self.positions((maps.shape[2], maps.shape[3]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))

    @torch.no_grad()
    def classify(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, h, w] → labels int64 [B]."""
        return self.forward(self.embed(ids)).argmax(-1)
