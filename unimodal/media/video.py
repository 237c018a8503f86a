"""Films to float tensors at one frame rate, and back to files.

MP4, WebM, MKV, AVI and MPEG-TS go through PyAV; GIF and animated WebP and PNG through Pillow. Only the frames that are
shown are converted, and each is fitted to the asked size at once, so memory follows the result and not the file.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import Colorspace
from torch import Tensor

from unimodal.files import quote_path, write_bytes_atomically
from unimodal.media.containers import FILM_DEMUXERS, find_video_stream, open_container
from unimodal.media.files import MediaSource, Opened, open_source, silence_pillow
from unimodal.media.frame_archive import FrameArchive
from unimodal.media.hdr import HLG, PQ, map_tones
from unimodal.media.headers import Content, choose_frame_ms, read_content
from unimodal.media.image import check_picture_header, fit_image, flatten, open_picture, resize, to_bytes, to_srgb
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, make_damage_error, make_mismatch_error
from unimodal.media.registry import MEDIA, FileTarget
from unimodal.media.video_encoding import encode_video

FRAMES_PER_SECOND = 8.0  # where nobody names a rate
_PILLOW_CONTENT = ("animated GIF", "animated WebP", "animated PNG", "GIF picture", "WebP picture")
_SEEKABLE = ("MP4 or MOV file", "WebM or Matroska file")  # they have an index
_SEEK_STEP_S = 1.0  # from frames so far apart on, it is quicker to jump than to decode what lies between
_TIME_TOLERANCE_S = 1e-6

# One decoded frame: its time, how long it lasts (0 if unknown) and a function that gives uint8 [3, H, W].
_Frame = tuple[float, float, Callable[[], Tensor]]


@dataclass(frozen=True)
class _Choice:
    """The moments of a film that are shown: `begin_s + k / fps` for k < num_frames, or up to `end_s`."""

    fps: float
    begin_s: float
    end_s: float | None
    num_frames: int | None
    is_part: bool  # not the whole film: limits are about the part

    def measure(self, time_s: float) -> float:
        """How many seconds of what is shown lie before a moment of the film."""
        return (time_s if self.end_s is None else min(time_s, self.end_s)) - self.begin_s


def load_video(
    source: MediaSource,
    fps: float,
    num_frames: int | None = None,
    size: int | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
    start_s: float = 0.0,
    seconds: float | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> Tensor:
    """A film, or its part of `seconds` from `start_s` on, as float32 [T, 3, H, W] in [0, 1].

    Without `num_frames`, T is the duration times `fps`. With it, a part that is longer than so many frames last at
    `fps` is shown whole, its frames evenly spaced; a shorter one is held on its last frame. Frame k is the file's frame
    nearest to its moment, but never one that is more than half a step ahead, so that a still in a film of varying rate
    stays until the next. With `size`, frames are fitted to size × size with white bars; without, they keep the first
    frame's size. High dynamic range is brought to sRGB.

    tell: called with a sentence for everything that the result leaves out: moments between the frames, the sound.

    Raises ValueError for a file that is missing, empty, not a film, truncated, damaged, without frames or over a limit,
    and for a part outside of it.
    """
    _check_request(fps, num_frames, size)
    if not (math.isfinite(start_s) and start_s >= 0) or (seconds is not None and not seconds > 0):
        raise ValueError(f"start {start_s:g} s and seconds {seconds} are no part of a film; give 0 or more, above 0")
    is_part = start_s > 0 or seconds is not None
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.name in _PILLOW_CONTENT:
            check_animation(opened, content, limits, is_part)
            choice = _choose(opened.name, content.duration_s, fps, num_frames, start_s, seconds, tell)
            with silence_pillow():
                return _sample(_read_pillow_frames(opened, content, limits), opened.name, choice, size, limits)
        if content.name == "list of frames":
            archive = FrameArchive(opened, limits)
            limits.check_frames(opened.name, archive.num_frames)
            choice = _choose(opened.name, archive.num_frames / fps, fps, num_frames, start_s, seconds, tell)
            return _sample(archive.read_frames(fps), opened.name, choice, size, limits)
        if content.name in FILM_DEMUXERS:
            if content.truncated:
                raise make_damage_error(opened.name, content)
            try:
                with open_container(opened, content) as container:
                    duration_s = _check_film(container, opened.name, limits, is_part)
                    if container.streams.audio:
                        tell("its sound is left out; give the file as audio too to have it heard")
                    choice = _choose(opened.name, duration_s, fps, num_frames, start_s, seconds, tell)
                    frames = _read_av_frames(container, opened.name, limits, choice, content.name in _SEEKABLE)
                    return _sample(frames, opened.name, choice, size, limits)
            except (av.error.FFmpegError, OSError, EOFError) as error:
                raise make_damage_error(opened.name, content, error) from None
        raise make_mismatch_error(opened.name, content, "video")


def _choose(
    name: str,
    duration_s: float | None,
    fps: float,
    num_frames: int | None,
    start_s: float,
    seconds: float | None,
    tell: Callable[[str], None],
) -> _Choice:
    """The moments that are shown of a film of that length. Raises ValueError for a part behind its end."""
    if duration_s is not None and start_s > 0 and start_s >= duration_s:
        raise ValueError(f"{name} lasts {duration_s:,.1f} s, so nothing starts at {start_s:g} s; start earlier")
    end_s = None if seconds is None else start_s + seconds
    if duration_s is not None:
        end_s = duration_s if end_s is None else min(end_s, duration_s)
    is_part = start_s > 0 or seconds is not None
    if num_frames is None or end_s is None or (end_s - start_s) * fps <= num_frames + 0.5:
        return _Choice(fps, start_s, end_s if seconds is not None else None, num_frames, is_part)
    tell(
        f"{num_frames} frames stand for {end_s - start_s:,.1f} s, one every {(end_s - start_s) / num_frames:,.2f} s; "
        "choose a part by start and seconds to have it seen more closely"
    )
    return _Choice(num_frames / (end_s - start_s), start_s, end_s, num_frames, is_part)


def load_video_for(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """`load_video` at the rate, length and size that a tokenizer takes."""
    rate = target.frames_per_second or FRAMES_PER_SECOND
    height, width = target.picture_size or (None, None)
    if height != width:
        raise ValueError(f"frames of {height}×{width} cannot be fitted; films are fitted to squares")
    return load_video(source, rate, target.num_frames, height, limits, target.start_s, target.seconds, target.tell)


def save_video_at(clip: Tensor, path: str | os.PathLike[str], rate: float | None) -> None:
    """`save_video` at the rate of a tokenizer."""
    save_video(clip, path, float(rate or FRAMES_PER_SECOND))


def _check_request(fps: float, num_frames: int | None, size: int | None) -> None:
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps={fps} is not a frame rate; give one above 0 and up to 1000")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames={num_frames} gives no film; give at least 1")
    if size is not None and size < 1:
        raise ValueError(f"size={size} is not a picture size; give a number of pixels above 0")


def _sample(frames: Iterator[_Frame], name: str, choice: _Choice, size: int | None, limits: MediaLimits) -> Tensor:
    """Picks the frame for each moment in one pass; see `load_video` for the rule."""
    fps, num_frames = choice.fps, choice.num_frames
    picked: list[Tensor] = []  # each uint8 or float [3, H, W]; repeats share memory
    shape: tuple[int, int] | None = None
    shown_frame: Callable[[], Tensor] | None = None
    picture: Tensor | None = None
    time_s = last_duration_s = 0.0
    num_read = 0

    def emit() -> None:
        nonlocal picture, shape
        if picture is None:
            assert shown_frame is not None
            raw = shown_frame()
            shape = shape or (raw.shape[1], raw.shape[2])
            picture = fit_image(raw, size) if size is not None else _to_shape(raw, shape)
        picked.append(picture)
        limits.check_clip(name, len(picked), picture.shape[2], picture.shape[1])

    for next_time_s, next_duration_s, next_frame in frames:
        num_read += 1
        limits.check_frames(name, num_read)
        if num_read == 1:
            start_s = next_time_s
        next_time_s = max(next_time_s - start_s, time_s)
        limits.check_seconds(name, choice.measure(next_time_s))
        if num_read > 1:
            gap_s = next_time_s - time_s
            early_s = min(gap_s / 2, 1 / (2 * fps))
            while (num_frames is None or len(picked) < num_frames) and (
                choice.begin_s + len(picked) / fps + early_s < next_time_s - _TIME_TOLERANCE_S
            ):
                emit()
            last_duration_s = gap_s
        if num_frames is not None and len(picked) == num_frames:
            break
        if choice.end_s is not None and num_frames is None and next_time_s >= choice.end_s:
            break
        time_s, shown_frame, picture = next_time_s, next_frame, None
        last_duration_s = next_duration_s or last_duration_s
    if num_read == 0:
        raise ValueError(f"{name} holds no frames; export it again")
    end_s = time_s + last_duration_s
    limits.check_seconds(name, choice.measure(end_s))
    if choice.begin_s > 0 and choice.begin_s >= end_s and not picked:
        raise ValueError(f"{name} lasts {end_s:,.1f} s, so nothing starts at {choice.begin_s:g} s; start earlier")
    end_s = min(end_s, choice.end_s or end_s)
    if num_frames is None:  # 0.43 s at 50 a second are 21.5 frames, also where the sum of delays is 0.42999… s
        num_frames = max(1, len(picked), round(round((end_s - choice.begin_s) * fps, 6)))
    while len(picked) < num_frames:
        emit()
    clip = torch.empty(len(picked), *picked[0].shape)
    for index, frame in enumerate(picked):
        clip[index] = frame.float() / 255 if frame.dtype == torch.uint8 else frame
    return clip


def _to_shape(raw: Tensor, shape: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] as it is, or stretched if the film changes its size midway."""
    return raw if raw.shape[1:] == shape else (resize(raw, *shape) * 255).round().to(torch.uint8)


