"""Pictures as a terminal draws them: by kitty's graphics protocol, iTerm2's inline images, sixel, or half blocks.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol/ · https://iterm2.com/documentation-images.html · sixel: DEC
VT330/340 Graphics Programming, chapter 14. Shapes: H height, W width, T frames; pictures are [3, H, W], uint8 or float
in [0, 1].
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unimodal.cli.terminal import Screen
from unimodal.media.image import resize, to_bytes

TARGET_WIDTH = 256  # in pixels: small pictures are enlarged to about this width, each pixel to a square
_MAX_BLOCK_COLUMNS = 64
_MAX_FRAMES, _FRAME_COLUMNS = 5, 20
_KITTY_CHUNK = 4096
_SIXEL_COLOURS = 256
_CUBE_LEVELS = torch.tensor([0, 95, 135, 175, 215, 255])  # of xterm's 6×6×6 colours, numbers 16 to 231
_GREYS = torch.arange(24) * 10 + 8  # numbers 232 to 255


def draw(image: Tensor, screen: Screen) -> str:
    """A picture as one string for the terminal, without the last line break; "" if the terminal shows none."""
    pixels = to_bytes(image)
    if screen.way == "off":
        return ""
    if screen.way == "blocks":
        fitting = 2 * max(1, screen.lines - 2) * pixels.shape[2] // pixels.shape[1]
        width = max(1, min(_MAX_BLOCK_COLUMNS, screen.columns, fitting))
        return draw_half_blocks(pixels, width, screen.colours)
    pixels, columns, lines = fit_cells(pixels, screen)
    return _GRAPHICS[screen.way](pixels, columns, lines)


def draw_clip(clip: Tensor, screen: Screen) -> str:
    """A clip [T, 3, H, W] as a strip of up to five frames, the first and the last among them."""
    room = max(1, screen.columns // _FRAME_COLUMNS)
    count = min(len(clip), _MAX_FRAMES, room)
    chosen = torch.linspace(0, len(clip) - 1, count).round().long() if count > 1 else torch.tensor([0])
    strip = torch.cat([to_bytes(clip[index]) for index in chosen.tolist()], dim=2)
    if screen.way != "blocks":
        return draw(strip, screen)
    return draw_half_blocks(strip, min(screen.columns, count * 2 * _FRAME_COLUMNS), screen.colours)


def fit_cells(pixels: Tensor, screen: Screen) -> tuple[Tensor, int, int]:
    """The picture scaled to fit the screen, uint8 [3, H, W], and the columns and lines that it takes."""
    height, width = pixels.shape[1:]
    most_width = screen.columns * screen.cell_width
    most_height = max(1, screen.lines - 2) * screen.cell_height
    times = min(TARGET_WIDTH // min(height, width), most_width // width, most_height // height)
    if times > 1:
        pixels = pixels.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    elif width > most_width or height > most_height:
        scale = min(most_width / width, most_height / height)
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        pixels = (resize(pixels, *size) * 255).round().to(torch.uint8)
    columns, lines = -(-pixels.shape[2] // screen.cell_width), -(-pixels.shape[1] // screen.cell_height)
    return pixels, columns, lines


def _encode_png(pixels: Tensor) -> bytes:
    memory = io.BytesIO()
    _to_pillow(pixels).save(memory, format="PNG")
    return memory.getvalue()


def _to_pillow(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def draw_kitty(pixels: Tensor, columns: int, lines: int) -> str:
    """A PNG in chunks of 4,096 letters, shown over `columns` × `lines` cells; q=2: the terminal does not reply."""
    data = base64.b64encode(_encode_png(pixels)).decode("ascii")
    chunks = [data[start : start + _KITTY_CHUNK] for start in range(0, len(data), _KITTY_CHUNK)]
    keys = [f"a=T,f=100,q=2,c={columns},r={lines},"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{k}m={m};{chunk}\x1b\\" for k, m, chunk in zip(keys, more, chunks, strict=True))


def draw_iterm(pixels: Tensor, columns: int, lines: int) -> str:
    """A PNG as an inline file."""
    png = _encode_png(pixels)
    size = f"size={len(png)};width={columns};height={lines};preserveAspectRatio=1"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(png).decode('ascii')}\a"


def draw_sixel(pixels: Tensor, columns: int = 0, lines: int = 0) -> str:
    """Bands of six rows: each colour of a band is a run of letters, and the six bits of a letter are the rows."""
    indexed = _to_pillow(pixels).quantize(_SIXEL_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    numbers = np.asarray(indexed)  # [H, W]
    height, width = numbers.shape
    palette = np.array(indexed.getpalette(), dtype=np.int64).reshape(-1, 3)
    parts = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for number in np.unique(numbers):
        red, green, blue = (palette[number] * 100 + 127) // 255  # in percent
        parts.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        band = numbers[top : top + 6]
        weights = 1 << np.arange(len(band))  # the upper row is the lowest bit
        rows = [f"#{number}{_encode_runs(weights @ (band == number))}" for number in np.unique(band)]
        parts.append("$".join(rows))
        parts.append("-")
    parts[-1] = "\x1b\\"
    return "".join(parts)


def _encode_runs(bits: np.ndarray) -> str:
    """Sixel letters of values [W] below 64: four or more equal ones as `!count`, without zeros at the end of a row."""
    edges = np.flatnonzero(np.diff(bits)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(bits)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        if end == len(bits) and bits[start] == 0:
            break
        letter, count = chr(63 + int(bits[start])), end - start
        found.append(f"!{count}{letter}" if count > 3 else letter * count)
    return "".join(found)


def draw_half_blocks(image: Tensor, width: int, colours: int = 2**24) -> str:
    """A picture as lines of `width` upper half blocks, two pixels a character, in 24-bit colours or in xterm's 256.

    Each line ends with a reset; the text ends without a line break.
    """
    if width < 1:
        raise ValueError(f"width={width} is not a number of columns; give at least 1")
    pixels = to_bytes(image)
    height = max(1, round(width * pixels.shape[1] / pixels.shape[2]))
    pixels = (resize(pixels, height, width) * 255).round().to(torch.uint8)
    if colours == 256:
        names = [[f"5;{number}" for number in row] for row in find_nearest_of_256(pixels).tolist()]
    else:
        names = [[f"2;{r};{g};{b}" for r, g, b in row] for row in pixels.permute(1, 2, 0).tolist()]
    lines = []
    for top in range(0, height, 2):
        upper, lower = names[top], names[top + 1] if top + 1 < height else None
        line, previous = [], None
        for x in range(width):
            codes = f"38;{upper[x]}"
            if lower is not None:
                codes += f";48;{lower[x]}"
            line.append("▀" if codes == previous else f"\x1b[{codes}m▀")
            previous = codes
        lines.append("".join(line) + "\x1b[0m")
    return "\n".join(lines)


def find_nearest_of_256(pixels: Tensor) -> Tensor:
    """The number [H, W] of the nearest colour among xterm's cube and greys for pixels uint8 [3, H, W]."""
    values = pixels.long()
    steps = (values[..., None] - _CUBE_LEVELS).abs().argmin(dim=-1)  # [3, H, W]
    cube = _CUBE_LEVELS[steps]
    grey_steps = (values.float().mean(dim=0)[..., None] - _GREYS).abs().argmin(dim=-1)  # [H, W]
    greys = _GREYS[grey_steps].expand_as(values)
    nearer = ((values - greys) ** 2).sum(dim=0) < ((values - cube) ** 2).sum(dim=0)
    return torch.where(nearer, 232 + grey_steps, 16 + 36 * steps[0] + 6 * steps[1] + steps[2])


_GRAPHICS: dict[str, Callable[[Tensor, int, int], str]] = {
    "kitty": draw_kitty,
    "iterm": draw_iterm,
    "sixel": draw_sixel,
}
