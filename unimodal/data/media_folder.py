"""Media as rows name them → media parts: a path inside the dataset's folder, bytes, a data URL, a Hugging Face dict.

A dataset is somebody else's file: what it names may only be read inside the folder its media lie in. Relative paths
start there, absolute ones must lie there, and links are followed before that is decided. Nothing is decoded and nothing
is fetched from the network here.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from unimodal.data.messages import MediaPart
from unimodal.files import quote_path

# keys of a dict that hold a medium's bytes or name, in the order in which they are looked at
_SOURCES = ("bytes", "data", "path", "url", "file")


class MediaFolder:
    """The folder that a dataset's media lie in; None where a dataset brings its media along and names no files."""

    def __init__(self, root: str | os.PathLike[str] | None) -> None:
        self.root = None if root is None else Path(root)
        self._real = None if root is None else os.path.realpath(root)

    def part(self, value: Any, modality: str) -> MediaPart:
        """The part for one value of a media column or of a typed part.

        Raises ValueError for a file that is not there or lies outside, a URL, and a value that is no medium.
        """
        if isinstance(value, Mapping):
            given = next((key for key in _SOURCES if value.get(key) is not None), None)
            if given is None:
                known = ", ".join(_SOURCES)
                raise ValueError(
                    f"a medium ({modality}) is a dict with {', '.join(map(str, value)) or 'nothing'}; use {known}"
                )
            value = value[given]
            if given == "data" and isinstance(value, str):
                return _decoded(value, modality)
        if isinstance(value, (bytes, bytearray)):
            if not value:
                raise ValueError(f"a medium ({modality}) has no bytes; export the row again")
            return MediaPart(type=modality, data=bytes(value))
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError(
                f"a medium ({modality}) is given as {type(value).__name__}; use a path, bytes or a dict of these"
            )
        name = os.fspath(value)
        if name.startswith("data:"):
            return _from_data_url(name, modality)
        return MediaPart(type=modality, path=str(self.resolve(name)))

    def resolve(self, name: str) -> Path:
        """The file that a row calls `name`. Raises ValueError if it is missing, elsewhere, or on the network."""
        scheme = name.partition("://")[0] if "://" in name else ""
        if scheme == "file":
            name = name.removeprefix("file://")
        elif scheme:
            raise ValueError(f"{quote_path(name)} is a URL; download the media and name files instead")
        if self.root is None or self._real is None:
            raise ValueError(f"{quote_path(name)} is a path but this dataset has no media folder; set media_root")
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a path")
        real = os.path.realpath(self.root / name)
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise ValueError(
                f"{quote_path(name)} lies outside the media folder {quote_path(self.root)}; move it there, "
                "or set media_root to a folder that holds it"
            )
        if not os.path.isfile(real):
            raise ValueError(f"{quote_path(name)} is not in {quote_path(self.root)}; check the path or set media_root")
        return self.root / name


def _from_data_url(url: str, modality: str) -> MediaPart:
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError(f"the data URL {url[:40]!r} of a medium ({modality}) has no data")
    if head.endswith(";base64"):
        return _decoded(body, modality)
    return MediaPart(type=modality, data=unquote_to_bytes(body))


def _decoded(text: str, modality: str) -> MediaPart:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a medium ({modality}) is not base64 ({error})") from None
    if not data:
        raise ValueError(f"a medium ({modality}) has no bytes; export the row again")
    return MediaPart(type=modality, data=data)
