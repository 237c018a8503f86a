"""Grounded tasks: documents about regions of pictures, with masks and boxes as parts beside words and pictures.

    mask_to_name   a picture and a mask; the name of what lies under it (open-ended recognition, OSM, arXiv 2311.08400)
    box_to_name    the same with a box
    words_to_mask  a picture and words that single something out; its mask (referring segmentation; one transformer does
                   all of it, as in Pixel-SAIL, arXiv 2504.10465)
    words_to_box   the same with a box
    all_at_once    a picture; every thing's name and its mask, in turns, in one answer (words and pixels decoded
                   together, as X-Decoder, arXiv 2212.11270, does with queries)

What is said and asked comes from a generator; a document asks about one picture several times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unimodal.data.grounded.expressions import list_referred, name_region
from unimodal.data.grounded.regions import Region
from unimodal.data.order import make_generator
from unimodal.data.scenes.words import SceneWords, add_article
from unimodal.data.sources import pick
from unimodal.sequence.document import Document, Part, Text, Turn

ASK_NAME = ("What is this?", "What is here?", "Name it.")
ASK_MASK = ("Segment {thing}.", "Mark {thing}.", "Which pixels are {thing}?")
ASK_BOX = ("Where is {thing}?", "Find {thing}.", "Put a box around {thing}.")
ASK_ALL = ("Segment everything.", "Name and mark everything.")


class GroundedScenes(Protocol):
    """Scenes with their pictures, masks and boxes as parts: by their codes, or by their files."""

    def __len__(self) -> int: ...

    def find_words(self, item: int) -> SceneWords: ...

    def make_picture(self, item: int) -> Part: ...

    def list_regions(self, item: int) -> Sequence[Region]:
        """The regions of which something is seen."""

    def make_mask(self, item: int, region: Region) -> Part: ...

    def make_box(self, item: int, region: Region) -> Part: ...


@dataclass(frozen=True)
class GroundedExchange:
    """A question and its answer; the picture stands before the first question. region: what is asked about, () of
    everything."""

    question: tuple[Part, ...]
    answer: tuple[Part, ...]
    region: Region = ()


def name_mask(scenes: GroundedScenes, item: int, draws: random.Random | None = None) -> list[GroundedExchange]:
    return _name(scenes, item, scenes.make_mask, draws)


def name_box(scenes: GroundedScenes, item: int, draws: random.Random | None = None) -> list[GroundedExchange]:
    return _name(scenes, item, scenes.make_box, draws)


def refer_to_mask(scenes: GroundedScenes, item: int, draws: random.Random | None = None) -> list[GroundedExchange]:
    return _refer(scenes, item, ASK_MASK, scenes.make_mask, draws)


def refer_to_box(scenes: GroundedScenes, item: int, draws: random.Random | None = None) -> list[GroundedExchange]:
    return _refer(scenes, item, ASK_BOX, scenes.make_box, draws)


def tell_all(scenes: GroundedScenes, item: int, draws: random.Random | None = None) -> list[GroundedExchange]:
    """Everything from left to right; several that are alike come one by one."""
    words = scenes.find_words(item)
    alone = [region for region in scenes.list_regions(item) if len(region) == 1]
    answer: list[Part] = []
    for region in sorted(alone, key=lambda region: (words.scene.things[region[0]].x, region)):
        said = add_article(words.phrase(words.scene.things[region[0]]))
        answer += [Text(said), scenes.make_mask(item, region)]
    return [GroundedExchange((Text(_choose(draws, ASK_ALL)),), tuple(answer))]


Task = Callable[[GroundedScenes, int, random.Random | None], list[GroundedExchange]]
#: name → what it asks and answers about one picture
TASKS: Mapping[str, Task] = {
    "mask_to_name": name_mask,
    "box_to_name": name_box,
    "words_to_mask": refer_to_mask,
    "words_to_box": refer_to_box,
    "all_at_once": tell_all,
}
#: task → the media that it reads or writes besides the picture
MEDIA_OF_TASK = {
    "mask_to_name": "mask", "box_to_name": "box", "words_to_mask": "mask", "words_to_box": "box", "all_at_once": "mask",
}  # fmt: skip


class GroundedSource:
    """Documents that ask about one picture `most` times at most, each time by a task drawn from `shares`.

    shares: task → how often it is asked, against the others. Raises ValueError for an unknown task and for shares that
    ask nothing.
    """

    def __init__(
        self, scenes: GroundedScenes, shares: Mapping[str, float], most: int = 4, seed: int = 0, name: str = "grounded"
    ) -> None:
        check_shares(shares)
        self.scenes, self.most, self.seed, self.name = scenes, most, seed, name
        self.shares = {task: share for task, share in shares.items() if share}

    def __len__(self) -> int:
        return len(self.scenes)

    def get_group(self, item: int) -> str:
        return self.scenes.find_words(item).scene.kind

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        exchanges: list[GroundedExchange] = []
        for _ in range(4 * self.most):
            task = draws.choices(list(self.shares), list(self.shares.values()))[0]
            made = TASKS[task](self.scenes, item, draws)
            exchanges += [one for one in made[:1] if one not in exchanges]
            if len(exchanges) >= self.most:
                break
        return make_document(self.scenes.make_picture(item), exchanges)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError for an unknown task, a share below 0, and shares that ask nothing."""
    for task, share in shares.items():
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}; choose from {', '.join(TASKS)}")
        if not share >= 0:
            raise ValueError(f"the share of {task} is {share}; give a number ≥ 0")
    if not any(shares.values()):
        raise ValueError("no task has a share above 0; give at least one")


def make_document(picture: Part, exchanges: Sequence[GroundedExchange]) -> Document:
    """The picture and the first question in one turn, then the answers and further questions."""
    turns: list[Turn] = []
    for exchange in exchanges:
        asked = exchange.question if turns else (picture, *exchange.question)
        turns += [Turn("user", asked), Turn("assistant", exchange.answer)]
    return Document(turns)


def _name(
    scenes: GroundedScenes, item: int, make: Callable[[int, Region], Part], draws: random.Random | None
) -> list[GroundedExchange]:
    words, regions = scenes.find_words(item), list(scenes.list_regions(item))
    if draws is not None:
        draws.shuffle(regions)
    return [
        GroundedExchange(
            (make(item, region), Text(_choose(draws, ASK_NAME))), (Text(name_region(words, region)),), region
        )
        for region in regions
    ]


def _refer(
    scenes: GroundedScenes,
    item: int,
    asked: Sequence[str],
    make: Callable[[int, Region], Part],
    draws: random.Random | None,
) -> list[GroundedExchange]:
    seen = scenes.list_regions(item)
    found = [(region, listed) for region, listed in list_referred(scenes.find_words(item)) if region in seen]
    if draws is not None:
        draws.shuffle(found)
    return [
        GroundedExchange(
            (Text(_choose(draws, asked).format(thing=_choose(draws, listed))),), (make(item, region),), region
        )
        for region, listed in found
    ]


def _choose(draws: random.Random | None, choices: Sequence[str]) -> str:
    return choices[0] if draws is None else pick(draws, choices)