def check_animation(opened: Opened, content: Content, limits: MediaLimits, is_part: bool) -> None:
    """Checks an animated picture by its header alone: its size and, unless a part is asked for, its frames and time."""
    check_picture_header(opened, content, limits)
    if is_part:
        return
    if content.num_frames is not None:
        limits.check_frames(opened.name, content.num_frames)
    if content.duration_s is not None:
        limits.check_seconds(opened.name, content.duration_s)


def _read_pillow_frames(opened: Opened, content: Content, limits: MediaLimits) -> Iterator[_Frame]:
    """Frames of an animated picture, each flattened onto white."""
    image = open_picture(opened, content, limits)
    first = 1 if image.info.get("default_image") else 0  # of a PNG whose still is no part of the animation
    time_s = 0.0
    for index in range(first, first + (content.num_frames or 1)):
        try:
            image.seek(index)
            image.load()
            pixels = flatten(to_srgb(image))  # [H, W, 3]
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise make_damage_error(opened.name, content, error) from None
        duration_s = choose_frame_ms(float(image.info.get("duration") or 0)) / 1000
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        yield time_s, duration_s, functools.partial(_keep, picture)
        time_s += duration_s


def _keep(picture: Tensor) -> Tensor:
    return picture


def _check_film(container: InputContainer, name: str, limits: MediaLimits, is_part: bool) -> float | None:
    """Checks the size, and unless a part is asked for the frames and the duration, by the header.

    Returns the duration in seconds; None if the header does not tell.
    """
    stream = find_video_stream(container, name)
    codec = stream.codec_context
    limits.check_pixels(name, codec.width, codec.height)
    if not is_part:
        limits.check_frames(name, stream.frames)
    codec.options = {"max_pixels": str(limits.max_pixels)}  # of a frame larger than the header says
    duration_s = None
    if stream.duration is not None and stream.time_base:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    if duration_s is not None and not is_part:
        limits.check_seconds(name, duration_s)
    return duration_s


