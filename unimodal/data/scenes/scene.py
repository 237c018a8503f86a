"""A scene: things at places on a background, and which of them moves. Pictures, words and questions are made of it.

A scene is kept as a line of JSON. What must never be learnt together is decided by a hash (`is_held_out`), so that the
split stays as it is when things are added.

Shapes: positions are centres in pixels of a 64 × 64 picture, y from the top; sizes are the longer side of a thing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from unimodal.files import read_json_as, write_text_atomically

SIDE = 64  # of a picture, pixels
NUM_FRAMES = 9  # of a clip, 8 a second
HELD_OUT_SHARE, SPLIT_SEED = 0.1, 0

Motion = Literal["left", "right", "up", "down", "grows", "shrinks", "turns", "appears", "disappears"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
#: what a scene may be asked about; the words of each are in words.py
Kind = Literal["one", "count", "place", "pair", "clip"]
#: train; seen: other scenes of what was trained on; combination: of known things put together anew; concept: of things
#: that were never seen; style: of known things in the style that was never seen
Split = Literal["train", "seen", "combination", "concept", "style"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Thing:
    """What can be put into a scene. family: the same for all genders of one concept, and for clip art of its name.

    natural: the colours that its pictures have by themselves. split: `train` or `heldout`. paintable: may be painted.
    """

    id: int
    name: str
    family: str
    split: str
    natural: tuple[str, ...] = ()
    paintable: bool = True


@dataclass(frozen=True)
class Placed:
    """A thing in a scene. thing, sprite: numbers of `things.json` and `sprites.npz`. colour: what it is painted in, ""
    where it has its own. looks: the colour that it has by itself, "" where it has several."""

    thing: int
    sprite: int
    x: float
    y: float
    size: float
    colour: str = ""
    looks: str = ""


@dataclass(frozen=True)
class Scene:
    """things: of a count all alike; of a pair two. place: the name of where a single thing is. relation: where the
    first of a pair is as seen from the second. motion: what the first thing of a clip does; others stay."""

    kind: Kind
    split: Split
    things: tuple[Placed, ...]
    background: str = "white"
    place: str = ""
    relation: str = ""
    motion: Motion | None = None
    seed: int = 0


def is_held_out(kind: str, *names: str) -> bool:
    """Whether a combination, such as ("colour", "red", family), is kept from training: a tenth of each kind."""
    digest = sha256("/".join([str(SPLIT_SEED), kind, *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def list_combinations(scene: Scene, things: Sequence[Thing]) -> Iterator[tuple[str, ...]]:
    """What a scene puts together: (colour, family), (count, family), (pair of families), (motion, family)."""
    for placed in scene.things:
        thing, colour = things[placed.thing], placed.colour or placed.looks
        if colour and colour not in thing.natural:
            yield "colour", colour, thing.family
    first = things[scene.things[0].thing].family
    if scene.kind == "count":
        yield "count", str(len(scene.things)), first
    if len({placed.thing for placed in scene.things}) == 2:
        yield "pair", *sorted(things[placed.thing].family for placed in scene.things)
    if scene.motion is not None:
        yield "motion", scene.motion, first


def has_held_out(scene: Scene, things: Sequence[Thing]) -> bool:
    """Whether a scene puts together what training never does."""
    return any(is_held_out(*combination) for combination in list_combinations(scene, things))


def read_things(path: Path) -> list[Thing]:
    """`things.json` of tools/prepare_scenes.py; numbers are positions in the list."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with `{PREPARE}`")
    return read_json_as(list[Thing], path, f"make it with `{PREPARE}`")


def write_scenes(path: Path, scenes: Iterable[Scene]) -> None:
    """One line of JSON a scene."""
    write_text_atomically(path, "".join(json.dumps(asdict(scene)) + "\n" for scene in scenes))


def read_scenes(path: Path) -> list[Scene]:
    """The inverse of `write_scenes`. Raises ValueError, in one line, for a file that is missing."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with `{PREPARE}`")
    return [_read_scene(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def _read_scene(row: dict[str, object]) -> Scene:
    things = row.pop("things")
    assert isinstance(things, list)
    return Scene(things=tuple(Placed(**placed) for placed in things), **row)  # type: ignore[arg-type]


PREPARE = "python tools/prepare_scenes.py"
