"""Draws scenes: sprites, painted and reduced, on a plain or simple background.

Shapes: sprites uint8 [K, 64, 64, 4], each filling its square in its longer side; pictures uint8 [64, 64, 3].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from unimodal.data.order import make_generator
from unimodal.data.scenes.colours import BACKGROUNDS, paint
from unimodal.data.scenes.scene import NUM_FRAMES, SIDE, Motion, Placed, Scene

CACHED = 20_000  # painted and reduced sprites that are kept
#: of backgrounds other than white
PATTERNS = ("plain", "shaded", "stripes", "dots")
TRAVEL = 26.0  # pixels that a thing slides in a clip


class Painter:
    """Draws scenes of some sprites."""

    def __init__(self, sprites: np.ndarray) -> None:
        self.sprites = sprites
        self.reduce = lru_cache(CACHED)(self._reduce)

    def draw(self, scene: Scene) -> np.ndarray:
        """A picture of a scene, uint8 [64, 64, 3]; of a clip its first frame."""
        return self.draw_things(scene, scene.things)

    def draw_clip(self, scene: Scene) -> np.ndarray:
        """The frames of a clip, uint8 [9, 64, 64, 3]: the first thing moves, the others stay."""
        assert scene.motion is not None
        first, *still = scene.things
        frames = []
        for number in range(NUM_FRAMES):
            moved, turn = move(first, scene.motion, number / (NUM_FRAMES - 1))
            things = [*still] if moved is None else [*still, moved]
            frames.append(self.draw_things(scene, things, turn))
        return np.stack(frames)

    def draw_things(self, scene: Scene, things: Sequence[Placed], turn: float = 0.0) -> np.ndarray:
        """These things on the background of a scene; the last of them is turned by so many degrees."""
        canvas = Image.fromarray(make_background(scene.background, scene.seed))
        for placed in things:
            picture, corner = self._place(placed, turn if placed is things[-1] else 0.0)
            canvas.paste(picture, corner, picture)
        return np.asarray(canvas)

    def draw_masks(self, scene: Scene) -> np.ndarray:
        """What is seen of each thing of a scene, bool [T, 64, 64]: where its alpha is above a half and no later thing
        lies."""
        masks = np.zeros((len(scene.things), SIDE, SIDE), bool)
        for number, placed in enumerate(scene.things):
            picture, corner = self._place(placed)
            canvas = Image.new("L", (SIDE, SIDE))
            canvas.paste(picture.getchannel("A"), corner)
            masks[number] = np.asarray(canvas) > 127
            masks[:number] &= ~masks[number]
        return masks

    def _place(self, placed: Placed, angle: float = 0.0) -> tuple[Image.Image, tuple[int, int]]:
        """A thing as it is pasted, and the left upper corner."""
        small = self.reduce(placed.sprite, placed.colour, max(2, round(placed.size)))
        picture = small.rotate(angle, Image.Resampling.BILINEAR, expand=True) if angle else small
        return picture, (round(placed.x - picture.width / 2), round(placed.y - picture.height / 2))

    def _reduce(self, sprite: int, colour: str, size: int) -> Image.Image:
        pixels = self.sprites[sprite]
        picture = Image.fromarray(paint(pixels, colour) if colour else pixels, "RGBA")
        if size == SIDE:
            return picture
        # alpha is taken into the colours first, so that invisible pixels do not bleed into the rim
        return picture.convert("RGBa").resize((size, size), Image.Resampling.BICUBIC).convert("RGBA")


def move(placed: Placed, motion: Motion, at: float) -> tuple[Placed | None, float]:
    """A thing at a moment of its motion, `at` 0 to 1, and the degrees by which it is turned; None where it is gone."""
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    if motion in ways:
        across, down = ways[motion]
        way = (at - 0.5) * TRAVEL
        return replace(placed, x=placed.x + across * way, y=placed.y + down * way), 0.0
    if motion == "turns":
        return placed, -360.0 * at
    if motion == "grows" or motion == "shrinks":
        share = at if motion == "grows" else 1 - at
        return replace(placed, size=placed.size * (0.4 + 0.6 * share)), 0.0
    share = at if motion == "appears" else 1 - at
    return (placed if share > 0.4 else None), 0.0


@lru_cache(64)
def make_background(name: str, seed: int) -> np.ndarray:
    """A background uint8 [64, 64, 3] of a named colour: white is plain, of others the seed chooses a faint pattern."""
    base = np.array(BACKGROUNDS[name], np.float64)
    draws = make_generator("background", seed)
    pattern = PATTERNS[int(draws.random() * len(PATTERNS))] if name != "white" else "plain"
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    shade = np.zeros((SIDE, SIDE))
    if pattern == "shaded":
        shade = rows / (SIDE - 1)
    elif pattern == "stripes":
        shade = ((rows * math.sin(seed) + columns * math.cos(seed)) // 8 % 2 == 0).astype(float)
    elif pattern == "dots":
        shade = (((rows % 12 - 6) ** 2 + (columns % 12 - 6) ** 2) < 9).astype(float)
    return (base * (1 - 0.045 * shade[..., None])).round().astype(np.uint8)