def _read_av_frames(
    container: InputContainer, name: str, limits: MediaLimits, choice: _Choice, can_seek: bool
) -> Iterator[_Frame]:
    """Frames of a film in order: all of them up to the end of a part, or those around moments that lie far apart.

    The first frame of the film always comes first, since times count from it.
    """
    stream = find_video_stream(container, name)
    interval_s = float(1 / stream.average_rate) if stream.average_rate else 0.0

    def show(frame: av.VideoFrame, index: int) -> _Frame:
        limits.check_pixels(name, frame.width, frame.height)
        time_s = frame.time if frame.time is not None else index * interval_s
        duration_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else interval_s
        return time_s, duration_s, functools.partial(_to_tensor, frame)

    spread = choice.num_frames is not None and 1 / choice.fps >= _SEEK_STEP_S
    if not can_seek or (not spread and choice.begin_s < _SEEK_STEP_S):
        for index, frame in enumerate(container.decode(stream)):
            yield show(frame, index)
        return
    first = next(container.decode(stream), None)
    if first is None:
        return
    yield show(first, 0)
    first_s = last_s = first.time or 0.0
    if not spread:
        container.seek(int((first_s + choice.begin_s) * av.time_base), backward=True)
        for frame in container.decode(stream):
            if (frame.time or 0.0) > last_s:
                last_s = frame.time or 0.0
                yield show(frame, 0)
        return
    assert choice.num_frames is not None
    for number in range(choice.num_frames):
        moment_s = first_s + choice.begin_s + number / choice.fps
        container.seek(int(moment_s * av.time_base), backward=True)
        before: av.VideoFrame | None = None
        for frame in container.decode(stream):
            if (frame.time or 0.0) > moment_s:
                around = [before, frame]
                break
            before = frame
        else:
            around = [before]
        for near in around:
            if near is not None and (near.time or 0.0) > last_s:
                last_s = near.time or 0.0
                yield show(near, 0)


