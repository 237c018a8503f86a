"""Files of every registered medium ⇄ tensors, through the functions that its record names.

Shapes are those of the record's `axes`: a picture [3, H, W], a sound [T], a film [T, 3, H, W].
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import Tensor

from unimodal.media.files import MediaSource
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits
from unimodal.media.registry import FileTarget, find_function, find_medium


def load_medium(
    name: str, source: MediaSource, target: FileTarget | None = None, limits: MediaLimits = DEFAULT_LIMITS
) -> Tensor:
    """A file of a medium as a tensor, at the rates and sizes of `target`, if its files have some.

    Raises ValueError for a file that cannot be used, and for a medium that is not registered.
    """
    loaded = find_function(find_medium(name).load)(source, target or FileTarget(), limits)
    assert isinstance(loaded, Tensor), name
    return loaded


def save_medium(name: str, medium: Tensor, path: str | os.PathLike[str], rate: float | None = None) -> None:
    """Writes a file in the format of its suffix, whole or not at all; rate: samples or frames a second.

    Raises ValueError for a suffix or a tensor that does not fit the medium.
    """
    find_function(find_medium(name).save)(medium, path, rate)


def encode_medium(name: str, medium: Tensor, rate: float | None = None) -> tuple[bytes, str]:
    """A file's bytes in memory, in the format that servers answer with, and its media type."""
    suffix, media_type = find_medium(name).sent_as
    with tempfile.TemporaryDirectory(prefix="unimodal-") as folder:
        path = Path(folder) / f"medium{suffix}"
        save_medium(name, medium, path, rate)
        return path.read_bytes(), media_type
