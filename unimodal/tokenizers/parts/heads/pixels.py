"""Pixels from patch vectors, or logits over the codes of another tokenizer, whose decoder makes them.

Shapes: B batch, D width, C channels, h/w rows and columns of patches, p patch size, K codes.
"""

from __future__ import annotations

from torch import Tensor, nn

from unimodal.tokenizers.parts.trunks.vit import GridSize


class PatchHead(nn.Module):
    """A linear layer to the pixels of each patch, then a 3×3 convolution over the picture (TiTok's later heads,
    arXiv 2501.07730). The channels of a patch are row, column, colour, the colour fastest."""

    def __init__(self, width: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.project = nn.Conv2d(width, patch_size * patch_size * channels, 1)
        self.refine = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, grid: GridSize) -> Tensor:
        """x: [B, h·w, D] → pictures [B, C, h·p, w·p]."""
        size = self.patch_size
        pixels = self.project(x.transpose(1, 2).unflatten(-1, grid))
        pixels = pixels.unflatten(1, (size, size, self.channels)).permute(0, 3, 4, 1, 5, 2)  # [B, C, h, p, w, p]
        return self.refine(pixels.reshape(len(x), self.channels, grid[0] * size, grid[1] * size))


class CodeLogitHead(nn.Module):
    """Logits over codes of another tokenizer: two 1×1 convolutions, a tanh between (TiTok, arXiv 2406.07550)."""

    def __init__(self, width: int, num_codes: int):
        super().__init__()
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.choose = nn.Conv2d(2 * width, num_codes, 1)

    def forward(self, x: Tensor, grid: GridSize) -> Tensor:
        """x: [B, h·w, D] → [B, K, h, w]."""
        return self.choose(self.widen(x.transpose(1, 2).unflatten(-1, grid)).tanh())
