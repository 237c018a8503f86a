"""Limits on what a file may cost, and errors for files of the wrong kind.

Every limit is checked against the header before anything is decoded, and again against what is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from unimodal.files import describe_error
from unimodal.media.files import RAISE_LIMIT
from unimodal.media.headers import Content, add_article, advise_formats
from unimodal.media.registry import MEDIA, join_names


@dataclass(frozen=True)
class MediaLimits:
    """Each limit is a setting; a file over one is refused with a line that names it.

    max_bytes: size of the file. max_pixels: width × height of a picture or of one frame. max_seconds: duration of a
    sound or film, or of the part of it that is asked for. max_skipped_seconds: of a sound, decoded and dropped before
    that part. max_frames: frames in a film's file, or those that are read for a part of it. max_clip_pixels: frames ×
    height × width of the clip that `load_video` returns (4 channels' worth of float32 memory each: 128 Mi pixels are
    1.6 GB). max_sample_rate_hz and max_channels: of a sound. max_samples: of a sound or of the part of it, over all its
    channels; ten minutes of 5.1 sound at 48 kHz are 173 million.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 64 * 2**20
    max_seconds: float = 600.0
    max_skipped_seconds: float = 6 * 3600.0
    max_frames: int = 36_000
    max_clip_pixels: int = 128 * 2**20
    max_sample_rate_hz: int = 192_000
    max_channels: int = 64
    max_samples: int = 200_000_000

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
                f"max_pixels={self.max_pixels:,}; make it smaller{RAISE_LIMIT}"
            )

    def check_seconds(self, name: str, duration_s: float) -> None:
        """Raises ValueError if a sound or film is too long."""
        if not duration_s <= self.max_seconds:
            raise ValueError(
                f"{name} lasts {duration_s:,.1f} s, over the limit max_seconds={self.max_seconds:g}; "
                f"cut it{RAISE_LIMIT}"
            )

    def check_skipped(self, name: str, skipped_s: float) -> None:
        """Raises ValueError if too much would be decoded before the part of a sound that is asked for."""
        if skipped_s > self.max_skipped_seconds:
            raise ValueError(
                f"the part of {name} begins behind {skipped_s:,.1f} s, over the limit "
                f"max_skipped_seconds={self.max_skipped_seconds:g}; cut it{RAISE_LIMIT}"
            )

    def check_sound(self, name: str, sample_rate_hz: int, num_channels: int, num_samples: int = 0) -> None:
        """Raises ValueError for a rate or a number of channels over its limit, or for too many samples."""
        if not 1000 <= sample_rate_hz <= self.max_sample_rate_hz:
            raise ValueError(
                f"{name} has {sample_rate_hz:,} samples a second, outside 1,000 to max_sample_rate_hz="
                f"{self.max_sample_rate_hz:,}; resample it{RAISE_LIMIT}"
            )
        if num_channels > self.max_channels:
            raise ValueError(
                f"{name} has {num_channels} channels, over the limit max_channels={self.max_channels}; "
                f"mix it down{RAISE_LIMIT}"
            )
        self.check_seconds(name, num_samples / sample_rate_hz)
        if num_samples * num_channels > self.max_samples:
            raise ValueError(
                f"{name} has {num_samples:,} samples in each of {num_channels} channels, over the limit "
                f"max_samples={self.max_samples:,}; cut it, resample it or mix it down{RAISE_LIMIT}"
            )

    def check_frames(self, name: str, num_frames: int) -> None:
        """Raises ValueError if a film has too many frames."""
        if num_frames > self.max_frames:
            raise ValueError(
                f"{name} has {num_frames:,} frames or more, over the limit max_frames={self.max_frames:,}; "
                f"cut it{RAISE_LIMIT}"
            )

    def check_clip(self, name: str, num_frames: int, width: int, height: int) -> None:
        """Raises ValueError if the clip to be returned would not fit in memory."""
        if num_frames * width * height > self.max_clip_pixels:
            raise ValueError(
                f"{name} would give {num_frames:,} frames of {width}×{height}, over the limit "
                f"max_clip_pixels={self.max_clip_pixels:,}; ask for a smaller size, fewer frames or a lower frame rate"
            )


DEFAULT_LIMITS = MediaLimits()


def make_mismatch_error(name: str, content: Content, wanted: str | None) -> ValueError:
    """The error for a file that holds something other than what was asked for."""
    nouns = join_names(medium.noun for medium in MEDIA.values()) if wanted is None else MEDIA[wanted].noun
    if content.kind == "other" and content.name.split()[-1] in nouns.split():  # the right medium, in another format
        return ValueError(
            f"{name} is {content.described}, which is not read here; {content.advice or advise_formats()}"
        )
    advice = (content.advice or advise_formats()) if content.kind == "other" else f"pass it as {content.kind}"
    return ValueError(f"{name} is {content.described}, not {add_article(nouns)}; {advice}")


def make_damage_error(name: str, content: Content, error: BaseException | str | None = None) -> ValueError:
    """The error for a file of the right kind that is broken."""
    if content.truncated:
        return ValueError(f"{name} is {content.described} cut short: its end is missing; copy or download it again")
    because = "" if error is None else f" ({describe_error(error)})"
    return ValueError(f"{name} is {content.described}, but damaged{because}; copy or export it again")
