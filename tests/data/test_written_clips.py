"""Packed clips as files: every one, by the split of what it shows, exactly as it was packed."""

import json

import numpy as np
import pytest
import torch

from tools.write_clips import write_clips
from unimodal.media.video import load_video


def test_clips_are_written_exactly_by_their_split(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 64, 64, 3), dtype=np.uint8)
    concepts = [
        {"id": number, "key": key, "family": key, "label": key, "tags": [], "group": "things", "split": split}
        for number, (key, split) in enumerate([("cat", "train"), ("dog", "test"), ("owl", "train")])
    ]
    with pytest.raises(ValueError, match="prepare_images.py"):
        write_clips(tmp_path)
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    with pytest.raises(ValueError, match="prepare_clips.py"):
        write_clips(tmp_path)
    np.savez(tmp_path / "clips.npz", frames=frames, concept=np.arange(3, dtype=np.int32))
    assert write_clips(tmp_path) == {"train/emoji": 2, "heldout/emoji": 1}
    for number, place in enumerate(["train/emoji/cat", "heldout/emoji/dog", "train/emoji/owl"]):
        clip = load_video(tmp_path / "films" / f"{place}.webp", fps=8.0, num_frames=9)
        assert torch.equal((clip * 255).round().byte(), torch.from_numpy(frames[number]).permute(0, 3, 1, 2))
