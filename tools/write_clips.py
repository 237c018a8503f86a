"""Write the packed clips as files that a video tokenizer is trained on and measured by.

    python tools/write_clips.py [--prepared data/prepared]

Reads `clips.npz` of `prepare_clips.py` and, where it is there, `scenes/moves.npz` of `prepare_scenes.py`, and writes
lossless .webp files of 64×64 pixels at 8 frames a second under data/prepared/films:

- `train/emoji/KEY.webp`, `heldout/emoji/KEY.webp`: animated emoji, by the split of their concepts;
- `train/moves/NUMBER.webp`, `heldout/moves/NUMBER.webp`: things that move, by the split of their scenes.

What is there is not written again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from unimodal.data.encoded_media import load_concepts
from unimodal.data.prepared_arrays import open_arrays
from unimodal.data.scenes.scene import read_scenes
from unimodal.media.video import save_video

FRAMES_PER_SECOND = 8.0
SIDE = 64
SHAPES = {"frames": ("u", ("C", "T", SIDE, SIDE, 3))}


def list_clips(prepared: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """(path below films without suffix, uint8 [T, 64, 64, 3]) of every clip. ValueError where none is prepared."""
    concepts = load_concepts(prepared / "concepts.json")
    shapes = SHAPES | {"concept": ("iu", ("C",))}
    data = open_arrays(prepared / "clips.npz", "python tools/prepare_clips.py", shapes)
    for number, frames in zip(data["concept"].tolist(), data["frames"], strict=True):
        concept = concepts[number]
        yield Path("train" if concept.split == "train" else "heldout") / "emoji" / concept.key, frames
    folder = prepared / "scenes"
    if (folder / "moves.npz").is_file():
        moves = open_arrays(folder / "moves.npz", "python tools/prepare_scenes.py", SHAPES)["frames"]
        for index, (scene, frames) in enumerate(zip(read_scenes(folder / "moves.jsonl"), moves, strict=True)):
            yield Path("train" if scene.split == "train" else "heldout") / "moves" / f"{index:05d}", frames


def write_clips(prepared: Path) -> dict[str, int]:
    """Folder below films → how many clips it has."""
    counts: dict[str, int] = {}
    for place, frames in list_clips(prepared):
        path = prepared / "films" / place.with_suffix(".webp")
        counts[place.parent.as_posix()] = counts.get(place.parent.as_posix(), 0) + 1
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        save_video(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), path, FRAMES_PER_SECOND)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    args = parser.parse_args()
    try:
        for folder, count in sorted(write_clips(args.prepared).items()):
            print(f"{folder}: {count} clips")
    except ValueError as error:
        sys.exit(f"write_clips: {error}")


if __name__ == "__main__":
    main()
