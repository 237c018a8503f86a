"""A film as a list of picture files: packed into one file of bytes, which `frame_archive.py` takes apart again.

The file is a ZIP archive without compression whose members are `frames/0`, `frames/1`, …, each a picture file as it is.
Its frames come one after the other at whatever rate a film is asked for.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

from unimodal.media.headers import FRAMES_FOLDER


def pack_frames(pictures: Sequence[bytes]) -> bytes:
    """The content of picture files, in order → the content of one film."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(
                zipfile.ZipInfo(f"{FRAMES_FOLDER}{number}"), picture
            )  # of a fixed date: same frames, same bytes
    return stream.getvalue()
