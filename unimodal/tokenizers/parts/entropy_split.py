"""Regions of even detail: a picture is cut in two again and again, always the region with the most detail (GPSToken,
arXiv 2509.01109).

Shapes: H/W height and width, h/w those of a region.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

#: first row, first column, rows, columns
Region = tuple[int, int, int, int]


def measure_detail(gray: Tensor, weight: float) -> float:
    """gray: float [h, w] in [0, 1] → entropy of its edges' strengths in bits, to the power of weight, times its area.

    Edges are Sobel's on the region resized to 64×64; strengths are counted in 512 bins from -5.5 to 5.5."""
    resized = interpolate(gray[None, None], size=(64, 64), mode="bilinear", align_corners=False)
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=gray.device)
    edges = conv2d(pad(resized, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])[0]
    counts = torch.histc(edges.square().sum(0).sqrt(), 512, -5.5, 5.5)
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, -float((shares * shares.log2()).sum())) ** weight * gray.numel()


@torch.no_grad()
def split_regions(picture: Tensor, num_regions: int, least: int = 8, weight: float = 2.5) -> list[Region]:
    """picture: float [3, H, W] in [0, 1] → num_regions regions that cover it without overlap.

    The longer side is halved; of a square, the one whose halves hold the one with less detail. least: a region is cut
    where a side has more than least + 1 pixels. ValueError for a picture that has not so many regions.
    """
    gray = (picture * picture.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)

    def rate(region: Region) -> tuple[float, Region]:
        row, column, rows, columns = region
        return measure_detail(gray[row : row + rows, column : column + columns], weight), region

    regions = [rate((0, 0, gray.shape[0], gray.shape[1]))]
    while len(regions) < num_regions:
        regions.sort(key=lambda rated: rated[0], reverse=True)
        chosen = next((at for at, (_, region) in enumerate(regions) if max(region[2:]) > least + 1), None)
        if chosen is None:
            raise ValueError(
                f"a picture of {gray.shape[0]}×{gray.shape[1]} is {len(regions)} regions of at most {least + 1} "
                f"pixels a side; {num_regions} are asked for"
            )
        row, column, rows, columns = regions.pop(chosen)[1]
        beside = [(row, column, rows, columns // 2), (row, column + columns // 2, rows, columns - columns // 2)]
        below = [(row, column, rows // 2, columns), (row + rows // 2, column, rows - rows // 2, columns)]
        ways = [beside, below] if rows == columns else [beside] if columns > rows else [below]
        rated = [[rate(region) for region in halves] for halves in ways]
        least_detail = [min(detail for detail, _ in halves) for halves in rated]
        regions += rated[0] if least_detail[0] < least_detail[-1] else rated[-1]
    return [region for _, region in regions]
