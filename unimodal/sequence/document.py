"""Documents: ordered typed parts with roles, the same for training, chat, the server and the importers.

    Document([
        Turn("user", [Text("what is this?"), Image(path="apple.png")]),
        Turn("assistant", [Text("an apple")]),
    ])

A media part holds the `path` of a file, its bytes as `data`, or the `codes` its tokenizer made of it, int64 `[N]` or
`[N, G]`. Any part may stand in any turn, in any number and order. Parts, turns and documents are frozen, comparable and
go to and from JSON, where bytes are base64.

Two adjacent texts mean the same as one text of both with a space between, and an empty text means nothing:
`canonical()` joins the first and drops the second. `Template.parse(Template.render(d))` gives `d.canonical()`.

Legend: N code steps, G groups of the tokenizer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from unimodal.media.registry import MEDIA, find_medium, join_names
from unimodal.vocabulary import ROLES


@dataclass(frozen=True)
class Text:
    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"text must be a string, got {type(self.text).__name__}")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds a lone surrogate at character {error.start}; give valid Unicode") from None

    def to_dict(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


@dataclass(frozen=True, eq=False)
class Media:
    """A picture, a sound, a clip or another medium: its codes, int64 `[N]` / `[N, G]`, or the path or the bytes of a
    file that is not encoded yet.

    `grid` are the rows and columns of codes, for models whose pictures have any shape; others need none.
    """

    codes: Any = None
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    grid: tuple[int, int] | None = None
    modality: ClassVar[str] = ""

    def __post_init__(self) -> None:
        find_medium(self.modality)
        if sum(given is not None for given in (self.codes, self.path, self.data)) != 1:
            raise ValueError(f"give the {self.modality} part either codes or a path or data, not several or none")
        if self.path is not None:
            object.__setattr__(self, "path", str(self.path))
        if self.data is not None and not isinstance(self.data, bytes):
            raise ValueError(f"the data of the {self.modality} part must be bytes, got {type(self.data).__name__}")
        if self.grid is not None:
            object.__setattr__(self, "grid", (int(self.grid[0]), int(self.grid[1])))
        if self.codes is None:
            return
        given = self.codes.detach().cpu().numpy() if hasattr(self.codes, "detach") else self.codes
        codes = np.array(given)  # a copy: the part is frozen
        if codes.size and codes.dtype.kind not in "iu":
            raise ValueError(f"{self.modality} codes must be integers, got {codes.dtype}")
        if codes.ndim not in (1, 2) or not codes.size:
            raise ValueError(f"{self.modality} codes must be [N] or [N, G] and not empty, got {list(codes.shape)}")
        codes = codes.astype(np.int64)
        codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Media)
        if self.codes is None or other.codes is None:
            return self.codes is other.codes and self.path == other.path and self.data == other.data
        return self.grid == other.grid and bool(np.array_equal(self.codes, other.codes))

    def __hash__(self) -> int:
        return hash((self.modality, self.path, self.data, None if self.codes is None else self.codes.tobytes()))

    def __reduce__(self) -> tuple[Callable[..., Media], tuple[object, ...]]:
        return make_part, (self.modality, self.codes, self.path, self.data, self.grid)  # the class may be made here

    @property
    def source(self) -> str | bytes:
        """The path or the bytes of a part that has no codes yet."""
        source = self.path if self.path is not None else self.data
        assert source is not None
        return source

    @property
    def name(self) -> str:
        """What messages call the part: its path, or that it is bytes or codes."""
        return self.path or (f"{len(self.data):,} bytes" if self.data is not None else f"{len(self.codes)} codes")

    def to_dict(self) -> dict[str, Any]:
        if self.data is not None:
            return {"type": self.modality, "data": base64.b64encode(self.data).decode("ascii")}
        if self.codes is None:
            return {"type": self.modality, "path": self.path}
        grid = {} if self.grid is None else {"grid": list(self.grid)}
        return {"type": self.modality, "codes": self.codes.tolist(), **grid}


@dataclass(frozen=True, eq=False)
class Image(Media):
    modality: ClassVar[str] = "image"


@dataclass(frozen=True, eq=False)
class Audio(Media):
    modality: ClassVar[str] = "audio"


@dataclass(frozen=True, eq=False)
class Video(Media):
    modality: ClassVar[str] = "video"


Part = Text | Media


class MediaParts(Mapping[str, type[Media]]):
    """Medium → the class of its parts, for every medium that is registered; a new one's class is made when asked for.

    Raises KeyError for a name that is no medium.
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
    codes: object = None,
    path: str | None = None,
    data: bytes | None = None,
    grid: tuple[int, int] | None = None,
) -> Media:
    """A part of that medium. Raises ValueError as its class does."""
    find_medium(modality)
    return MEDIA_PARTS[modality](codes, path, data, grid)


