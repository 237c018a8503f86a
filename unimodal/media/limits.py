"""What a file may cost before it is refused, and what kind of medium it holds.

Every limit is checked against the header before anything is decoded, and again against what decoding really gives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from unimodal.files import describe_error
from unimodal.media.files import RAISE_LIMIT, MediaSource, Opened, open_source
from unimodal.media.headers import Content, add_article, advise_formats, read_content
from unimodal.media.registry import MEDIA, join_names

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer


@dataclass(frozen=True)
class MediaLimits:
    """Each limit is a setting; a file over one is refused with a line that names it.

    max_bytes: size of the file. max_pixels: width × height of a picture or of one frame. max_seconds: duration of a
    sound or film. max_frames: frames in a film's file. max_clip_pixels: frames × height × width of the clip that
    `load_video` returns (4 channels' worth of float32 memory each: 128 Mi pixels are 1.6 GB). max_sample_rate_hz and
    max_channels: of a sound.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 64 * 2**20
    max_seconds: float = 600.0
    max_frames: int = 36_000
    max_clip_pixels: int = 128 * 2**20
    max_sample_rate_hz: int = 192_000
    max_channels: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value!r} is not a limit; give a number above 0")

    def check_pixels(self, name: str, width: int, height: int) -> None:
        """Raises ValueError if a picture or frame is too large."""
        if width * height > self.max_pixels:
            raise ValueError(
                f"{name} is {width:,}×{height:,} = {width * height:,} pixels, over the limit "
                f"max_pixels={self.max_pixels:,}; {RAISE_LIMIT}"
            )

    def check_seconds(self, name: str, duration_s: float) -> None:
        """Raises ValueError if a sound or film is too long."""
        if not duration_s <= self.max_seconds:
            raise ValueError(
                f"{name} lasts {duration_s:,.1f} s, over the limit max_seconds={self.max_seconds:g}; "
                "cut it or raise that limit"
            )

    def check_frames(self, name: str, num_frames: int) -> None:
        """Raises ValueError if a film has too many frames."""
        if num_frames > self.max_frames:
            raise ValueError(
                f"{name} has {num_frames:,} frames or more, over the limit max_frames={self.max_frames:,}; "
                "cut it or raise that limit"
            )

    def check_clip(self, name: str, num_frames: int, width: int, height: int) -> None:
        """Raises ValueError if the clip to be returned would not fit in memory."""
        if num_frames * width * height > self.max_clip_pixels:
            raise ValueError(
                f"{name} would give {num_frames:,} frames of {width}×{height}, over the limit "
                f"max_clip_pixels={self.max_clip_pixels:,}; ask for a smaller size, fewer frames or a lower frame rate"
            )


DEFAULT_LIMITS = MediaLimits()


def media_kind(source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS) -> str:
    """The medium ("image", "audio", "video", …) by the file's content, not its name; animated GIF and WebP are video.

    Raises ValueError for a file that is none of these, an MP4 or WebM file without pictures included.
    """
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.kind == "other":
            raise unusable(opened.name, content, None)
        if content.name in CONTAINER_FORMATS:
            check_video_stream(opened, content)
        return content.kind


def unusable(name: str, content: Content, wanted: str | None) -> ValueError:
    """The error for a file that holds something else than was asked for."""
    nouns = join_names(medium.noun for medium in MEDIA.values()) if wanted is None else MEDIA[wanted].noun
    advice = (content.advice or advise_formats()) if content.kind == "other" else f"pass it as {content.kind}"
    return ValueError(f"{name} is {content.described}, not {add_article(nouns)}; {advice}")


def damaged(name: str, content: Content, error: BaseException | str | None = None) -> ValueError:
    """The error for a file that is of the right kind but broken."""
    if content.truncated:
        return ValueError(f"{name} is {content.described} cut short: its end is missing; copy or download it again")
    because = "" if error is None else f" ({describe_error(error)})"
    return ValueError(f"{name} is {content.described}, but damaged{because}; copy or export it again")


CONTAINER_FORMATS = {"MP4 or MOV file": "mov", "WebM or Matroska file": "matroska"}  # content → libav's demuxer


def open_container(opened: Opened, content: Content) -> InputContainer:
    """The file in PyAV. The demuxer is forced: a playlist named .mp4 must never make libav open other files."""
    import av

    return av.open(opened.rewound(), "r", format=CONTAINER_FORMATS[content.name], metadata_errors="ignore")


def check_video_stream(opened: Opened, content: Content) -> None:
    """Raises ValueError unless the container opens and holds moving pictures."""
    import av

    try:
        with open_container(opened, content) as container:
            find_video_stream(container, opened.name)
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise damaged(opened.name, content, error) from None


def find_video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first stream of moving pictures; cover art does not count. Raises ValueError if there is none."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError(f"{name} holds pictures in a coding that is not known here; convert it to H.264 MP4")
            return stream
    if container.streams.audio:
        raise ValueError(f"{name} holds sound but no moving pictures; convert it to WAV and pass that as audio")
    raise ValueError(f"{name} holds no video stream; export it again as MP4 or WebM")
