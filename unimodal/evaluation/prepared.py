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

__all__ = ["EVALUATION_STYLES", "TRAINING_STYLES", "Clips", "Pictures", "Speech", "SpokenSentence", "sample"]

PREPARE_PICTURES, PREPARE_CLIPS = "python tools/prepare_images.py", "python tools/prepare_clips.py"
PREPARE_VIEWS, MAKE_SPEECH = "python tools/prepare_views.py", "python tools/make_speech.py"


def sample(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of the rows, chosen at random by `seed`, in their order."""
    if limit is None or len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


@dataclass(frozen=True)
class Pictures:
    """The prepared pictures.

    pixels: uint8 [M, 64, 64, 3]. concept: int [M], indices of `concepts`. style: str [M]. features: float32 [M, 1280]
    of the frozen trunk, if they were prepared.
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
        """The rows, int [B], of the pictures in these styles whose concepts are in the split."""
        return np.flatnonzero(np.isin(self.style, styles) & _are_in_split(self.concepts, self.concept, split))

    def take(self, rows: np.ndarray) -> Tensor:
        """The pictures of rows int [B], float32 [B, 3, 64, 64]."""
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255

    def take_concepts(self, rows: np.ndarray) -> list[Concept]:
        """The concepts of the pictures of rows int [B]."""
        return [self.concepts[concept] for concept in self.concept[rows]]


@dataclass(frozen=True)
class Clips:
    """The prepared clips. frames: uint8 [C, T, 64, 64, 3]. concept: int [C], indices of `concepts`."""

    frames: np.ndarray
    concept: np.ndarray
    concepts: list[Concept]

    @classmethod
    def load(cls, folder: Path) -> Clips:
        arrays = _read_arrays(folder / "clips.npz", PREPARE_CLIPS)
        return cls(arrays["frames"], arrays["concept"], load_concepts(folder / "concepts.json"))

    def find_rows(self, split: str) -> np.ndarray:
        """The rows, int [B], of the clips whose concepts are in the split."""
        return np.flatnonzero(_are_in_split(self.concepts, self.concept, split))

    def take(self, rows: np.ndarray) -> Tensor:
        """The clips of rows int [B], float32 [B, T, 3, 64, 64]."""
        return torch.from_numpy(self.frames[rows]).permute(0, 1, 4, 2, 3).float() / 255

    def take_concepts(self, rows: np.ndarray) -> list[Concept]:
        """The concepts of the clips of rows int [B]."""
        return [self.concepts[concept] for concept in self.concept[rows]]


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence said by one voice: `num_samples` samples of `Speech.samples`, from `start` on."""

    text: str
    voice: str
    split: str
    start: int
    num_samples: int


@dataclass(frozen=True)
class Speech:
    """The prepared speech. samples: int16, of all utterances one after the other, at 16 kHz."""

    utterances: list[SpokenSentence]
    samples: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Speech:
        utterances, path = folder / "speech" / "utterances.json", folder / "speech" / "audio.int16"
        for needed in (utterances, path):
            if not needed.is_file():
                raise ValueError(f"{needed}: no such file; make it with `{MAKE_SPEECH}`")
        fix = f"make it again with `{MAKE_SPEECH}`"
        return cls(read_json_as(list[SpokenSentence], utterances, fix), np.memmap(path, dtype=np.int16, mode="r"))

    def choose_unseen(
        self, limit: int | None, seed: int, max_duration_s: float | None = None
    ) -> dict[str, list[SpokenSentence]]:
        """Voice → at most `limit` utterances whose sentences no voice says in training.

        A voice that is held out entirely counts with the test sentences only, so that all voices read the same kind of
        sentence. The human speaker's prompts are a split of their own.
        """
        unseen = {item.text for item in self.utterances if item.split == "test"}
        voices: dict[str, list[SpokenSentence]] = {}
        for item in self.utterances:
            fits = max_duration_s is None or item.num_samples <= max_duration_s * 16_000
            is_unseen = item.split in ("test", "human") or (item.split == "voice_heldout" and item.text in unseen)
            if fits and is_unseen:
                voices.setdefault(item.voice, []).append(item)
        return {
            voice: [items[row] for row in sample(np.arange(len(items)), limit, seed)]
            for voice, items in sorted(voices.items())
        }

    def take(self, item: SpokenSentence) -> Tensor:
        """The sound of an utterance, float32 [T] at 16 kHz."""
        part = self.samples[item.start : item.start + item.num_samples]
        return torch.from_numpy(part.astype(np.float32) / 32768)


def _are_in_split(concepts: Sequence[Concept], ids: np.ndarray, split: str) -> np.ndarray:
    """Whether each concept of ids, indices of `concepts`, is in the split ("train" or "heldout"): bool, as many."""
    return np.array([concept.split == split for concept in concepts])[ids]


def _read_arrays(path: Path, command: str) -> Mapping[str, np.ndarray]:
    """The arrays of a file, each read on access. Raises ValueError for a missing or damaged file.

    command: the one that makes the file, for the message.
    """
    try:
        return np.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; make it with `{command}`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `{command}`") from None
