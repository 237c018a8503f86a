"""Clips of animated emoji: of each animation the second that moves most.

Shapes: T frames, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

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
            self.frames.append(_reduce_on_white(self.picture))
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


def _reduce_on_white(picture: Image.Image) -> np.ndarray:
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
