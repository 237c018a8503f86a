"""The prepared scenes that the suites read, by split and kind, and answers about them compared.

Shapes: M pictures or C clips, B of either; pictures uint8 [M, 64, 64, 3], clips uint8 [C, 9, 64, 64, 3].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.data.scenes.scene import PREPARE, Kind, Scene, Split, Thing, read_scenes, read_things
from unimodal.data.scenes.words import SceneWords, pluralise
from unimodal.data.words import find_named
from unimodal.evaluation.prepared import sample
from unimodal.evaluation.suite import ReportProgress
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Image, Text, Turn, Video

#: splits to test on, in the order of tables: what was trained on in other scenes, put together anew, never seen, in the
#: style that was never seen
TESTED: tuple[Split, ...] = ("seen", "combination", "concept", "style")
BATCH = 32


@dataclass(frozen=True)
class PreparedScenes:
    """Scenes, what they are made of, and their pixels: pictures or clips."""

    scenes: list[Scene]
    things: list[Thing]
    pixels: np.ndarray

    @classmethod
    def load(cls, data_folder: Path, clips: bool = False) -> PreparedScenes:
        """Raises ValueError, in one line, for files that are missing."""
        folder, name = data_folder / "scenes", "moves" if clips else "scenes"
        scenes, things = read_scenes(folder / f"{name}.jsonl"), read_things(folder / "things.json")
        path = folder / f"{name}.npz"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; make it with `{PREPARE}`")
        with np.load(path) as arrays:
            pixels = arrays["frames" if clips else "pixels"]
        return cls(scenes, things, pixels)

    def find_rows(self, split: Split, kinds: Sequence[Kind], limit: int | None, seed: int) -> np.ndarray:
        """At most `limit` rows, int [B], of a split and of these kinds."""
        rows = [row for row, one in enumerate(self.scenes) if one.split == split and one.kind in kinds]
        return sample(np.array(rows, np.int64), limit, seed)

    def find_words(self, row: int) -> SceneWords:
        return SceneWords(self.scenes[row], self.things)

    def take(self, rows: np.ndarray) -> Tensor:
        """Pictures of rows, float [B, 3, 64, 64], or clips [B, 9, 3, 64, 64]."""
        return torch.from_numpy(self.pixels[rows]).movedim(-1, -3).float() / 255

    def encode(self, model: Unimodal, rows: np.ndarray, report: ReportProgress) -> list[Image | Video]:
        """The parts, with codes, of rows."""
        part: type[Image] | type[Video] = Video if self.pixels.ndim == 5 else Image
        found: list[Image | Video] = []
        for start in range(0, len(rows), BATCH):
            report("coding scenes", start, len(rows))
            media = list(self.take(rows[start : start + BATCH]))
            found += [part(codes=codes) for codes in model.coder.encode(part.modality, media)]
        return found


def ask(medium: Image | Video, question: str) -> Document:
    return Document([Turn("user", [medium, Text(question)])])


def is_same_answer(answer: str, right: str) -> bool:
    """Whether two short answers have the same words, articles, case and marks aside."""
    return _list_plain(answer) == _list_plain(right)


def is_thing_named(answer: str, thing: Thing, things: Sequence[Thing]) -> bool:
    """Whether an answer names a thing, in singular or plural, and none of a longer name: `hot dog` is no `dog`."""
    named = find_named(answer, [form for one in things for form in (one.name, pluralise(one.name))])
    return not named.isdisjoint((thing.name, pluralise(thing.name)))


def _list_plain(text: str) -> list[str]:
    return [
        word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in ("a", "an", "the", "it", "is", "are")
    ]
