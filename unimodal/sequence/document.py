"""Documents: ordered typed parts with roles, the same for training, chat, the server and the importers.

    Document([
        Turn("user", [Text("what is this?"), Image(path="apple.png")]),
        Turn("assistant", [Text("an apple")]),
    ])

A media part holds the `path` of a file, its bytes as `data`, or the `codes` its tokenizer made of it, int64 `[N]` or
`[N, G]`. A turn may have parts of every kind, in any number and order. Parts, turns and documents are frozen and
comparable; as JSON they are the conversations of `data/messages.py`.

Two adjacent texts mean the same as one text of both with a space between, and an empty text means nothing:
`canonicalize()` joins the first and drops the second. `Template.parse(Template.render(d))` gives `d.canonicalize()`.

Legend: N code steps, G groups of the tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from unimodal.media.registry import MEDIA, find_medium, join_names
from unimodal.vocabulary import ROLES


@dataclass(frozen=True)
class Text:
    """Words. Raises ValueError for anything but a string of valid Unicode."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"text must be a string, got {type(self.text).__name__}")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds a lone surrogate at character {error.start}; give valid Unicode") from None


@dataclass(frozen=True, eq=False, init=False)
class Media:
    """A picture, a sound, a clip or another medium.

    It has exactly one of codes, int64 `[N]` or `[N, G]`, the path of a file, and data, the bytes of a file. grid: rows
    and columns of the codes, for models that draw pictures of any shape. start_s, seconds: the part to take of a file
    that has a duration, by default the whole. notes: what was left out when a file was encoded.
    Raises ValueError unless exactly one of the three is given, for codes that are no integers, and for an impossible
    start or duration.
    """

    codes: np.ndarray | None
    path: str | None
    data: bytes | None = field(repr=False)
    grid: tuple[int, int] | None
    start_s: float
    seconds: float | None
    notes: tuple[str, ...] = field(repr=False)
    modality: ClassVar[str] = ""

    def __init__(
        self,
        codes: ArrayLike | None = None,
        path: str | os.PathLike[str] | None = None,
        data: bytes | None = None,
        grid: Sequence[int] | None = None,
        *,
        start_s: float = 0.0,
        seconds: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        find_medium(self.modality)
        if sum(given is not None for given in (codes, path, data)) != 1:
            raise ValueError(f"give the {self.modality} part either codes or a path or data, not several or none")
        if data is not None and not isinstance(data, bytes):
            raise ValueError(f"the data of the {self.modality} part must be bytes, got {type(data).__name__}")
        object.__setattr__(self, "codes", None if codes is None else self._copy_codes(codes))
        object.__setattr__(self, "path", None if path is None else str(path))
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "grid", None if grid is None else (int(grid[0]), int(grid[1])))
        if not 0 <= start_s < float("inf") or (seconds is not None and not seconds > 0):
            raise ValueError(
                f"start {start_s:g} s and {seconds} seconds are no part of a file; give 0 or more, above 0"
            )
        object.__setattr__(self, "start_s", float(start_s))
        object.__setattr__(self, "seconds", None if seconds is None else float(seconds))
        object.__setattr__(self, "notes", tuple(notes))

    def _copy_codes(self, given: ArrayLike) -> np.ndarray:
        """A read-only copy of the codes. Raises ValueError for codes that are no integers."""
        codes = np.array(given)
        if codes.size and codes.dtype.kind not in "iu":
            raise ValueError(f"{self.modality} codes must be integers, got {codes.dtype}")
        if codes.ndim not in (1, 2) or not codes.size:
            raise ValueError(f"{self.modality} codes must be [N] or [N, G] and not empty, got {list(codes.shape)}")
        codes = codes.astype(np.int64)
        codes.flags.writeable = False
        return codes

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Media)
        if self.codes is None or other.codes is None:
            both_files = self.codes is None and other.codes is None
            same_part = (self.start_s, self.seconds) == (other.start_s, other.seconds)
            return both_files and same_part and self.path == other.path and self.data == other.data
        return self.grid == other.grid and bool(np.array_equal(self.codes, other.codes))

    def __hash__(self) -> int:
        return hash((self.modality, self.path, self.data, None if self.codes is None else self.codes.tobytes()))

    def __reduce__(self) -> tuple[Callable[..., Media], tuple[object, ...]]:
        given = self.modality, self.codes, self.path, self.data, self.grid  # a further medium's class is made anew
        return make_part, (*given, self.start_s, self.seconds, self.notes)

    def require_codes(self) -> np.ndarray:
        """The codes, int64 [N] or [N, G]. Raises ValueError for a part without codes."""
        if self.codes is None:
            raise ValueError(f"the {self.modality} {self.name!r} has no codes yet; encode it with its tokenizer first")
        return self.codes

    @property
    def source(self) -> str | bytes:
        """The path or the bytes of a part without codes."""
        source = self.path if self.path is not None else self.data
        assert source is not None
        return source

    @property
    def name(self) -> str:
        """The part's name in messages: its path, or a word for its bytes or codes."""
        if self.codes is not None:
            return f"{len(self.codes)} codes"
        return self.path or f"{len(self.data or b''):,} bytes"


