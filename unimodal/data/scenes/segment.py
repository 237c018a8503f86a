"""Finds the things in a picture by its background alone, with no network: how many parts, where, in which colour.

It reads scenes on a plain or faintly patterned background, drawn by us or by a model, and knows nothing of names.

Shapes: pictures uint8 [H, W, 3], masks bool [H, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unimodal.data.scenes.colours import find_main_colour

NEAR = 38.0  # distance in sRGB levels from the background up to which a pixel belongs to it
SMALLEST = 0.12  # parts below this share of the largest are crumbs
RIM = 2  # pixels at each edge that show the background


@dataclass(frozen=True)
class Part:
    """A part of a picture. x, y: its middle, as a share of the width and height. size: its longer side, as a share.
    colour: the name of the colour most of it has; share: of its pixels."""

    x: float
    y: float
    size: float
    area: int
    colour: str
    share: float


def find_background(picture: np.ndarray) -> np.ndarray:
    """The colour of the background, float [3]: the median of the rim."""
    rim = np.concatenate([
        picture[:RIM].reshape(-1, 3), picture[-RIM:].reshape(-1, 3), picture[:, :RIM].reshape(-1, 3),
        picture[:, -RIM:].reshape(-1, 3),
    ])  # fmt: skip
    found: np.ndarray = np.median(rim, axis=0)
    return found


def find_parts(picture: np.ndarray) -> list[Part]:
    """The parts of a picture that are not background, the largest first; crumbs are left out."""
    background = find_background(picture)
    away = np.sqrt(((picture.astype(np.float64) - background) ** 2).sum(-1))
    seen = fill_holes(away > NEAR)
    labels = label_parts(grow(seen))
    parts = []
    height, width = seen.shape
    for number in range(1, int(labels.max(initial=0)) + 1):
        own = (labels == number) & seen
        if not own.any():
            continue
        rows, columns = np.nonzero(own)
        core = own & (away > 2 * NEAR) if (own & (away > 2 * NEAR)).sum() > 0.3 * own.sum() else own
        colour, share = find_main_colour(picture[core] / 255)
        size = max(np.ptp(rows) + 1, np.ptp(columns) + 1) / max(height, width)
        middle_x, middle_y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        parts.append(Part(middle_x / width, middle_y / height, float(size), int(own.sum()), colour, share))
    parts.sort(key=lambda part: -part.area)
    return [part for part in parts if part.area >= max(SMALLEST * parts[0].area, 6)]


def count_parts(seen: np.ndarray) -> int:
    """How many parts a mask has; pixels that touch at a corner belong together."""
    return int(label_parts(seen).max(initial=0))


def label_parts(seen: np.ndarray) -> np.ndarray:
    """Mask [H, W] → int [H, W]: 0 outside, 1, 2, … in each part (8 neighbours)."""
    labels = np.where(seen, np.arange(1, seen.size + 1).reshape(seen.shape), 0)
    while True:  # the greatest number of a part spreads through it
        wide = np.pad(labels, 1)
        rows = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
        near = np.where(seen, np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]), 0)
        near[seen] = near.reshape(-1)[near[seen] - 1]  # and takes over what the pixel of that number has heard
        if (near == labels).all():
            break
        labels = near
    found: np.ndarray = np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(seen.shape)
    return found


def fill_holes(seen: np.ndarray) -> np.ndarray:
    """A mask with what it encloses."""
    outside = np.pad(~seen, 1, constant_values=True)
    labels = label_parts(outside)
    filled: np.ndarray = (labels != labels[0, 0])[1:-1, 1:-1] | seen
    return filled


def grow(seen: np.ndarray) -> np.ndarray:
    """A mask with the four neighbours of its pixels, so that a gap of one or two pixels is no gap."""
    wide = np.pad(seen, 1)
    found: np.ndarray = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return found


def name_place(part: Part, places: dict[str, tuple[int, int]]) -> str:
    """The name of the third of the picture in which a part's middle lies, across and down."""
    cell = (min(int(part.x * 3), 2), min(int(part.y * 3), 2))
    return next(name for name, where in places.items() if where == cell)
