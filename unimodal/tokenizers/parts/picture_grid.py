"""A picture ⇄ vectors of ordered codes: convolutions over a grid of features, and transformer blocks over its places.

The grid meets the codes through learned mixings over places that begin as a cosine transform, lowest frequencies first,
so that the first codes are coarse from the first step of training on.

Shapes: B batch, S side of a picture, G = S / 8 side of the grid, P = G² places, M codes of the encoder, N of the
decoder, D width, C channels, K dimensions of a code.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unimodal.tokenizers.parts.mixers import Mixer, make_mixer_block
from unimodal.tokenizers.parts.trunks.blocks import ResidualConv, TransformerBlock

PATCH = 4  # pixels a side that the convolutions see as one place; two of them make a place of the grid
LAST = torch.channels_last  # convolutions on a processor are a quarter faster in it


class GridSizes(BaseModel):
    """channels, encoder_convs, decoder_convs: of the residual convolutions at a quarter of the side. width, num_heads,
    encoder_layers, decoder_layers: of the transformers; one layer of each works on the codes, the others on the
    places. mixer: what mixes tokens in them, over the grid of places and the line of codes; heads are those of
    attention and of PoNet."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    channels: int = Field(default=96, ge=8, multiple_of=8)
    width: int = Field(default=192, ge=8)
    num_heads: int = Field(default=3, ge=1)
    encoder_convs: int = Field(default=2, ge=0)
    decoder_convs: int = Field(default=2, ge=0)
    encoder_layers: int = Field(default=2, ge=1)
    decoder_layers: int = Field(default=4, ge=1)
    mixer: Mixer = "attention"


def make_cosine_basis(grid: int) -> Tensor:
    """The two-dimensional cosine transform of a grid×grid raster: orthonormal float [P, P], lowest frequency first."""
    place = torch.arange(grid)
    line = torch.cos(torch.pi / grid * (place[None] + 0.5) * place[:, None]) * (2 / grid) ** 0.5  # [frequency, place]
    line[0] *= 0.5**0.5
    basis = torch.einsum("ay,bx->abyx", line, line).reshape(grid * grid, grid * grid)
    frequency = (place[:, None].square() + place[None].square()).flatten()
    return basis[torch.argsort(frequency, stable=True)]


def choose_frequencies(grid: int, count: int) -> Tensor:
    """The first `count` cosines [count, P], and the lowest again where there are more codes than places."""
    basis = make_cosine_basis(grid)
    return basis[torch.arange(count) % len(basis)]


def make_blocks(sizes: GridSizes, count: int, grid: tuple[int, int]) -> nn.Sequential:
    """So many blocks over a grid of (rows, columns), or over a line, a grid of one row."""
    if sizes.mixer == "attention":
        return nn.Sequential(*(TransformerBlock(sizes.width, sizes.num_heads) for _ in range(count)))
    width, heads = sizes.width, sizes.num_heads
    return nn.Sequential(*(make_mixer_block(sizes.mixer, width, heads, 4 * width, grid) for _ in range(count)))


class GridEncoder(nn.Module):
    """A picture [B, 3, S, S] in [0, 1] → what becomes its codes, [B, M, K]."""

    def __init__(self, sizes: GridSizes, grid: int, num_codes: int, num_dims: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * PATCH**2, sizes.channels, 3, padding=1),
            *(ResidualConv(sizes.channels) for _ in range(sizes.encoder_convs)),
        ).to(memory_format=LAST)
        self.down = nn.Conv2d(sizes.channels, sizes.width, 2, stride=2).to(memory_format=LAST)
        self.positions = nn.Parameter(torch.randn(grid**2, sizes.width) * 0.02)
        self.blocks = make_blocks(sizes, sizes.encoder_layers - 1, (grid, grid))
        self.mixing = nn.Parameter(choose_frequencies(grid, num_codes))  # [M, P]
        self.code_positions = nn.Parameter(torch.randn(num_codes, sizes.width) * 0.02)
        self.code_blocks = make_blocks(sizes, 1, (1, num_codes))
        self.out = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, num_dims))

    def forward(self, x: Tensor) -> Tensor:
        x = (x * 2 - 1).contiguous(memory_format=LAST)
        h = self.down(self.stem(x)).flatten(2).transpose(1, 2)  # [B, P, D]
        h = self.mixing @ self.blocks(h + self.positions)  # [B, M, D]
        made: Tensor = self.out(self.code_blocks(h + self.code_positions))
        return made


class GridDecoder(nn.Module):
    """The vectors of all codes → the picture [B, 3, S, S], in about [0, 1].

    A code that is not known is replaced by one learned vector. first: how many codes stand before those of the encoder;
    they begin with the lowest frequencies too.
    """

    def __init__(self, sizes: GridSizes, grid: int, first: int, num_codes: int):
        super().__init__()
        count = first + num_codes
        self.grid = grid
        self.dropped_code = nn.Parameter(torch.randn(sizes.width) * 0.02)
        self.code_positions = nn.Parameter(torch.randn(count, sizes.width) * 0.02)
        self.code_blocks = make_blocks(sizes, 1, (1, count))
        mixing = torch.cat([choose_frequencies(grid, first), choose_frequencies(grid, num_codes)])
        self.mixing = nn.Parameter(mixing.T.clone())  # [P, N]
        self.positions = nn.Parameter(torch.randn(grid**2, sizes.width) * 0.02)
        self.blocks = make_blocks(sizes, sizes.decoder_layers - 1, (grid, grid))
        self.up = nn.Sequential(nn.Conv2d(sizes.width, sizes.channels * 4, 1), nn.PixelShuffle(2))
        self.out = nn.Sequential(
            *(ResidualConv(sizes.channels) for _ in range(sizes.decoder_convs)),
            nn.GroupNorm(8, sizes.channels),
            nn.SiLU(),
            nn.Conv2d(sizes.channels, 3 * PATCH**2, 3, padding=1),
            nn.PixelShuffle(PATCH),
        ).to(memory_format=LAST)

    def forward(self, h: Tensor, kept: Tensor | None = None) -> Tensor:
        """h: [B, N, D], the vectors of the codes; kept: bool [B, N], False where a code is not known, None if all
        are."""
        if kept is not None:
            h = torch.where(kept.unsqueeze(-1), h, self.dropped_code.to(h.dtype))
        h = self.code_blocks(h + self.code_positions)
        h = self.blocks(self.mixing @ h + self.positions)
        h = h.transpose(1, 2).reshape(len(h), -1, self.grid, self.grid)
        made: Tensor = self.out(self.up(h).contiguous(memory_format=LAST))
        return made * 0.5 + 0.5
