"""Files that libav reads: films, sounds in film containers, and streams whose header does not tell their length.

The demuxer is always the one that the file's first bytes call for: a playlist named .mp4 must never make libav open
other files. Shapes: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from unimodal.media.files import MediaSource, Opened, open_source
from unimodal.media.headers import Content, read_content
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, make_damage_error

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer

#: content → libav's demuxer, of files that may hold moving pictures, sound or both
FILM_DEMUXERS = {
    "MP4 or MOV file": "mov",
    "WebM or Matroska file": "matroska",
    "AVI film": "avi",
    "MPEG transport stream": "mpegts",
}
#: content → libav's demuxer, of files that hold nothing but sound
SOUND_DEMUXERS = {
    "MP3 sound": "mp3",
    "AAC sound": "aac",
    "WAV sound": "wav",
    "FLAC sound": "flac",
    "Ogg sound": "ogg",
    "AIFF sound": "aiff",
    "AU sound": "au",
    "CAF sound": "caf",
}


def open_container(opened: Opened, content: Content) -> InputContainer:
    """The file in PyAV, read by the demuxer of its content."""
    import av

    demuxer = (FILM_DEMUXERS | SOUND_DEMUXERS)[content.name]
    return av.open(opened.rewind(), "r", format=demuxer, metadata_errors="ignore")


def measure_film(source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS) -> float | None:
    """How many seconds a film lasts, by its header; None where that does not tell. Raises ValueError for no film."""
    import av

    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.name not in FILM_DEMUXERS:
            return content.duration_s
        try:
            with open_container(opened, content) as container:
                return None if container.duration is None else container.duration / av.time_base
        except (av.error.FFmpegError, OSError, EOFError) as error:
            raise make_damage_error(opened.name, content, error) from None


def has_pictures(opened: Opened, content: Content) -> bool:
    """Whether a film container holds moving pictures, not only sound. Raises ValueError if it holds neither."""
    import av

    try:
        with open_container(opened, content) as container:
            if _find_pictures(container) is not None:
                return True
            if container.streams.audio:
                return False
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise make_damage_error(opened.name, content, error) from None
    raise ValueError(f"{opened.name} holds neither moving pictures nor sound; export it again as MP4 or WAV")


def _find_pictures(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures; cover art does not count."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def find_video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first stream of moving pictures. Raises ValueError if there is none, or none that can be decoded."""
    stream = _find_pictures(container)
    if stream is None and container.streams.audio:
        raise ValueError(f"{name} holds sound but no moving pictures; pass it as audio")
    if stream is None:
        raise ValueError(f"{name} holds no video stream; export it again as MP4 or WebM")
    if stream.codec_context is None:
        raise ValueError(f"{name} holds pictures in a coding that is not known here; convert it to H.264 MP4")
    return stream


def find_audio_stream(container: InputContainer, name: str) -> AudioStream:
    """The first stream of sound. Raises ValueError if there is none, or none that can be decoded."""
    for stream in container.streams.audio:
        if stream.codec_context is None:
            raise ValueError(f"{name} holds sound in a coding that is not known here; convert it to WAV")
        return stream
    raise ValueError(f"{name} holds no sound; pass it as video")


def read_sound(opened: Opened, content: Content, limits: MediaLimits) -> Iterator[tuple[np.ndarray, int, list[str]]]:
    """(samples float32 [C, T], samples a second, names of the channels), block by block, to the very end.

    The content decides how long the sound is, not the header: an estimate for an MP3 file without a Xing header, or the
    sizes that streams have (0, 2,000,000,000, 0xFFFFFFFF), are wrong. Raises libav's errors for what cannot be decoded,
    and ValueError for a file without sound or over a limit.
    """
    import av

    with open_container(opened, content) as container:
        stream = find_audio_stream(container, opened.name)
        converter = av.AudioResampler(format="flt")  # interleaved: PyAV takes no more than eight planes out
        for frame in container.decode(stream):
            limits.check_sound(opened.name, frame.sample_rate, len(frame.layout.channels))
            for block in converter.resample(frame):
                channels = [channel.name for channel in block.layout.channels]
                yield block.to_ndarray().reshape(-1, len(channels)).T, block.sample_rate, channels
