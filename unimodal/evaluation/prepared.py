"""The prepared data that the suites read: pictures, clips and speech, with fixed random samples of each.

Shapes: M pictures, C clips, B of either, T frames or samples; pictures [3, 64, 64] and clips [T, 3, 64, 64] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.data.encoded_media import EVALUATION_STYLES, TRAINING_STYLES, Concept, load_concepts
from unimodal.files import read_json_as

__all__ = ["EVALUATION_STYLES", "TRAINING_STYLES", "Clips", "Pictures", "Speech", "Utterance", "sample"]

PREPARE_PICTURES, PREPARE_CLIPS = "python tools/prepare_images.py", "python tools/prepare_clips.py"
PREPARE_VIEWS, MAKE_SPEECH = "python tools/prepare_views.py", "python tools/make_speech.py"


def sample(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of the rows, chosen by `seed`, in their own order."""
    if limit is None or len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


@dataclass(frozen=True)
class Pictures:
    """pixels: uint8 [M, 64, 64, 3]. concept: int [M], places in `concepts`. style: str [M].

    features: float32 [M, 1280] by the frozen trunk, where they were prepared.
    """

    pixels: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    concepts: list[Concept]
    features: np.ndarray | None = None

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        arrays = _read_arrays(folder / "images.npz", PREPARE_PICTURES)
        features = None
        if (folder / "views.npz").is_file():
            views = _read_arrays(folder / "views.npz", PREPARE_VIEWS)
            of_views = views["features"]  # float16 [M, V, 1280]; view 0 is the picture itself
            if len(of_views) == len(arrays["concept"]):
                features = of_views[:, 0].astype(np.float32)
        concepts = load_concepts(folder / "concepts.json")
        return cls(arrays["pixels"], arrays["concept"], arrays["style"], concepts, features)

    def find_rows(self, styles: tuple[str, ...], split: str) -> np.ndarray:
        """The pictures in some styles whose concepts are of one split, int [B]."""
        return np.flatnonzero(np.isin(self.style, styles) & _are_in_split(self.concepts, self.concept, split))

    def take(self, rows: np.ndarray) -> Tensor:
        """The pictures of rows int [B], float32 [B, 3, 64, 64]."""
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255

    def take_concepts(self, rows: np.ndarray) -> list[Concept]:
        """What the pictures of rows int [B] show."""
        return [self.concepts[concept] for concept in self.concept[rows]]


@dataclass(frozen=True)
class Clips:
    """frames: uint8 [C, T, 64, 64, 3]. concept: int [C], places in `concepts`."""

    frames: np.ndarray
    concept: np.ndarray
    concepts: list[Concept]

    @classmethod
    def load(cls, folder: Path) -> Clips:
        arrays = _read_arrays(folder / "clips.npz", PREPARE_CLIPS)
        return cls(arrays["frames"], arrays["concept"], load_concepts(folder / "concepts.json"))

    def find_rows(self, split: str) -> np.ndarray:
        """The clips whose concepts are of one split, int [B]."""
        return np.flatnonzero(_are_in_split(self.concepts, self.concept, split))

    def take(self, rows: np.ndarray) -> Tensor:
        """The clips of rows int [B], float32 [B, T, 3, 64, 64]."""
        return torch.from_numpy(self.frames[rows]).permute(0, 1, 4, 2, 3).float() / 255

    def take_concepts(self, rows: np.ndarray) -> list[Concept]:
        """What the clips of rows int [B] show."""
        return [self.concepts[concept] for concept in self.concept[rows]]


@dataclass(frozen=True)
class Utterance:
    """A sentence as one voice says it: `num_samples` of the samples of all utterances, from `start` on."""

    text: str
    voice: str
    split: str
    start: int
    num_samples: int


@dataclass(frozen=True)
class Speech:
    """samples: int16, those of all utterances, at 16 kHz."""

    utterances: list[Utterance]
    samples: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Speech:
        utterances, path = folder / "speech" / "utterances.json", folder / "speech" / "audio.int16"
        for needed in (utterances, path):
            if not needed.is_file():
                raise ValueError(f"{needed}: no such file; make it with `{MAKE_SPEECH}`")
        fix = f"make it again with `{MAKE_SPEECH}`"
        return cls(read_json_as(list[Utterance], utterances, fix), np.memmap(path, dtype=np.int16, mode="r"))

    def choose_unseen(
        self, limit: int | None, seed: int, max_duration_s: float | None = None
    ) -> dict[str, list[Utterance]]:
        """By voice, at most `limit` utterances each whose sentence is in no training utterance of any voice.

        A voice that is held out whole counts with the test sentences only, so that every voice reads the same kind; the
        human speaker's prompts are a split of their own.
        """
        unseen = {item.text for item in self.utterances if item.split == "test"}
        voices: dict[str, list[Utterance]] = {}
        for item in self.utterances:
            fits = max_duration_s is None or item.num_samples <= max_duration_s * 16_000
            is_unseen = item.split in ("test", "human") or (item.split == "voice_heldout" and item.text in unseen)
            if fits and is_unseen:
                voices.setdefault(item.voice, []).append(item)
        return {
            voice: [items[row] for row in sample(np.arange(len(items)), limit, seed)]
            for voice, items in sorted(voices.items())
        }

    def take(self, item: Utterance) -> Tensor:
        """The sound of an utterance, float32 [T] at 16 kHz."""
        part = self.samples[item.start : item.start + item.num_samples]
        return torch.from_numpy(part.astype(np.float32) / 32768)


def _are_in_split(concepts: Sequence[Concept], ids: np.ndarray, split: str) -> np.ndarray:
    """For each of the ids, places in `concepts`, whether it belongs to the split ("train" or "heldout"): bool."""
    return np.array([concept.split == split for concept in concepts])[ids]


def _read_arrays(path: Path, command: str) -> Mapping[str, np.ndarray]:
    """Arrays that are read from the file when they are asked for. Raises ValueError for a missing or broken file."""
    try:
        return np.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; make it with `{command}`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `{command}`") from None
