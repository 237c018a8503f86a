"""Words that single out one region of a scene: by name, colour, place or size; and what a region is called.

An expression is kept only if exactly one region of the scene fits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from unimodal.data.grounded.regions import Region, list_regions
from unimodal.data.scenes.scene import Placed
from unimodal.data.scenes.words import SceneWords, add_article, pluralise

APART = 8.0  # pixels by which the outermost thing must lie further out, or be larger, than the next
#: words of a place → how far out a thing lies in that direction
SIDES: dict[str, Callable[[Placed], float]] = {
    "on the left": lambda one: -one.x, "on the right": lambda one: one.x, "at the top": lambda one: -one.y,
    "at the bottom": lambda one: one.y,
}  # fmt: skip
SIZES: dict[str, Callable[[Placed], float]] = {
    "bigger": lambda one: one.size,
    "smaller": lambda one: -one.size,
}


def name_region(words: SceneWords, region: Region) -> str:
    """What a region shows: `an apple`, `apples`."""
    name = words.name(words.scene.things[region[0]])
    return pluralise(name) if len(region) > 1 else add_article(name)


def list_expressions(words: SceneWords, region: Region) -> list[str]:
    """All expressions for a region, the plainest first; there may be none."""
    things = words.scene.things
    if len(region) > 1:
        names = pluralise(words.phrase(things[region[0]]))
        return [f"the {names}", f"all {names}"]
    placed = things[region[0]]
    found = [f"the {words.name(placed)}"] if _is_only(words, region, words.name) else []
    colour = placed.colour or placed.looks
    if colour and _is_only(words, region, lambda one: one.colour or one.looks):
        found += [f"the {colour} {words.name(placed)}", f"the {colour} thing"]
    for place in _list_extremes(words, region, SIDES):
        found += [f"the {words.name(placed)} {place}", f"the thing {place}"]
    for size in _list_extremes(words, region, SIZES) if len(things) == 2 else ():
        found += [f"the {size} thing"]
    return found


def list_referred(words: SceneWords) -> list[tuple[Region, list[str]]]:
    """The regions that words can single out, each with its expressions."""
    found = [(region, list_expressions(words, region)) for region in list_regions(words.scene)]
    return [(region, listed) for region, listed in found if listed]


def _is_only(words: SceneWords, region: Region, read: Callable[[Placed], str]) -> bool:
    """Whether no other thing of the scene gives what the region's gives."""
    things = words.scene.things
    return [read(one) for one in things].count(read(things[region[0]])) == 1


def _list_extremes(words: SceneWords, region: Region, ways: dict[str, Callable[[Placed], float]]) -> Iterator[str]:
    things = words.scene.things
    placed = things[region[0]]
    others = [one for number, one in enumerate(things) if number != region[0]]
    for name, measure in ways.items():
        if others and measure(placed) - max(measure(one) for one in others) >= APART:
            yield name
