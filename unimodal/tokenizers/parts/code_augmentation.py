"""Augmentations of stored codes, for training on codes alone (SeiT, arXiv 2303.11114; SeiT++, 2312.10105).

Where pictures are kept as codes only, crops and colours of pixels are out of reach. Codes can be swapped and replaced
by codes that look alike; their vectors can be cropped, given noise or the statistics of another picture. Geometry
spoils codes, which say what lies where within their own cell: `TokenAdapter` learns a space that bears it.

Every function draws from `generator` where it is given, item by item.

Shapes: B batch, h and w rows and columns of codes, C codes, D width of a code's vector.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pixel_shuffle, pixel_unshuffle

from unimodal.tokenizers.parts.trunks.vit import GridSize, VitBlock


def find_synonyms(table: Tensor, count: int) -> Tensor:
    """The `count` nearest other codes of every code, int64 [C, count]. table: the codes' vectors, float [C, D].
    Raises ValueError for more than there are."""
    if not 1 <= count < len(table):
        raise ValueError(f"a code of {len(table)} has 1 to {len(table) - 1} synonyms; {count} are asked for")
    distances = torch.cdist(table, table)
    distances.fill_diagonal_(float("inf"))
    return distances.topk(count, largest=False).indices


def replace_by_synonyms(
    ids: Tensor, synonyms: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """ids: int64 [B, h, w] → the same where each code is, with probability `share`, one of its synonyms [C, S]."""
    drawn = torch.randint(synonyms.shape[1], ids.shape, generator=generator)
    replaced = torch.rand(ids.shape, generator=generator) < share
    return torch.where(replaced, synonyms[ids, drawn], ids)


def swap_regions(ids: Tensor, largest: float = 0.25, generator: torch.Generator | None = None) -> Tensor:
    """ids: int64 [B, h, w] → the same where in each item two squares have changed places. largest: of a square's side,
    as a share of the shorter side of the grid. The squares never overlap; those of the authors' code may, a little."""
    out = ids.clone()
    height, width = ids.shape[1:]
    for item in out:
        side = int(min(height, width) * largest * float(torch.rand(1, generator=generator)))
        if side < 1:
            continue
        while True:
            rows = torch.randint(height - side + 1, (2,), generator=generator).tolist()
            columns = torch.randint(width - side + 1, (2,), generator=generator).tolist()
            if abs(rows[0] - rows[1]) >= side or abs(columns[0] - columns[1]) >= side:
                break
        first, second = (
            (slice(row, row + side), slice(column, column + side)) for row, column in zip(rows, columns, strict=True)
        )
        item[first], item[second] = item[second].clone(), item[first].clone()
    return out


def add_code_noise(
    vectors: Tensor,
    share: float = 0.5,
    scale: float = 1.0,
    deviation: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """vectors: float [B, D, h, w] → the same where items have, with probability `share`, normal noise: one number of
    size `scale` for each channel and one of size `deviation` for each value."""
    batch, width = vectors.shape[:2]
    noise = scale * torch.randn(batch, width, 1, 1, generator=generator)
    noise = noise + deviation * torch.randn(vectors.shape, generator=generator)
    return torch.where(_draw_items(batch, share, generator), vectors + noise.to(vectors), vectors)


def adapt_colors(vectors: Tensor, share: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """vectors: float [B, D, h, w] → the same where items have, with probability `share`, the mean and the deviation of
    each channel from another item (ColorAdapt). What lies where stays."""
    mean, deviation = vectors.mean((2, 3), keepdim=True), vectors.std((2, 3), keepdim=True)
    other = torch.randperm(len(vectors), generator=generator)
    adapted = (vectors - mean) / deviation.clamp_min(1e-6) * deviation[other] + mean[other]
    return torch.where(_draw_items(len(vectors), share, generator), adapted, vectors)


def crop_vectors(
    vectors: Tensor, size: GridSize, least_area: float = 0.08, generator: torch.Generator | None = None
) -> Tensor:
    """vectors: float [B, D, h, w] → random crops resized to `size` (bicubic), of `least_area` to all of the map and of
    sides 3:4 to 4:3."""
    height, width = vectors.shape[2:]
    crops = []
    for item in vectors:
        area, ratio = torch.rand(2, generator=generator).tolist()
        area = height * width * (least_area + (1 - least_area) * area)
        ratio = exp((2 * ratio - 1) * log(4 / 3))
        rows = min(height, max(1, round(sqrt(area / ratio))))
        columns = min(width, max(1, round(sqrt(area * ratio))))
        top = int(torch.randint(height - rows + 1, (1,), generator=generator))
        left = int(torch.randint(width - columns + 1, (1,), generator=generator))
        part = item[None, :, top : top + rows, left : left + columns]
        crops.append(interpolate(part, size=size, mode="bicubic", align_corners=False))
    return torch.cat(crops)


def _draw_items(batch: int, share: float, generator: torch.Generator | None) -> Tensor:
    return (torch.rand(batch, generator=generator) < share).view(-1, 1, 1, 1)


class TokenAdapter(nn.Module):
    """Code vectors → a map of twice the sides where geometry is learnt to do no harm, and back to codes (TokenAdapt).

    table: the codes' vectors [C, D], which stay as they are. The map's channels are D, as in the authors' code; each
    direction is a linear layer and transformer blocks.
    """

    def __init__(self, table: Tensor, grid: GridSize, width: int = 384, num_layers: int = 1, num_heads: int = 6):
        super().__init__()
        num_codes, channels = table.shape
        self.grid = grid
        self.table: Tensor
        self.register_buffer("table", table.detach().clone())
        self.embed = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(2, grid[0] * grid[1], width))
        self.layers_in = nn.ModuleList(VitBlock(width, num_heads) for _ in range(num_layers))
        self.spread = nn.Linear(width, 4 * channels)
        self.gather = nn.Linear(4 * channels, width)
        self.layers_out = nn.ModuleList(VitBlock(width, num_heads) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.choose = nn.Linear(width, num_codes)

    def convert(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, h, w] → a map float [B, D, 2h, 2w]."""
        x = self.embed(self.table[ids].flatten(1, 2)) + self.positions[0]
        for layer in self.layers_in:
            x = layer(x)
        return pixel_shuffle(self.spread(x).transpose(1, 2).unflatten(2, self.grid), 2)

    def score(self, maps: Tensor) -> Tensor:
        """A map float [B, D, 2h, 2w] → logits of codes [B, C, h, w]."""
        x = self.gather(pixel_unshuffle(maps, 2).flatten(2).transpose(1, 2)) + self.positions[1]
        for layer in self.layers_out:
            x = layer(x)
        return self.choose(self.norm_out(x)).transpose(1, 2).unflatten(2, self.grid)

    def augment(self, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """ids: int64 [B, h, w] → the codes after `change`, which takes and gives maps [B, D, 2h, 2w]."""
        with torch.no_grad():
            return self.score(change(self.convert(ids))).argmax(1)

    def measure_loss(self, ids: Tensor, wanted: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Cross-entropy of the codes after `change` with those of the changed picture, `wanted`; both [B, h, w]."""
        return cross_entropy(self.score(change(self.convert(ids))), wanted)
