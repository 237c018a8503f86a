"""One medium as it is trained on: a random part of it, or the middle one, brought to a size.

Shapes: T frames or samples, H, W height and width of a file, h, w of what is made.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unimodal.media.access import load_medium
from unimodal.media.containers import measure_film
from unimodal.media.files import MediaSource
from unimodal.media.registry import FileTarget

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class ViewOptions:
    """How a medium becomes what is trained on.

    crop_scale: the area of a random crop, as a share of the largest of its shape. flip: mirror half of them.
    upscale: magnify pictures that are smaller than the size, which are left out otherwise. crop_s: of longer sounds.
    as_clips: a picture becomes a clip of one frame, for films' tokenizers. whole: refuse sounds longer than crop_s,
    whose texts would not be of the part that is taken.
    """

    crop_scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = True
    upscale: bool = False
    crop_s: float = 2.0
    as_clips: bool = False
    whole: bool = False


def read_view(
    modality: str,
    source: MediaSource,
    target: FileTarget,
    size: Size | None,
    options: ViewOptions,
    rng: random.Random | None,
) -> Tensor:
    """A medium in the axes of its record, floats. rng: of the random part; None takes the middle and the beginning.

    Pictures [3, h, w] and clips [T, 3, h, w] have `size`; sounds [T] are as long as `crop_s` at most.
    Raises ValueError for a file that is not usable and for a picture that is too small.
    """
    if modality == "image":
        assert size is not None
        picture = crop_to_size(load_medium(modality, source), size, options, rng)
        return picture[None] if options.as_clips else picture
    if modality == "video":
        assert size is not None
        return crop_to_size(_read_clip(source, target, rng), size, options, rng)
    medium = load_medium(modality, source, target)
    if modality == "audio" and target.sample_rate_hz is not None:
        length = min(len(medium), round(options.crop_s * target.sample_rate_hz))
        if options.whole and length < len(medium):
            long_s = len(medium) / target.sample_rate_hz
            raise ValueError(
                f"it is {long_s:.1f} s long, and its text is of the whole; raise crop_s {options.crop_s:g}"
            )
        first = rng.randint(0, len(medium) - length) if rng is not None else 0
        return medium[first : first + length]
    return medium


def _read_clip(source: MediaSource, target: FileTarget, rng: random.Random | None) -> Tensor:
    """So many frames at the target's rate, from a random moment: float [T, 3, H, W]."""
    rate, count = target.frames_per_second or 8.0, target.num_frames
    if count is None:
        return load_medium("video", source, FileTarget(frames_per_second=rate))
    wanted_s, duration_s = count / rate, measure_film(source) or 0.0
    start_s = rng.uniform(0, max(0.0, duration_s - wanted_s)) if rng is not None else 0.0
    part = FileTarget(frames_per_second=rate, num_frames=count, start_s=start_s, seconds=wanted_s)
    return load_medium("video", source, part)


def crop_to_size(picture: Tensor, size: Size, options: ViewOptions, rng: random.Random | None) -> Tensor:
    """uint8 or float [..., 3, H, W] → float [..., 3, h, w] in [0, 1]: the part of h/w's shape, random or in the middle,
    resized (bicubic, antialiased). Raises ValueError for a picture that would have to be magnified."""
    (height, width), (h, w) = picture.shape[-2:], size
    scale = min(height / h, width / w)  # of the largest box of that shape
    if scale < 1 and not options.upscale:
        raise ValueError(f"it has {height}×{width} pixels, fewer than {h}×{w}; take smaller sizes, or set upscale")
    if rng is not None:
        low, high = options.crop_scale
        scale = max(scale * rng.uniform(low, high) ** 0.5, min(scale, 1.0))
    box_height, box_width = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
    if rng is None:
        top, left = (height - box_height) // 2, (width - box_width) // 2
    else:
        top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
    part = picture[..., top : top + box_height, left : left + box_width]
    part = part.float() / 255 if part.dtype == torch.uint8 else part
    if rng is not None and options.flip and rng.random() < 0.5:
        part = part.flip(-1)
    if (box_height, box_width) == size:
        return part.contiguous()
    frames = part.reshape(-1, *part.shape[-3:])
    resized = interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    return resized.reshape(*part.shape[:-2], *size)
