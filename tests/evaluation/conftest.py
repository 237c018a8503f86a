"""Prepared data in the real layout, a few items of each kind, and the tiny model."""

import json

import numpy as np
import pytest

from tests.tiny_model import tiny_model

STYLES = ("noto", "fluent3d", "fluentflat", "twemoji")
LABELS = ("apple", "boat", "cat", "door", "egg", "fish", "goat", "house")
NUM_CONCEPTS, NUM_HELD_OUT = len(LABELS), 2
VOICES = {"joe": "train", "slt": "train", "awb": "voice_heldout", "human": "human"}


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Eight concepts (two held out) in four styles, a clip of each, six utterances."""
    folder = tmp_path_factory.mktemp("prepared")
    draws = np.random.default_rng(0)
    concepts = [
        {
            "id": i, "key": f"1f60{i}", "family": f"1f60{i}", "label": LABELS[i], "tags": [f"tag{i}"],
            "group": "things", "split": "heldout" if i >= NUM_CONCEPTS - NUM_HELD_OUT else "train",
        }
        for i in range(NUM_CONCEPTS)
    ]  # fmt: skip
    (folder / "concepts.json").write_text(json.dumps(concepts))
    # every concept has its own colours, every style a little noise: neighbours by features are the same concept
    base = draws.integers(0, 256, (NUM_CONCEPTS, 4, 4, 3)).repeat(16, 1).repeat(16, 2)
    pixels = [np.clip(base + draws.integers(-4, 5, base.shape), 0, 255).astype(np.uint8) for _ in STYLES]
    np.savez(
        folder / "images.npz",
        pixels=np.concatenate(pixels),
        concept=np.tile(np.arange(NUM_CONCEPTS), len(STYLES)).astype(np.int32),
        style=np.repeat(STYLES, NUM_CONCEPTS),
    )
    frames = np.stack([np.roll(base, 2 * t, axis=2) for t in range(9)], axis=1).astype(np.uint8)
    np.savez(folder / "clips.npz", frames=frames, concept=np.arange(NUM_CONCEPTS, dtype=np.int32))
    (folder / "speech").mkdir()
    utterances, sounds, start = [], [], 0
    for voice, split in VOICES.items():
        splits = [split] if split in ("human", "voice_heldout") else ["train", "test"]
        for kind in splits:
            count = 3_000 + 500 * len(utterances)
            utterances.append(
                {
                    "id": f"{voice}-{len(utterances)}", "text": "a sunny day" if kind != "train" else "a red apple",
                    "voice": voice, "split": kind, "start": start, "num_samples": count,
                }
            )  # fmt: skip
            sounds.append((3_000 * np.sin(np.arange(count) * 0.1 * len(utterances))).astype(np.int16))
            start += count
    (folder / "speech" / "utterances.json").write_text(json.dumps(utterances))
    np.concatenate(sounds).tofile(folder / "speech" / "audio.int16")
    return folder
