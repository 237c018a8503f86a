"""The colours that scenes name: painting a picture in one of them, and naming the colour of pixels.

Shapes: P pixels; sprites are uint8 [H, W, 4] with alpha, colours float [P, 3] in [0, 1].
"""

from __future__ import annotations

import numpy as np

#: name → sRGB of the colour at middle brightness
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 40), "orange": (250, 140, 20), "yellow": (252, 218, 40), "green": (40, 165, 65),
    "blue": (40, 95, 225), "purple": (135, 60, 190), "pink": (252, 140, 195), "brown": (125, 78, 44),
    "grey": (150, 152, 156), "black": (42, 42, 46),
}  # fmt: skip
#: name → sRGB of a background of this colour, light enough for every thing upon it
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "light blue": (205, 228, 252), "light green": (212, 242, 208),
    "light yellow": (255, 248, 205), "light pink": (255, 222, 235), "light grey": (228, 229, 232),
}  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114])
DARK, LIGHT = 0.6, 0.45  # how far the darkest parts go to black, and the brightest to white


def paint(sprite: np.ndarray, colour: str) -> np.ndarray:
    """A sprite uint8 [H, W, 4] in shades of one colour: its darkest parts a dark shade, its brightest a light one."""
    luma = sprite[..., :3] @ LUMA / 255  # [H, W]
    seen = sprite[..., 3] > 127
    low, middle, high = np.percentile(luma[seen], (5, 50, 95)) if seen.any() else (0.0, 0.5, 1.0)
    below = np.clip((middle - luma) / max(middle - low, 0.12), 0, 1)[..., None]
    above = np.clip((luma - middle) / max(high - middle, 0.12), 0, 1)[..., None]
    base = np.array(COLOURS[colour], np.float64)
    shades = base * (1 - (1 - DARK) * below) + (255 - base) * LIGHT * above
    return np.concatenate([shades.round().astype(np.uint8), sprite[..., 3:]], axis=-1)


def convert_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB float [P, 3] in [0, 1] → Oklab [P, 3]: lightness and two axes of colour (Ottosson 2020)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.clip(rgb, 0, 1) + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES.T)
    found: np.ndarray = cones @ _TO_LAB.T
    return found


def name_colours(rgb: np.ndarray) -> np.ndarray:
    """The name of the nearest colour of `COLOURS` for each of the pixels float [P, 3] in [0, 1], as indices int [P].

    Lively pixels are named by their hue, and by lightness where that tells names of one hue apart (orange and brown);
    dull ones are grey or black.
    """
    found: np.ndarray = ((_describe(rgb)[:, None] - _PALETTE) ** 2).sum(-1).argmin(1)
    return found


def _describe(rgb: np.ndarray) -> np.ndarray:
    """Pixels [P, 3] → [P, 3] in which near ones have one name: lightness, and the direction of the hue."""
    lab = convert_to_oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    lively = np.clip((chroma - 0.02) / 0.035, 0, 1)  # 0 of grey, 1 of what has a hue
    hue = lab[:, 1:] / np.maximum(chroma, 1e-6)[:, None]
    return np.concatenate([0.55 * lab[:, :1], 0.3 * lively[:, None] * hue], axis=1)


def find_main_colour(rgb: np.ndarray) -> tuple[str, float]:
    """The colour that most of the pixels float [P, 3] have, and the share of these."""
    counts = np.bincount(name_colours(rgb), minlength=len(COLOURS))
    best = int(counts.argmax())
    return list(COLOURS)[best], float(counts[best] / max(len(rgb), 1))


_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
_PALETTE = _describe(np.array(list(COLOURS.values())) / 255)  # [colours, 3]
