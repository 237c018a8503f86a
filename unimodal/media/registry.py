"""The media that models read and write: one record each, from which every table of media in the package derives.

`MEDIA` maps a name to its record. Another medium is one call, and no other file of the package has to name it:

    register(Medium(name="points", noun="point cloud", suffixes=(".points",), sent_as=(".points", "text/plain"),
                    axes="tc", padded=True, recognise="points:is_points", load="points:load", save="points:save"))

`docs/vocabulary.md` goes through it step by step. Nothing heavy is imported here: functions are named as
"module:function" and imported when they are first called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

#: names modules or .py files, with commas between them, that register media or tokenizers when a command starts
PLUGINS_VARIABLE = "UNIMODAL_PLUGINS"
_NAME = re.compile(r"[a-z][a-z0-9]*")
_TAKEN = ("text", "frame", "json")  # of parts, marks and files of datasets


def ignore_note(note: str) -> None:
    """Ignores a sentence about a file."""


@dataclass(frozen=True)
class FileTarget:
    """What is wanted of a file: what a tokenizer declares of its medium, and the part of the file that a user chose.

    None: the tokenizer does not say, or the medium has no such thing. picture_size: height and width of pictures and
    frames. num_frames: taken of a film. start_s, seconds: the part, for media with a duration; the whole by default.
    tell: called with a sentence for everything of the file that is left out.
    """

    sample_rate_hz: int | None = None
    frames_per_second: float | None = None
    num_frames: int | None = None
    picture_size: tuple[int, int] | None = None
    start_s: float = 0.0
    seconds: float | None = None
    tell: Callable[[str], None] = ignore_note


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One medium: how it is called, how its files are told apart, read and written, and how its tensors lie.

    name: in the controls `<|NAME_start|>`, in `{"type": NAME}` and `{"type": "NAME_url"}` parts, in the folder
        `NAME_tokenizer/` and in `--to NAME`.
    noun: what messages call one: "picture".
    suffixes: of the files that are read, those of datasets too.
    formats: the names of these formats, for advice: "PNG".
    saved_suffixes: what one may be saved as; by default all that are read.
    saved_as: the name of a file that a chat writes; by default the name with the first suffix.
    sent_as: the suffix and media type of what a server answers with: (".png", "image/png").
    part_types: other names of a part in requests and datasets: "input_audio".
    ask: the chat's command that asks for one: "draw" for `/draw WORDS`; by default "make-NAME".
    axes: of its tensor, a letter each: "c" channels, "t" time, other letters for other axes. A tokenizer gets the
        batch as [B, C, …]: channels first (one channel where there is no "c"), then the others in this order.
    padded: items of different length along "t" are encoded together, the shorter padded with 0 behind their end.
    recognise: (head: bytes, the first 64 of a file) → whether it is one. None where `headers.py` knows the formats.
    load: (source, target: FileTarget, limits: MediaLimits) → tensor. ValueError in one line for an unusable file.
    save: (tensor, path, rate: float | None) → None. The file appears whole or not at all.
    """

    name: str
    noun: str
    suffixes: tuple[str, ...]
    formats: tuple[str, ...] = ()
    saved_suffixes: tuple[str, ...] = ()
    saved_as: str = ""
    sent_as: tuple[str, str]
    part_types: tuple[str, ...] = ()
    ask: str = ""
    axes: str
    padded: bool = False
    recognise: str | None = None
    load: str
    save: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise ValueError(f"a medium cannot be called {self.name!r}; use lower-case letters and digits")
        for suffix in (*self.suffixes, *self.saved_suffixes, self.sent_as[0]):
            if suffix[:1] != "." or suffix != suffix.lower():
                raise ValueError(f"{self.name}: {suffix!r} is no suffix; write it as '.png'")
        if not self.suffixes:
            raise ValueError(f"{self.name} has no suffix; name at least one that its files have")
        if len(set(self.axes)) != len(self.axes) or (self.padded and "t" not in self.axes):
            raise ValueError(f"{self.name}: axes {self.axes!r} must be different letters, with t where it is padded")
        object.__setattr__(self, "saved_suffixes", self.saved_suffixes or self.suffixes)
        object.__setattr__(self, "saved_as", self.saved_as or f"{self.name}{self.saved_suffixes[0]}")
        object.__setattr__(self, "ask", self.ask or f"make-{self.name}")

    @property
    def url_type(self) -> str:
        """The type of a part that holds its file as a URL."""
        return f"{self.name}_url"

    @property
    def all_part_types(self) -> tuple[str, ...]:
        """Every `type` that a part of this medium may have in requests and datasets."""
        return (self.name, self.url_type, *self.part_types)

    @property
    def columns(self) -> tuple[str, str]:
        """The columns of a dataset that hold several of it, or one."""
        return f"{self.name}s", self.name


