"""The medium of a file, by its content and not by its name."""

from __future__ import annotations

from unimodal.media.containers import FILM_DEMUXERS, has_pictures
from unimodal.media.files import MediaSource, open_source
from unimodal.media.headers import read_content
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, make_mismatch_error


def detect_kind(source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS) -> str:
    """The medium of a file ("image", "audio", "video", …).

    Animated pictures are video; a film container without pictures (m4a, WebM of a microphone) is audio. Raises
    ValueError for a file of no known medium, and for a container that is damaged or empty.
    """
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.kind == "other":
            raise make_mismatch_error(opened.name, content, None)
        if content.name in FILM_DEMUXERS:
            return "video" if has_pictures(opened, content) else "audio"
        return content.kind
