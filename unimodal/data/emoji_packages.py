"""The pictures of the emoji packages, by code points: four drawing styles, each picture with its transparency.

`tools/prepare_images.py` puts them on white; `tools/prepare_scenes.py` composes scenes of them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from typing_extensions import TypedDict

from unimodal.data.encoded_media import make_code_point_key

RENDER_SIZE = 256  # side at which vector pictures are drawn before they are reduced, pixels

#: (key of the code points, label) → the picture with its alpha, or None where the style has none
DrawEmoji = Callable[[str, str], Image.Image | None]


class _Icon(TypedDict, total=False):
    body: str
    parent: str
    hFlip: bool
    width: int
    height: int


def open_emoji_styles(raw: Path) -> dict[str, DrawEmoji]:
    """Style → what draws its emoji, from the packages below `raw`. Raises FileNotFoundError for a missing package."""
    return {
        "noto": _read_bitmaps(raw / "emoji-datasource-google" / "package" / "img" / "google" / "64", ".png"),
        "fluent3d": _read_bitmaps(raw / "lobehub-fluent-emoji-3d" / "package" / "assets", ".webp"),
        "fluentflat": _open_iconify(raw / "iconify-json-fluent-emoji-flat" / "package"),
        "twemoji": _read_vectors(raw / "twemoji-svg" / "package"),
    }


def render_svg(markup: str, size: int = RENDER_SIZE) -> Image.Image:
    """An SVG document, `size` pixels wide."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=markup, width=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def _index_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Code points without `fe0f` → file. Sorted, so that of two files for one key the same wins everywhere."""
    return {make_code_point_key(path.stem): path for path in sorted(folder.glob(f"*{suffix}"))}


def _read_bitmaps(folder: Path, suffix: str) -> DrawEmoji:
    files = _index_files(folder, suffix)

    def draw(key: str, label: str) -> Image.Image | None:
        path = files.get(key)
        if path is None:
            return None
        with Image.open(path) as picture:
            return picture.convert("RGBA")

    return draw


def _read_vectors(folder: Path) -> DrawEmoji:
    files = _index_files(folder, ".svg")

    def draw(key: str, label: str) -> Image.Image | None:
        path = files.get(key)
        return None if path is None else render_svg(path.read_text("utf-8"))

    return draw


def _open_iconify(folder: Path) -> DrawEmoji:
    """An Iconify set: `chars.json` maps code points to icon names; the few it lacks are found by their label."""
    icon_set = json.loads((folder / "icons.json").read_text("utf-8"))
    chars: dict[str, str] = json.loads((folder / "chars.json").read_text("utf-8"))
    names = {make_code_point_key(code): name for code, name in sorted(chars.items())}
    aliases: dict[str, _Icon] = icon_set.get("aliases", {})
    icons: dict[str, _Icon] = icon_set["icons"]

    def draw(key: str, label: str) -> Image.Image | None:
        name = names.get(key, re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-"))
        alias = aliases.get(name, {})
        icon = icons.get(alias.get("parent", name))
        if icon is None:
            return None
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        markup = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        picture = render_svg(markup)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if alias.get("hFlip") else picture

    return draw