def _to_tensor(frame: av.VideoFrame) -> Tensor:
    """uint8 [3, H, W], turned upright by the display matrix of the file (telephones store films sideways)."""
    if frame.color_trc in (PQ, HLG):
        wide = frame.to_ndarray(format="rgb48le", src_colorspace=Colorspace.BT2020)  # uint16 [H, W, 3]
        pixels = map_tones(wide, int(frame.color_trc))
    else:
        pixels = frame.to_ndarray(format="rgb24")  # [H, W, 3]
    quarter_turns = round(frame.rotation / 90) % 4
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, quarter_turns))).permute(2, 0, 1)


def save_video(clip: Tensor, path: str | os.PathLike[str], fps: float) -> None:
    """Save [T, 3, H, W], float in [0, 1] or uint8, as MP4 (H.264), WebM (VP9), GIF or WebP (exact), by the suffix.

    MP4 and WebM need even sides: an odd one is extended by its edge pixels. Raises ValueError for another suffix or
    shape, a frame rate that cannot be kept, or values that are not numbers. Nothing half-written is left.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in MEDIA["video"].saved_suffixes:
        wrong = repr(suffix) if suffix else "a name without suffix"
        raise ValueError(f"{quote_path(path)}: cannot save a film as {wrong}; use .mp4, .webm, .gif or .webp")
    _check_request(fps, None, None)
    if clip.ndim != 4 or clip.shape[0] == 0:
        raise ValueError(f"expected a film [T, 3, H, W], got shape {list(clip.shape)}")
    frames = [to_bytes(frame).permute(1, 2, 0).contiguous().numpy() for frame in clip]  # each [H, W, 3]
    write_bytes_atomically(path, encode_video(frames, suffix, fps), make_folder=False)
