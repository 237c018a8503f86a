"""The encoder and the decoder of nano's image tokenizer.

The 8×8 grid of features meets the pixel codes through learned mixings over positions that start as a cosine transform,
lowest frequencies first.

Shapes: B batch, N codes, S semantic codes, M = N - S - 1 pixel codes, P grid positions, D width, K quantized
dimensions, L discriminant dimensions, U thumbnail values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.tokenizers.parts.trunks.blocks import ResidualConv, TransformerBlock


def make_cosine_basis(grid: int) -> Tensor:
    """The two-dimensional cosine transform of a grid×grid raster: orthonormal float [P, P], lowest frequency first."""
    place = torch.arange(grid)
    line = torch.cos(torch.pi / grid * (place[None] + 0.5) * place[:, None]) * (2 / grid) ** 0.5  # [frequency, place]
    line[0] *= 0.5**0.5
    basis = torch.einsum("ay,bx->abyx", line, line).reshape(grid * grid, grid * grid)
    frequency = (place[:, None].square() + place[None].square()).flatten()
    return basis[torch.argsort(frequency, stable=True)]


def make_blocks(config: ImageTokenizerConfig, count: int) -> nn.Sequential:
    """So many transformer blocks of the config's width."""
    return nn.Sequential(*(TransformerBlock(config.width, config.num_heads) for _ in range(count)))


class PictureEncoder(nn.Module):
    """A picture [B, 3, 64, 64] in [0, 1] → what becomes its pixel codes [B, M, K]."""

    def __init__(self, config: ImageTokenizerConfig, num_dims: int):
        super().__init__()
        width, channels, num_positions = config.width, config.conv_channels, config.grid**2
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, channels, 3, padding=1),
            *(ResidualConv(channels) for _ in range(config.conv_blocks)),
        )
        self.down = nn.Conv2d(channels, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.blocks = make_blocks(config, config.encoder_layers - 1)
        self.mixing = nn.Parameter(make_cosine_basis(config.grid)[: config.num_pixel].clone())  # [M, P]
        self.code_positions = nn.Parameter(torch.randn(config.num_pixel, width) * 0.02)
        self.code_blocks = make_blocks(config, 1)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_dims))

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.stem(x * 2 - 1)).flatten(2).transpose(1, 2)  # [B, P, D]
        h = self.mixing @ self.blocks(h + self.positions)  # [B, M, D]
        return self.out(self.code_blocks(h + self.code_positions))


class PictureDecoder(nn.Module):
    """The vectors of all codes → the picture [B, 3, 64, 64], in about [0, 1]."""

    def __init__(self, config: ImageTokenizerConfig, num_dims: int):
        super().__init__()
        width, channels, num_positions = config.width, config.conv_channels, config.grid**2
        self.num_semantic, self.grid = config.num_semantic, config.grid
        self.semantic_in = nn.Linear(config.semantic_dims, width)
        self.semantic_looks = nn.Parameter(torch.randn(config.num_prototypes, width) * 0.02)  # what one looks like
        self.look_in = nn.Linear(3 * config.look_patch**2, width)
        self.look_code = nn.Parameter(torch.randn(width) * 0.02)
        self.pixel_in = nn.Linear(num_dims, width)
        self.dropped_code = nn.Parameter(torch.randn(width) * 0.02)
        self.code_positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.code_blocks = make_blocks(config, 1)
        # the first codes share the lowest frequencies with the first pixel codes; learning does the rest
        basis, num_first = make_cosine_basis(config.grid), num_positions - config.num_pixel
        self.mixing = nn.Parameter(torch.cat([basis[:num_first], basis[: config.num_pixel]]).T.clone())
        self.positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.blocks = make_blocks(config, config.decoder_layers - 1)
        self.up = nn.Sequential(nn.Conv2d(width, channels * 4, 1), nn.PixelShuffle(2))
        self.out = nn.Sequential(
            *(ResidualConv(channels) for _ in range(config.conv_blocks)),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def forward(
        self, semantic: Tensor, prototypes: Tensor, thumbnail: Tensor, pixel: Tensor, kept: Tensor | None = None
    ) -> Tensor:
        """semantic: ids [B, S] and their prototypes [B, S, L]; thumbnail: of the look, [B, P, U / P]; pixel: values
        [B, M, K]; kept: bool [B, N], False where a code is not known, None if all are."""
        meaning = self.semantic_in(prototypes) + self.semantic_looks[semantic]
        code = self.look_code.to(meaning.dtype).expand(len(meaning), 1, -1)
        guess = self.look_in(thumbnail)  # [B, P, D]
        h = torch.cat([meaning, code, self.pixel_in(pixel)], dim=1)  # [B, N, D]
        if kept is not None:
            h = torch.where(kept.unsqueeze(-1), h, self.dropped_code.to(h.dtype))
            guess = guess * kept[:, self.num_semantic, None, None]
        h = self.code_blocks(h + self.code_positions)
        h = self.blocks(self.mixing @ h + guess + self.positions)
        h = h.transpose(1, 2).reshape(len(h), -1, self.grid, self.grid)
        return self.out(self.up(h)) * 0.5 + 0.5