def register(medium: Medium) -> None:
    """Adds a medium. Raises ValueError for a name, a part type or a chat command that another one has."""
    for other in MEDIA.values():
        shared = {*medium.all_part_types} & {*other.all_part_types} or {medium.ask} & {other.ask}
        if shared:
            raise ValueError(f"{sorted(shared)[0]!r} already belongs to the medium {other.name!r}; choose another name")
    MEDIA[medium.name] = medium


def find_medium(name: object) -> Medium:
    """The record of a medium. Raises ValueError, in one line, for one that is not registered."""
    medium = MEDIA.get(name) if isinstance(name, str) else None
    if medium is None:
        raise ValueError(
            f"the medium {name!r} is unknown; use {join_names(MEDIA)}, or name the module that registers it in "
            f"{PLUGINS_VARIABLE}"
        )
    return medium


def find_by_type(kind: object) -> Medium | None:
    """The medium of a part that requests and datasets call `kind`; None where there is none."""
    return next((medium for medium in MEDIA.values() if kind in medium.all_part_types), None)


def find_by_suffix(suffix: str) -> Medium | None:
    """The first medium that has files of this suffix (".webp": a picture); None where there is none."""
    return next((medium for medium in MEDIA.values() if suffix in medium.suffixes), None)


def join_names(names: Iterable[str]) -> str:
    """`image, audio or video`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def find_function(name: str) -> Callable[..., object]:
    """The function named "module:function", imported now."""
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function)
    assert callable(found), name
    return found


def load_plugins() -> None:
    """Imports the modules, and the .py files, that `$UNIMODAL_PLUGINS` names.

    Raises ValueError for one that cannot be imported.
    """
    for name in filter(None, (part.strip() for part in os.environ.get(PLUGINS_VARIABLE, "").split(","))):
        try:
            if name.endswith(".py"):
                _import_file(Path(name).expanduser().resolve())
            else:
                importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise ValueError(f"{PLUGINS_VARIABLE} names {name!r}, which cannot be imported ({error})") from None


def _import_file(path: Path) -> None:
    """Imports a file once, as a module of a name that no other file has."""
    if any(vars(module).get("__file__") == str(path) for module in list(sys.modules.values())):
        return
    name = f"unimodal_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


MEDIA: dict[str, Medium] = {
    "image": Medium(
        name="image",
        noun="picture",
        suffixes=(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
        formats=("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF", "AVIF"),
        saved_suffixes=(".png", ".jpg", ".jpeg", ".webp"),
        saved_as="picture.png",
        sent_as=(".png", "image/png"),
        ask="draw",
        axes="chw",
        load="unimodal.media.image:load_image_for",
        save="unimodal.media.image:save_image_at",
    ),
    "audio": Medium(
        name="audio",
        noun="sound",
        suffixes=(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".weba", ".aiff", ".aif"),
        formats=("WAV", "FLAC", "OGG", "MP3", "M4A", "AAC", "AIFF"),
        saved_suffixes=(".wav", ".flac", ".ogg", ".mp3"),
        saved_as="sound.wav",
        sent_as=(".wav", "audio/wav"),
        part_types=("input_audio",),
        ask="say",
        axes="t",
        padded=True,
        load="unimodal.media.audio:load_audio_for",
        save="unimodal.media.audio:save_audio_at",
    ),
    "video": Medium(
        name="video",
        noun="film",
        suffixes=(".mp4", ".webm", ".gif", ".webp", ".mov", ".m4v", ".mkv", ".avi", ".ts", ".apng"),
        formats=("MP4", "WebM", "MKV", "AVI", "TS"),
        saved_suffixes=(".mp4", ".webm", ".gif", ".webp"),
        saved_as="clip.gif",
        sent_as=(".mp4", "video/mp4"),
        ask="film",
        axes="tchw",
        load="unimodal.media.video:load_video_for",
        save="unimodal.media.video:save_video_at",
    ),
}
