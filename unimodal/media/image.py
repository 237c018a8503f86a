"""Picture files to uint8 tensors, fitted to a model's square, and back to files.

PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read by Pillow, HEIC by pillow-heif where it is installed.

Shapes: H height, W width, S size; channels are red, green, blue, in sRGB: a profile of other colours is applied.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from unimodal.files import quote_path, write_bytes_atomically
from unimodal.media.files import MediaSource, Opened, open_source, silence_pillow
from unimodal.media.headers import Content, read_content
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, make_damage_error, make_mismatch_error
from unimodal.media.registry import FileTarget

_Encoding = tuple[str, dict[str, int]]  # Pillow's format and its options
_JPEG: _Encoding = ("JPEG", {"quality": 95, "subsampling": 0})
_ENCODINGS: dict[str, _Encoding] = {
    ".png": ("PNG", {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": ("WEBP", {"lossless": True}),
}


class _AnimatedWebp(WebPImagePlugin.WebPImageFile):
    """Frames with their transparency.

    Pillow drops it if the header announces none; a frame smaller than the picture would then be black around it.
    """

    def _open(self) -> None:
        super()._open()
        if self.rawmode == "RGBX":
            self.rawmode = self._mode = "RGBA"


# Opened by class, not by Image.open: only these decoders ever see a file.
_Plugin = Callable[[IO[bytes]], Image.Image]
_PLUGINS: dict[str, _Plugin] = {
    "PNG picture": PngImagePlugin.PngImageFile,
    "JPEG picture": JpegImagePlugin.jpeg_factory,
    "GIF picture": GifImagePlugin.GifImageFile,
    "animated GIF": GifImagePlugin.GifImageFile,
    "WebP picture": WebPImagePlugin.WebPImageFile,
    "animated WebP": _AnimatedWebp,
    "animated PNG": PngImagePlugin.PngImageFile,
    "BMP picture": BmpImagePlugin.BmpImageFile,
    "TIFF picture": TiffImagePlugin.TiffImageFile,
    "AVIF picture": AvifImagePlugin.AvifImageFile,
}
_HEIC = "HEIC picture"
# EXIF orientation → how to turn the stored picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_STRIP_ROWS = 256  # of a large picture at a time, so that memory follows the result


def load_image(
    source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS, tell: Callable[[str], None] = lambda note: None
) -> Tensor:
    """A picture as uint8 [3, H, W], upright, transparent parts on white; the first frame of an animated one.

    tell: called with a sentence where other frames are left out. Raises ValueError for a file that is missing, empty,
    not a picture, truncated, damaged or over a limit.
    """
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.name not in (*_PLUGINS, _HEIC):
            raise make_mismatch_error(opened.name, content, "image")
        check_picture_header(opened, content, limits)
        if content.name.startswith("animated"):
            tell("its first frame is shown; give the file as video to have the others seen")
        with silence_pillow():
            image = open_picture(opened, content, limits)
            try:
                image.load()
                upright = _UPRIGHT.get(_read_orientation(image))
                pixels = flatten(to_srgb(image if upright is None else image.transpose(upright)))
            except Exception as error:  # Pillow's decoders raise many types on damaged data
                raise make_damage_error(opened.name, content, error) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [H, W, 3] → [3, H, W]


def load_image_for(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """`load_image` in the form that the registry calls; pictures have no rate, and the tokenizer fits their size."""
    return load_image(source, limits, target.tell)


def save_image_at(image: Tensor, path: str | os.PathLike[str], rate: float | None) -> None:
    """`save_image` in the form that the registry calls."""
    save_image(image, path)


def check_picture_header(opened: Opened, content: Content, limits: MediaLimits) -> None:
    """Checks a PNG, JPEG, GIF or WebP by its header alone. Raises ValueError."""
    if content.width is not None and content.height is not None:
        limits.check_pixels(opened.name, content.width, content.height)
        if content.width * content.height == 0:
            raise ValueError(f"{opened.name} has no pixels ({content.width}×{content.height}); copy or export it again")
    if content.truncated:
        raise make_damage_error(opened.name, content)


def open_picture(opened: Opened, content: Content, limits: MediaLimits) -> Image.Image:
    """Pillow's image for a recognised file, its size checked; nothing is decoded yet."""
    plugin = _PLUGINS.get(content.name) or _find_heif_plugin(opened.name)
    try:
        image = plugin(opened.rewind())
    except Exception as error:
        raise make_damage_error(opened.name, content, error) from None
    limits.check_pixels(opened.name, *image.size)
    return image


def _find_heif_plugin(name: str) -> _Plugin:
    try:
        from pillow_heif import HeifImageFile  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ValueError(
            f"{name} is an HEIC picture, which needs the package pillow-heif: pip install 'unimodal[heic]'"
        ) from None
    return HeifImageFile


