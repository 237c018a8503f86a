"""Regions of scenes: the things that one mask or box is of, masks and boxes themselves, and how two of them overlap.

Shapes: masks bool [H, W]; boxes float [4], left, top, right and bottom as shares of the picture.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.scene import Scene

#: the places of things in a scene
Region: TypeAlias = tuple[int, ...]


def list_regions(scene: Scene) -> list[Region]:
    """Every thing alone and, of several that are alike, all together."""
    count = len(scene.things)
    alone: list[Region] = [(number,) for number in range(count)]
    alike = len({placed.thing for placed in scene.things}) == 1
    return [*alone, tuple(range(count))] if alike and count > 1 else alone


def draw_regions(painter: Painter, scene: Scene) -> dict[Region, np.ndarray]:
    """The mask of each region of a scene; those of which nothing is seen are left out."""
    masks = painter.draw_masks(scene)
    found = {region: masks[list(region)].max(0) for region in list_regions(scene)}
    return {region: mask for region, mask in found.items() if mask.any()}


def find_box(mask: np.ndarray) -> np.ndarray:
    """The smallest box around a mask. Raises ValueError for an empty one."""
    if not mask.any():
        raise ValueError("there is no box around an empty mask; leave it out")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return np.array(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height], np.float32
    )


def compute_overlap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The areas of the intersection and of the union of two masks in pixels, or of two boxes in shares."""
    if one.shape == (4,):
        low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
        shared = float(np.prod(np.maximum(high - low, 0)))
        return shared, float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return float((one & other).sum()), float((one | other).sum())


def compute_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks or boxes; of two that are empty 0."""
    shared, joined = compute_overlap(one, other)
    return shared / joined if joined > 0 else 0.0