class Image(Media):
    modality: ClassVar[str] = "image"


class Audio(Media):
    modality: ClassVar[str] = "audio"


class Video(Media):
    modality: ClassVar[str] = "video"


Part = Text | Media


class MediaParts(Mapping[str, type[Media]]):
    """Medium → the class of its parts, for every registered medium; the class of a further medium is made on demand.

    Raises KeyError for an unknown medium.
    """

    def __init__(self, classes: Iterable[type[Media]]) -> None:
        self._classes = {part.modality: part for part in classes}

    def __getitem__(self, name: str) -> type[Media]:
        if name not in MEDIA:
            raise KeyError(name)
        if name not in self._classes:
            self._classes[name] = type(name.capitalize(), (Media,), {"modality": name, "__doc__": MEDIA[name].noun})
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MEDIA)

    def __len__(self) -> int:
        return len(MEDIA)


MEDIA_PARTS = MediaParts((Image, Audio, Video))


def make_part(
    modality: str,
    codes: ArrayLike | None = None,
    path: str | None = None,
    data: bytes | None = None,
    grid: tuple[int, int] | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    notes: Sequence[str] = (),
) -> Media:
    """A part of the medium `modality`. Raises ValueError as its class does."""
    find_medium(modality)
    return MEDIA_PARTS[modality](codes, path, data, grid, start_s=start_s, seconds=seconds, notes=notes)


@dataclass(frozen=True)
class Turn:
    """The parts that one role says and shows. Raises ValueError for an unknown role and for anything but parts.

    learn: False leaves an assistant's turn without labels. Ids do not hold this, so a turn parsed from ids has True.
    """

    role: str
    parts: tuple[Part, ...]
    learn: bool

    def __init__(self, role: str, parts: Iterable[Part] | str = (), learn: bool = True) -> None:
        if role not in ROLES:
            raise ValueError(f"role {role!r} is unknown; use {', '.join(ROLES)}")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "learn", learn)
        object.__setattr__(self, "parts", (Text(parts),) if isinstance(parts, str) else tuple(parts))
        given: tuple[object, ...] = self.parts
        for part in given:
            if not isinstance(part, (Text, Media)):
                names = join_names(("Text", *(MEDIA_PARTS[name].__name__ for name in MEDIA)))
                raise ValueError(f"a part must be {names}, got {type(part).__name__}")

    @property
    def is_learnt(self) -> bool:
        """Whether the turn is an answer with labels."""
        return self.role == "assistant" and self.learn

    def replace_parts(self, parts: Iterable[Part]) -> Turn:
        """The same turn with other parts."""
        return Turn(self.role, parts, self.learn)

    @property
    def text(self) -> str:
        """All texts of the turn, with a space between them."""
        return " ".join(part.text for part in self.parts if isinstance(part, Text) and part.text)

    def canonicalize(self) -> Turn:
        """The same turn with adjacent texts joined and empty texts dropped."""
        parts: list[Part] = []
        for part in self.parts:
            if isinstance(part, Text) and not part.text:
                continue
            if isinstance(part, Text) and parts and isinstance(parts[-1], Text):
                parts[-1] = Text(f"{parts[-1].text} {part.text}")
            else:
                parts.append(part)
        return self.replace_parts(parts)


@dataclass(frozen=True)
class Document:
    """The turns of a conversation, in order."""

    turns: tuple[Turn, ...]

    def __init__(self, turns: Iterable[Turn] = ()) -> None:
        object.__setattr__(self, "turns", tuple(turns))

    def canonicalize(self) -> Document:
        """The same document with adjacent texts joined and empty texts dropped."""
        return Document(turn.canonicalize() for turn in self.turns)

    def add_system(self, words: str) -> Document:
        """The document with a system turn of these words; unchanged for no words, or if it has a system turn."""
        if not words or any(turn.role == "system" for turn in self.turns):
            return self
        return Document([Turn("system", words), *self.turns])

    def drop_text(self, roles: Iterable[str] = ("system", "user")) -> Document:
        """The document without the texts of these roles: the unconditional prompt of classifier-free guidance."""
        drop = set(roles)
        return Document(
            turn.replace_parts(p for p in turn.parts if turn.role not in drop or not isinstance(p, Text))
            for turn in self.turns
        )

    def replace_text(self, text: str) -> Document:
        """The document with all its texts replaced by this one at the end of the last turn: a negative prompt."""
        bare = self.drop_text()
        return Document([*bare.turns[:-1], bare.turns[-1].replace_parts([*bare.turns[-1].parts, Text(text)])])

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for turn in self.turns for part in turn.parts)
