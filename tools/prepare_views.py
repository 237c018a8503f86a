"""Augmented views of every training picture, with frozen-trunk features, for the image tokenizer and for nano.

    python tools/prepare_views.py [--views 4] [--shard 0/1]

View 0 is the picture itself; the others are drawn by a generator seeded with (seed, picture, view): rotation, scale,
shift on white, hue, saturation, contrast, now and then grey or blurred. Pictures of the evaluation-only style get
view 0 alone. Writes data/prepared/views.npz: pixels uint8 [M, V, 64, 64, 3], features float16 [M, V, 1280]
(EfficientNet-lite0 at 128 pixels). With several shards each process writes its own part; ``--join n`` puts them
together.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unimodal.data.augmented_views import augment  # noqa: E402
from unimodal.data.prepared_arrays import SOURCE, hash_file  # noqa: E402
from unimodal.tokenizers.nano.efficientnet import load_pretrained  # noqa: E402

PREPARED = Path("data/prepared")
EVALUATION_STYLE = "twemoji"
TRUNK_SIZE = 128


def make_shard(num_views: int, index: int, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    data = np.load(PREPARED / "images.npz")
    trunk = load_pretrained().to(memory_format=torch.channels_last)
    rows = range(index, len(data["pixels"]), count)
    pixels = np.full((len(rows), num_views, 64, 64, 3), 255, np.uint8)
    features = np.zeros((len(rows), num_views, 1280), np.float16)
    all_pixels, styles = data["pixels"], data["style"]
    for slot, row in enumerate(rows):
        picture = torch.from_numpy(all_pixels[row]).permute(2, 0, 1).float() / 255
        last = 1 if styles[row] == EVALUATION_STYLE else num_views
        views = [picture] + [
            augment(picture, torch.Generator().manual_seed((seed * 1_000_003 + row) * 101 + v)) for v in range(1, last)
        ]
        batch = (torch.stack(views) * 255).round() / 255
        pixels[slot, :last] = (batch * 255).round().byte().permute(0, 2, 3, 1).numpy()
        with torch.inference_mode():
            size = (TRUNK_SIZE, TRUNK_SIZE)
            large = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", antialias=True)
            features[slot, :last] = trunk(large.contiguous(memory_format=torch.channels_last)).half().numpy()
        if slot % 500 == 0:
            print(f"shard {index}/{count}: {slot}/{len(rows)}", file=sys.stderr, flush=True)
    _save(PREPARED / f"views-{index}-of-{count}.npz", pixels=pixels, features=features)


def join_shards(count: int) -> None:
    parts = [np.load(PREPARED / f"views-{index}-of-{count}.npz") for index in range(count)]
    total = sum(len(part["pixels"]) for part in parts)
    joined = {}
    for key in ("pixels", "features"):
        first = parts[0][key]
        joined[key] = np.empty((total, *first.shape[1:]), first.dtype)
        for index, part in enumerate(parts):
            joined[key][index::count] = part[key]
    _save(PREPARED / "views.npz", **joined, **{SOURCE: np.array(hash_file(PREPARED / "images.npz"))})
    for index in range(count):
        (PREPARED / f"views-{index}-of-{count}.npz").unlink()


def _save(path: Path, **arrays: np.ndarray) -> None:
    temporary = path.with_suffix(".part")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--shard", default="0/1", help="this process's part, as index/count")
    parser.add_argument("--join", type=int, default=0, help="join this many finished shards")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.join:
        join_shards(args.join)
        return
    index, count = (int(part) for part in args.shard.split("/"))
    make_shard(args.views, index, count, args.seed)
    if count == 1:
        join_shards(1)


if __name__ == "__main__":
    main()
