"""The prepared data that the suites read: pictures, clips and speech, with fixed random samples of each.

Shapes: M pictures, C clips, T frames or samples; pictures are [3, 64, 64] and clips [T, 3, 64, 64] in [0, 1].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimodal.data.coded import EVALUATION_STYLES, TRAINING_STYLES

__all__ = ["EVALUATION_STYLES", "TRAINING_STYLES", "Clips", "Pictures", "Speech", "sample"]


def sample(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of the rows, chosen by `seed`, in their own order."""
    if limit is None or len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


@dataclass(frozen=True)
class Concepts:
    """What `concepts.json` says; ids are positions in the list."""

    entries: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> Concepts:
        return cls(_read_json(folder / "concepts.json", "python tools/prepare_images.py"))

    def in_split(self, ids: np.ndarray, split: str) -> np.ndarray:
        """bool, for each id whether its concept belongs to `split` ("train" or "heldout")."""
        belongs = np.array([entry["split"] == split for entry in self.entries])
        return belongs[ids]

    def label(self, concept: int) -> str:
        return str(self.entries[concept]["label"])


@dataclass(frozen=True)
class Pictures:
    pixels: np.ndarray  # uint8 [M, 64, 64, 3]
    concept: np.ndarray  # int [M]
    style: np.ndarray  # str [M]
    concepts: Concepts
    features: np.ndarray | None = None  # [M, 1280], those of views.npz if it is there

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        arrays = _read_arrays(folder / "images.npz", "python tools/prepare_images.py")
        features = None
        if (folder / "views.npz").is_file():
            views = _read_arrays(folder / "views.npz", "python tools/prepare_views.py")
            of_views = views["features"]  # float16 [M, V, 1280]; view 0 is the picture itself
            if len(of_views) == len(arrays["concept"]):
                features = of_views[:, 0].astype(np.float32)
        return cls(arrays["pixels"], arrays["concept"], arrays["style"], Concepts.load(folder), features)

    def rows(self, styles: tuple[str, ...], split: str) -> np.ndarray:
        """The pictures in some styles of the concepts of one split."""
        return np.flatnonzero(np.isin(self.style, styles) & self.concepts.in_split(self.concept, split))

    def tensors(self, rows: np.ndarray) -> Tensor:
        """float32 [B, 3, 64, 64]"""
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Clips:
    frames: np.ndarray  # uint8 [C, T, 64, 64, 3]
    concept: np.ndarray  # int [C]
    concepts: Concepts

    @classmethod
    def load(cls, folder: Path) -> Clips:
        arrays = _read_arrays(folder / "clips.npz", "python tools/prepare_clips.py")
        return cls(arrays["frames"], arrays["concept"], Concepts.load(folder))

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.concepts.in_split(self.concept, split))

    def tensors(self, rows: np.ndarray) -> Tensor:
        """float32 [B, T, 3, 64, 64]"""
        return torch.from_numpy(self.frames[rows]).permute(0, 1, 4, 2, 3).float() / 255


@dataclass(frozen=True)
class Speech:
    utterances: list[dict[str, Any]]  # id, text, voice, split, start, num_samples
    samples: np.ndarray  # int16, one long array

    @classmethod
    def load(cls, folder: Path) -> Speech:
        how = "python tools/make_speech.py"
        utterances = _read_json(folder / "speech" / "utterances.json", how)
        path = folder / "speech" / "audio.int16"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; make it with `{how}`")
        return cls(utterances, np.memmap(path, dtype=np.int16, mode="r"))

    def unseen(self, limit: int | None, seed: int, max_duration_s: float | None = None) -> dict[str, list[dict]]:
        """By voice, at most `limit` utterances each whose sentence is in no training utterance of any voice.

        A voice held out whole counts with the test sentences only, so that every voice reads the same kind; the human
        speaker's prompts are their own split.
        """
        unseen = {item["text"] for item in self.utterances if item["split"] == "test"}
        voices: dict[str, list[dict]] = {}
        for item in self.utterances:
            fits = max_duration_s is None or item["num_samples"] <= max_duration_s * 16_000
            if fits and (item["split"] in ("test", "human") or (_held_out(item) and item["text"] in unseen)):
                voices.setdefault(item["voice"], []).append(item)
        return {
            voice: [items[row] for row in sample(np.arange(len(items)), limit, seed)]
            for voice, items in sorted(voices.items())
        }

    def sound(self, item: dict) -> Tensor:
        """float32 [T] at 16 kHz"""
        part = self.samples[item["start"] : item["start"] + item["num_samples"]]
        return torch.from_numpy(part.astype(np.float32) / 32768)


def _held_out(item: dict) -> bool:
    return item["split"] == "voice_heldout"


def _read_json(path: Path, how: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; make it with `{how}`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `{how}`") from None


def _read_arrays(path: Path, how: str) -> Any:
    """Arrays that are read from the file when they are asked for."""
    try:
        return np.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; make it with `{how}`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `{how}`") from None
