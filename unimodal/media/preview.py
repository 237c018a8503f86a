"""Pictures of results: a sheet of many pictures, a sound's spectrogram.

Shapes: H height, W width, T samples; pictures are [3, H, W], uint8 or float in [0, 1].
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unimodal.media.image import to_bytes

_GAP = 4  # pixels between the pictures of a sheet
_LABEL_SIZE = 11  # of the letters, in pixels
_LABEL_LINES = 2
_RANGE_DB = 80.0
# dark violet to pale yellow, evenly spaced; as ordered in lightness, so also readable in grey
_COLOURS = torch.tensor(
    [
        [0, 0, 4],
        [40, 17, 89],
        [101, 26, 128],
        [159, 47, 127],
        [212, 72, 107],
        [245, 118, 91],
        [254, 178, 120],
        [252, 253, 191],
    ]
)


def draw_contact_sheet(images: Sequence[Tensor], columns: int, labels: Sequence[str] | None = None) -> Tensor:
    """Pictures in rows on white, each in a cell of the largest one's size, with up to two lines of label below.

    Returns float32 [3, H, W]. Raises ValueError for no pictures, fewer than one column or a wrong number of labels.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture; got an empty list")
    if columns < 1:
        raise ValueError(f"columns={columns} is not a number of columns; give at least 1")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} pictures; give one each")
    pictures = [to_bytes(image) for image in images]
    cell_height, cell_width = max(p.shape[1] for p in pictures), max(p.shape[2] for p in pictures)
    font = ImageFont.load_default(_LABEL_SIZE)
    line_height = _LABEL_SIZE + 3
    label_height = 0 if labels is None else _LABEL_LINES * line_height
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step_x, step_y = cell_width + _GAP, cell_height + label_height + _GAP
    sheet = torch.full((3, rows * step_y + _GAP, columns * step_x + _GAP), 255, dtype=torch.uint8)
    for index, picture in enumerate(pictures):
        left, top = _GAP + index % columns * step_x, _GAP + index // columns * step_y
        height, width = picture.shape[1:]
        x, y = left + (cell_width - width) // 2, top + (cell_height - height) // 2
        sheet[:, y : y + height, x : x + width] = picture
    if labels is None:
        return sheet.float() / 255
    canvas = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(canvas)
    for index, label in enumerate(labels):
        left, top = _GAP + index % columns * step_x, _GAP + index // columns * step_y + cell_height
        for number, line in enumerate(_wrap(label, font, cell_width)):
            draw.text((left, top + number * line_height), line, fill=(40, 40, 40), font=font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The label in at most `_LABEL_LINES` lines of `width` pixels, broken at spaces if possible; dots mark a cut."""
    lines: list[str] = []
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()  # all that Pillow's own font has
    rest = " ".join(plain.split())
    while rest and len(lines) < _LABEL_LINES:
        fits = len(rest)
        while fits > 1 and font.getlength(rest[:fits]) > width:
            fits -= 1
        if fits == len(rest):
            return [*lines, rest]
        if len(lines) == _LABEL_LINES - 1:
            while fits > 1 and font.getlength(rest[:fits] + "...") > width:
                fits -= 1
            return [*lines, rest[:fits].rstrip() + "..."]
        space = rest.rfind(" ", 0, fits + 1)
        if space > 0:
            fits = space
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    return lines


def draw_spectrogram(samples: Tensor, sample_rate_hz: int, height: int = 128, max_width: int = 1024) -> Tensor:
    """A sound [T] as its log-mel spectrogram, float32 [3, height, W]: low tones below, 80 dB from dark to light.

    W is one column per 8 ms, or `max_width` for a sound that would give more. Raises ValueError for an unusable sound.
    """
    import torchaudio.functional  # type: ignore[import-untyped]

    if samples.ndim != 1 or samples.shape[0] == 0 or not samples.is_floating_point():
        raise ValueError(f"expected a float sound [T], got {samples.dtype} {list(samples.shape)}")
    samples = samples.detach().cpu().float()
    if not torch.isfinite(samples).all():
        raise ValueError("the sound holds values that are not numbers (NaN or infinity); check what made it")
    num_fft = 1 << max(5, round(sample_rate_hz * 0.048).bit_length())  # 48 to 96 ms
    hop = max(round(sample_rate_hz * 0.008), -(-samples.shape[0] // max_width), 1)
    edges = "reflect" if len(samples) > num_fft // 2 else "constant"
    padded = F.pad(samples[None], (num_fft // 2, num_fft // 2), mode=edges)[0]
    window = torch.hann_window(num_fft)
    power = torch.stft(padded, num_fft, hop, window=window, center=False, return_complex=True).abs().square()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of low bands narrower than a bin, which are then empty
        filters = torchaudio.functional.melscale_fbanks(
            num_fft // 2 + 1, 0.0, sample_rate_hz / 2, 80, sample_rate_hz, norm="slaney", mel_scale="slaney"
        )  # [num_fft / 2 + 1, 80]
    decibels = 10 * (filters.T @ power).clamp_min(1e-12).log10()  # [80, W]
    level = ((decibels - decibels.max()) / _RANGE_DB + 1).clamp(0, 1)
    if samples.abs().max() == 0:
        level = torch.zeros_like(level)
    bands = F.interpolate(level.flip(0)[None, None], (height, level.shape[1]), mode="bilinear")[0, 0]  # [height, W]
    position = bands[:, :max_width] * (len(_COLOURS) - 1)
    below = position.floor().long().clamp(max=len(_COLOURS) - 2)
    mix = (position - below)[..., None]
    colours = _COLOURS.float() / 255
    return (colours[below] * (1 - mix) + colours[below + 1] * mix).permute(2, 0, 1).contiguous()
