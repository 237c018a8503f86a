"""Pack the animated emoji into clips of 9 frames at 8 frames a second, 64 × 64 pixels, on white.

    python tools/prepare_clips.py [--raw data/raw] [--out data/prepared]

Reads the four `lobehub-fluent-emoji-anim-*` packages and the `concepts.json` that `prepare_images.py` wrote (so concept
ids and the split are the same), and writes `clips.npz`: `frames` uint8 [C, 9, 64, 64, 3], `concept` int32 [C].

A clip starts with the animation. When its beginning hardly moves, the start among a few fixed offsets whose nine frames
move most is taken instead. A clip whose frames differ by less than 0.02 of the full range, averaged over all pairs of
frames, is dropped: it is (nearly) a still picture. Frames are picked by timestamp, so a source of any rate
gives 8 frames a second.

Shapes: C clips, T frames.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unimodal.data.encoded_media import make_code_point_key
from unimodal.files import write_bytes_atomically

SIZE = 64
NUM_FRAMES = 9
FPS = 8.0
OFFSETS_S = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # starts that are tried when the first hardly moves
MIN_MOTION = 0.02  # see `measure_motion`


def measure_motion(frames: np.ndarray) -> float:
    """Mean absolute difference of two frames, over all pairs of frames, on [0, 1]. frames: uint8 [T, H, W, 3]."""
    levels = frames.astype(np.float32) / 255
    pairs = [np.abs(levels[later] - levels[earlier]).mean() for later in range(len(levels)) for earlier in range(later)]
    return float(np.mean(pairs))


class Animation:
    """An animated WebP, decoded from the front and only as far as asked."""

    def __init__(self, path: Path):
        self.picture = Image.open(path)
        self.num_frames: int = getattr(self.picture, "n_frames", 1)
        self.frames: list[np.ndarray] = []  # reduced, uint8 [H, W, 3]
        self.times_s: list[float] = []  # when each frame begins
        self.decoded_s = 0.0  # when the last of them ends

    def decode_until(self, end_s: float) -> None:
        while len(self.frames) < self.num_frames and self.decoded_s <= end_s:
            self.picture.seek(len(self.frames))
            self.picture.load()
            self.frames.append(put_on_white(self.picture))
            self.times_s.append(self.decoded_s)
            self.decoded_s += self.picture.info.get("duration", 1000 / 24) / 1000

    def read_clip(self, start_s: float) -> np.ndarray | None:
        """uint8 [T, H, W, 3] from `start_s`: the frame nearest to each due time; None when it ends before."""
        due = start_s + np.arange(NUM_FRAMES) / FPS
        self.decode_until(due[-1] + 0.1)  # one frame past the last due time settles which is nearest
        if start_s > 0 and self.decoded_s < due[-1]:
            return None
        times = np.array(self.times_s)
        return np.stack([self.frames[int(np.abs(times - at).argmin())] for at in due])


def put_on_white(picture: Image.Image) -> np.ndarray:
    rgba = picture.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    canvas.alpha_composite(rgba)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))  # antialiased


def choose_best_clip(path: Path) -> tuple[np.ndarray, float]:
    """(clip, its motion): from the start; when that hardly moves, the liveliest of `OFFSETS_S` (first wins a tie)."""
    animation = Animation(path)
    best: tuple[np.ndarray, float] | None = None
    for start_s in OFFSETS_S:
        clip = animation.read_clip(start_s)
        if clip is None:
            break
        moved = measure_motion(clip) if animation.num_frames > 1 else 0.0
        if best is None or moved > best[1]:
            best = clip, moved
        if (start_s == 0 and moved >= MIN_MOTION) or animation.num_frames == 1:
            break
    assert best is not None
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared"), help="folder to write to")
    options = parser.parse_args(arguments)
    concepts_file = options.out / "concepts.json"
    if not concepts_file.exists():
        print(f"{concepts_file} is missing: run `python tools/prepare_images.py` first", file=sys.stderr)
        raise SystemExit(2)
    concept_of_key = {entry["key"]: entry["id"] for entry in json.loads(concepts_file.read_text("utf-8"))}
    paths: dict[str, Path] = {}
    for number in (1, 2, 3, 4):
        folder = options.raw / f"lobehub-fluent-emoji-anim-{number}" / "package" / "assets"
        if not folder.is_dir():
            print(f"{folder} is missing: run `python tools/fetch_data.py --set video` first", file=sys.stderr)
            raise SystemExit(2)
        paths.update({make_code_point_key(path.stem): path for path in sorted(folder.glob("*.webp"))})

    wanted = sorted((concept_of_key[key], path) for key, path in paths.items() if key in concept_of_key)
    clips: list[np.ndarray] = []
    concept_ids: list[int] = []
    dropped = 0
    begun = time.monotonic()
    for done, (concept, path) in enumerate(wanted):
        clip, moved = choose_best_clip(path)
        if moved < MIN_MOTION:
            dropped += 1
        else:
            clips.append(clip)
            concept_ids.append(concept)
        if done % 50 == 0:
            print(f"{done}/{len(wanted)} animations, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    archive = io.BytesIO()  # np.savez dates every member 1980, so equal arrays give equal bytes
    np.savez(archive, frames=np.stack(clips), concept=np.array(concept_ids, np.int32))
    write_bytes_atomically(options.out / "clips.npz", archive.getvalue())
    manifest = options.out / "manifest.json"
    known = json.loads(manifest.read_text("utf-8")) if manifest.exists() else {}
    known["clips.npz"] = hashlib.sha256(archive.getvalue()).hexdigest()
    write_bytes_atomically(manifest, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    print(f"{len(clips)} clips kept, {dropped} still ones dropped", file=sys.stderr)


if __name__ == "__main__":
    main()
