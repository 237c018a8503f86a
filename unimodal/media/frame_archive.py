"""The pictures of a film that `frames.py` packed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from unimodal.media.files import Opened
from unimodal.media.headers import FRAMES_FOLDER
from unimodal.media.image import load_image
from unimodal.media.limits import MediaLimits


class FrameArchive:
    """The pictures of a packed film. Raises ValueError for an archive that is damaged."""

    def __init__(self, opened: Opened, limits: MediaLimits) -> None:
        try:
            self._archive = zipfile.ZipFile(opened.rewind())
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{opened.name} is damaged ({error}); make it again") from None
        self.name, self.limits = opened.name, limits
        self.num_frames = len(self._archive.infolist())

    def read_frames(self, fps: float) -> Iterator[tuple[float, float, Callable[[], Tensor]]]:
        """(time, duration, function that loads the frame as uint8 [3, H, W]) for each frame."""
        for number in range(self.num_frames):
            yield number / fps, 1 / fps, partial(self._load, number)

    def _load(self, number: int) -> Tensor:
        try:
            return load_image(self._read(number), self.limits)
        except ValueError as error:
            raise ValueError(f"frame {number + 1} of {self.name}: {error}") from None

    def _read(self, number: int) -> bytes:
        try:
            info = self._archive.getinfo(f"{FRAMES_FOLDER}{number}")
            if info.compress_type != zipfile.ZIP_STORED:  # what is packed cannot be larger than the file
                raise ValueError("it is compressed; store it as it is")
            return self._archive.read(info)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"it is damaged ({error}); make the film again") from None