def part_from_dict(data: Mapping[str, Any]) -> Part:
    """The inverse of a part's `to_dict`; ValueError on an unknown type or entry."""
    fields = dict(data)
    kind = fields.pop("type", None)
    try:
        if kind == "text":
            return Text(**fields)
        if kind in MEDIA_PARTS:
            if isinstance(fields.get("data"), str):
                fields["data"] = base64.b64decode(fields["data"], validate=True)
            return MEDIA_PARTS[kind](**fields)
    except binascii.Error as error:
        raise ValueError(f"the data of a part of type {kind!r} is not base64 ({error})") from None
    except TypeError:
        raise ValueError(f"a part of type {kind!r} does not take {', '.join(sorted(fields)) or 'nothing'}") from None
    raise ValueError(f"part type {kind!r} is unknown; use {join_names(('text', *MEDIA))}")


@dataclass(frozen=True)
class Turn:
    role: str
    parts: tuple[Part, ...]

    def __init__(self, role: str, parts: Iterable[Part] | str = ()) -> None:
        if role not in ROLES:
            raise ValueError(f"role {role!r} is unknown; use {', '.join(ROLES)}")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", (Text(parts),) if isinstance(parts, str) else tuple(parts))
        given: tuple[object, ...] = self.parts
        for part in given:
            if not isinstance(part, (Text, Media)):
                names = join_names(("Text", *(MEDIA_PARTS[name].__name__ for name in MEDIA)))
                raise ValueError(f"a part must be {names}, got {type(part).__name__}")

    @property
    def text(self) -> str:
        """All texts of the turn, with a space between them."""
        return " ".join(part.text for part in self.parts if isinstance(part, Text) and part.text)

    def canonical(self) -> Turn:
        parts: list[Part] = []
        for part in self.parts:
            if isinstance(part, Text) and not part.text:
                continue
            if isinstance(part, Text) and parts and isinstance(parts[-1], Text):
                parts[-1] = Text(f"{parts[-1].text} {part.text}")
            else:
                parts.append(part)
        return Turn(self.role, parts)

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "parts": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True)
class Document:
    turns: tuple[Turn, ...]

    def __init__(self, turns: Iterable[Turn] = ()) -> None:
        object.__setattr__(self, "turns", tuple(turns))

    def canonical(self) -> Document:
        """The same document with adjacent texts joined and empty texts dropped."""
        return Document(turn.canonical() for turn in self.turns)

    def with_system(self, words: str) -> Document:
        """The document with these words of the system before it, where there are any and it has none of its own."""
        if not words or any(turn.role == "system" for turn in self.turns):
            return self
        return Document([Turn("system", words), *self.turns])

    def without_text(self, roles: Iterable[str] = ("system", "user")) -> Document:
        """The document with the texts of these roles dropped: the unconditional side of classifier-free guidance."""
        drop = set(roles)
        return Document(
            Turn(turn.role, [p for p in turn.parts if turn.role not in drop or not isinstance(p, Text)])
            for turn in self.turns
        )

    def with_text(self, text: str) -> Document:
        """The document without its texts but with this one at the end of the last turn: a negative prompt."""
        bare = self.without_text()
        return Document([*bare.turns[:-1], Turn(bare.turns[-1].role, [*bare.turns[-1].parts, Text(text)])])

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for turn in self.turns for part in turn.parts)

    def to_dict(self) -> dict[str, Any]:
        return {"turns": [turn.to_dict() for turn in self.turns]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Document:
        try:
            return cls(Turn(turn["role"], [part_from_dict(part) for part in turn["parts"]]) for turn in data["turns"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a document is {{'turns': [{{'role', 'parts'}}]}}; missing or wrong entry: {error}"
            ) from None
