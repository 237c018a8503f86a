"""A film as a list of picture files, packed into the bytes of one file, which `frame_archive.py` unpacks.

The file is a ZIP archive without compression whose members `frames/0`, `frames/1`, … are the picture files as they are.
Its frames follow each other at whatever rate a film is asked for.
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