def to_srgb(image: Image.Image) -> Image.Image:
    """A Pillow image in the colours of sRGB, converted from its ICC profile; its transparency stays.

    A picture counts as sRGB if it has no profile, a damaged one, or one for other colours than its pixels have. The
    rendering is relative to white, with black points matched, as in browsers.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L", "LA"):
        return image
    try:
        found = ImageCms.getOpenProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(found).lower():
            return image
        alpha = image.getchannel("A") if "A" in image.mode else None
        colours = image.convert(image.mode.removesuffix("A")) if alpha is not None else image
        converted = ImageCms.profileToProfile(
            colours,
            found,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert converted is not None  # None only for a conversion in place
    if alpha is not None:
        converted.putalpha(alpha)
    elif isinstance(image.info.get("transparency"), bytes | tuple) or converted.mode == "RGB":
        converted.info.pop("transparency", None)
    return converted


def _read_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: the picture itself is fine
        return 1
    return value if isinstance(value, int) else 1


def flatten(image: Image.Image) -> np.ndarray:
    """Any Pillow image as uint8 [H, W, 3]: c·α + 255·(1 − α) where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey
        values = np.asarray(image)  # [H, W]
        hidden = image.info.get("transparency")
        pixels = np.empty((*values.shape, 3), np.uint8)
        for start in range(0, len(values), _STRIP_ROWS):
            strip = values[start : start + _STRIP_ROWS].clip(0, 65535).astype(np.uint32)
            grey = ((strip * 255 + 32767) // 65535).astype(np.uint8)
            if isinstance(hidden, int):
                grey[strip == hidden] = 255
            pixels[start : start + _STRIP_ROWS] = grey[:, :, None]
        return pixels
    if image.mode == "F":  # TIFF of floats: 0 to 1
        return np.repeat((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)
    hidden = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(hidden, tuple) and max(hidden) > 255:  # of a 16-bit picture
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    if hidden is None and not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = np.array(image.convert("RGBA"))  # [H, W, 4]
    return blend_on_white(rgba)


def blend_on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] → [H, W, 3], rounded to nearest. One channel at a time, to stay small."""
    alpha = rgba[:, :, 3].astype(np.uint32)
    pixels = np.empty((*rgba.shape[:2], 3), np.uint8)
    for channel in range(3):
        pixels[:, :, channel] = (rgba[:, :, channel] * alpha + 255 * (255 - alpha) + 127) // 255
    return pixels


def fit_image(image: Tensor, size: int, mode: Literal["pad", "crop", "stretch"] = "pad") -> Tensor:
    """uint8 [3, H, W] → float32 [3, S, S] in [0, 1], antialiased.

    "pad" shows the whole picture between white bars, "crop" its central square, "stretch" all of it, distorted.
    A picture that already is S × S keeps its values exactly.
    """
    _check_fit(image, size)
    height, width = image.shape[-2:]
    if mode == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    elif mode not in ("pad", "stretch"):
        raise ValueError(f"mode {mode!r} is unknown; choose pad, crop or stretch")
    if mode != "pad":
        return resize(image, size, size)
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    fitted = torch.ones(3, size, size)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    fitted[:, top : top + inner_height, left : left + inner_width] = resize(image, inner_height, inner_width)
    return fitted


def _check_fit(image: Tensor, size: int) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"expected a uint8 [3, H, W] picture, got {image.dtype} {list(image.shape)}; use load_image")
    if size < 1:
        raise ValueError(f"size={size} is not a picture size; give a number of pixels above 0")


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3, H, W] → float32 [3, height, width] in [0, 1]: bicubic, antialiased; the identity at the same size."""
    if image.shape[-2:] == (height, width):
        return image.float() / 255
    channels = [  # one at a time: a third of the memory
        F.interpolate(channel[None, None].float(), (height, width), mode="bicubic", antialias=True)[0]
        for channel in image
    ]
    return (torch.cat(channels) / 255).clamp(0, 1)


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Save [3, H, W], float in [0, 1] or uint8, as PNG or WebP (both exact to 8 bits) or JPEG, by the suffix.

    Raises ValueError for another suffix or shape, or values that are not numbers. Nothing half-written is left.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _ENCODINGS:
        wrong = repr(suffix) if suffix else "a name without suffix"
        raise ValueError(f"{quote_path(path)}: cannot save a picture as {wrong}; use .png, .jpg or .webp")
    picture = Image.fromarray(to_bytes(image).permute(1, 2, 0).contiguous().numpy())
    memory = io.BytesIO()  # encoded first: an encoder's error is the caller's mistake, a full disk is not
    format_name, options = _ENCODINGS[suffix]
    try:
        picture.save(memory, format_name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{quote_path(path)}: {suffix} cannot hold {picture.width}×{picture.height} pixels ({error}); use .png"
        ) from None
    write_bytes_atomically(path, memory.getvalue(), make_folder=False)


def to_bytes(image: Tensor) -> Tensor:
    """[3, H, W] in [0, 1] → uint8, rounded to nearest; uint8 passes. Raises ValueError for a bad shape or NaN."""
    image = image.detach().cpu()
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"expected a picture [3, H, W], got shape {list(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"expected a float or uint8 picture, got {image.dtype}; scale it to [0, 1]")
    image = image.float()
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not numbers (NaN or infinity); check what made it")
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
