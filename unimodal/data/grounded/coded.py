"""Scenes with the codes of their pictures, masks and boxes, made of sprites and plans alone.

Shapes: S scenes; sprites uint8 [K, 64, 64, 4]; masks bool [64, 64]; boxes float [4].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.data.grounded.regions import Region, draw_regions, find_box
from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.scene import PREPARE, Kind, Scene, Split, Thing, read_scenes, read_things
from unimodal.data.scenes.words import SceneWords
from unimodal.sequence.document import MEDIA_PARTS, Part

#: (medium, media) → the codes of each, as `MediaCoder.encode` gives them
Encode = Callable[[str, Sequence[Tensor]], Sequence[np.ndarray]]
BATCH = 64


@dataclass(frozen=True)
class PlannedScenes:
    """Scenes as tools/prepare_scenes.py plans them, and what they are drawn of."""

    scenes: list[Scene]
    things: list[Thing]
    painter: Painter

    @classmethod
    def load(cls, data_folder: Path) -> PlannedScenes:
        """Pictures of all splits. Raises ValueError, in one line, for files that are missing."""
        folder = data_folder / "scenes"
        scenes, things = read_scenes(folder / "scenes.jsonl"), read_things(folder / "things.json")
        path = folder / "sprites.npz"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; make it with `{PREPARE}`")
        with np.load(path) as arrays:
            return cls(scenes, things, Painter(arrays["pixels"]))

    def find_rows(self, split: Split, kinds: Collection[Kind]) -> list[int]:
        """The numbers of the scenes of a split and of these kinds."""
        return [row for row, one in enumerate(self.scenes) if one.split == split and one.kind in kinds]

    def draw(self, row: int) -> Tensor:
        """The picture of a scene, float [3, 64, 64] in [0, 1]."""
        return torch.from_numpy(self.painter.draw(self.scenes[row]).copy()).permute(2, 0, 1).float() / 255


@dataclass
class CodedScenes:
    """Some scenes with codes, numbered anew: what the tasks of `tasks.py` are made of.

    masks, boxes: of each scene, by region; {} of a medium that is left out.
    """

    planned: PlannedScenes
    rows: list[int]
    pictures: list[np.ndarray]
    regions: list[dict[Region, np.ndarray]] = field(repr=False)  # the masks themselves
    masks: list[dict[Region, np.ndarray]]
    boxes: list[dict[Region, np.ndarray]]

    def __len__(self) -> int:
        return len(self.rows)

    def find_words(self, item: int) -> SceneWords:
        return SceneWords(self.planned.scenes[self.rows[item]], self.planned.things)

    def make_picture(self, item: int) -> Part:
        return MEDIA_PARTS["image"](codes=self.pictures[item])

    def list_regions(self, item: int) -> Sequence[Region]:
        return list(self.regions[item])

    def make_mask(self, item: int, region: Region) -> Part:
        return MEDIA_PARTS["mask"](codes=self.masks[item][region])

    def make_box(self, item: int, region: Region) -> Part:
        return MEDIA_PARTS["box"](codes=self.boxes[item][region])


def code_scenes(
    planned: PlannedScenes,
    rows: Sequence[int],
    encode: Encode,
    media: Collection[str] = ("mask", "box"),
    mask_size: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> CodedScenes:
    """Draws the scenes and codes them, `BATCH` at a time. media: of "mask" and "box", those to code.

    mask_size: the side that the mask tokenizer takes; None for the picture's own. report: (scenes done, in all).
    """
    made = CodedScenes(planned, list(rows), [], [], [], [])
    for start in range(0, len(rows), BATCH):
        report(start, len(rows))
        some = rows[start : start + BATCH]
        made.pictures += encode("image", [planned.draw(row) for row in some])
        drawn = [draw_regions(planned.painter, planned.scenes[row]) for row in some]
        made.regions += drawn
        masks = [resize_mask(mask, mask_size) for one in drawn for mask in one.values()]
        boxes = [torch.from_numpy(find_box(mask)) for one in drawn for mask in one.values()]
        made.masks += _share_out(drawn, encode("mask", masks) if "mask" in media else None)
        made.boxes += _share_out(drawn, encode("box", boxes) if "box" in media else None)
    return made


def resize_mask(mask: np.ndarray, size: int | None) -> Tensor:
    """A mask as its tokenizer takes it, float [1, size, size] of 0 and 1, without blur."""
    found = torch.from_numpy(mask).float()[None]
    if size is None or mask.shape == (size, size):
        return found
    return torch.nn.functional.interpolate(found[None], size=(size, size), mode="nearest-exact")[0]


def _share_out(
    drawn: Sequence[dict[Region, np.ndarray]], codes: Sequence[np.ndarray] | None
) -> list[dict[Region, np.ndarray]]:
    """The codes of all regions, one after the other, back to their scenes."""
    if codes is None:
        return [{} for _ in drawn]
    each = iter(codes)
    return [{region: next(each) for region in one} for one in drawn]
