"""Plans scenes at random: which things, how many, where, in which colours, and what moves.

Things never touch (at least `GAP` pixels lie between their squares) and never leave the picture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from unimodal.data.order import make_generator
from unimodal.data.scenes.colours import BACKGROUNDS, COLOURS
from unimodal.data.scenes.scene import MOTIONS, SIDE, Kind, Placed, Scene, Split, Thing, has_held_out
from unimodal.data.scenes.words import BIG, OPPOSITE, PLACES, SMALL
from unimodal.data.sources import pick

GAP, EDGE = 3, 2
TRIES = 400
CENTRES = (13.0, 32.0, 51.0)  # of the three columns and rows that places name
SLIDES = ("left", "right", "up", "down")
ROUND = ("shape:circle", "shape:ring")  # nobody sees them turn
#: share of each kind among the pictures
SHARES: dict[Kind, float] = {"one": 0.22, "count": 0.36, "place": 0.2, "pair": 0.22}


class Planner:
    """Plans scenes of things whose pictures (sprites) are known.

    sprites: thing → its sprites in the styles that may be used. looks: sprite → the colour that it has by itself, "".
    """

    def __init__(self, things: Sequence[Thing], sprites: Mapping[int, Sequence[int]], looks: Sequence[str]) -> None:
        self.things, self.sprites, self.looks = things, sprites, looks
        self.usable = [thing.id for thing in things if sprites.get(thing.id)]
        if len(self.usable) < 2:
            raise ValueError("scenes need at least two things; prepare the sprites again")

    def plan(self, number: int, split: Split, kind: Kind | None = None) -> Scene:
        """Scene `number` of a split: of `combination` with, of all others without, what is held out together."""
        for attempt in range(TRIES):
            draws = make_generator("scene", split, kind or "", number, attempt)
            chosen = kind or draws.choices(list(SHARES), list(SHARES.values()))[0]
            scene = self._plan(draws, chosen, split)
            if scene.motion == "turns" and self.things[scene.things[0].thing].family in ROUND:
                continue
            if has_held_out(scene, self.things) == (split == "combination"):
                return scene
        raise ValueError(f"there is no scene of split {split} and kind {kind} among these things; give more things")

    def _plan(self, draws: random.Random, kind: Kind, split: Split) -> Scene:
        scene = self._plan_things(draws, kind, split)
        if draws.random() < 0.35:
            background = pick(draws, [name for name in BACKGROUNDS if name != "white"])
            if all(placed.colour not in background for placed in scene.things if placed.colour):
                return replace(scene, background=background, seed=int(draws.random() * 64))
        return scene

    def _plan_things(self, draws: random.Random, kind: Kind, split: Split) -> Scene:
        if kind == "one":
            size = draws.uniform(40, 58) if draws.random() < 0.6 else draws.uniform(15, SMALL)
            thing = self._choose(draws, size, 0.6)
            x, y = (draws.uniform(size / 2 + EDGE, SIDE - EDGE - size / 2) for _ in range(2))
            return Scene(kind, split, (replace(thing, x=x, y=y),))
        if kind == "place":
            thing = self._choose(draws, draws.uniform(14, 20), 0.4)
            place = pick(draws, list(PLACES))
            x, y = (CENTRES[at] + draws.uniform(-2, 2) for at in PLACES[place])
            return Scene(kind, split, (replace(thing, x=x, y=y),), place=place)
        if kind == "count":
            count = 1 + int(draws.random() * 5)
            size = draws.uniform(14, (40, 26, 22, 20, 18)[count - 1])
            thing = self._choose(draws, size, 0.6)
            return Scene(kind, split, self._scatter(draws, thing, count))
        if kind == "pair":
            return self._plan_pair(draws, split)
        return self._plan_clip(draws, split)

    def _plan_pair(self, draws: random.Random, split: Split) -> Scene:
        relation = pick(draws, list(OPPOSITE))
        sizes = [draws.uniform(21.5, 26), draws.uniform(21.5, 26)]
        if draws.random() < 0.3:
            sizes = [draws.uniform(14, 17), draws.uniform(BIG, 40)]
            draws.shuffle(sizes)
        first, second = self._choose_two(draws, sizes)
        near, far = (first, second) if relation in ("left", "above") else (second, first)
        free = max(SIDE - 2 * EDGE - GAP - near.size - far.size, 0)
        before, between = sorted(draws.random() * free for _ in range(2))
        at_near, at_far = EDGE + before + near.size / 2, EDGE + between + near.size + GAP + far.size / 2
        across = draws.uniform(SIDE / 2 - 8, SIDE / 2 + 8)
        level = relation in ("left", "right")

        def put(placed: Placed, at: float) -> Placed:
            aside = min(max(across, placed.size / 2 + EDGE), SIDE - EDGE - placed.size / 2)
            return replace(placed, x=at if level else aside, y=aside if level else at)

        near, far = put(near, at_near), put(far, at_far)
        ordered = (near, far) if relation in ("left", "above") else (far, near)
        return Scene("pair", split, ordered, relation=relation)

    def _plan_clip(self, draws: random.Random, split: Split) -> Scene:
        motion = pick(draws, MOTIONS)
        two = draws.random() < 0.5
        size = draws.uniform(18, 24) if two else draws.uniform(20, 26 if motion in SLIDES else 34)
        if not two:
            mover = replace(self._choose(draws, size, 0.4), x=draws.uniform(26, 38), y=draws.uniform(26, 38))
            return Scene("clip", split, (mover,), motion=motion)
        mover, other = self._choose_two(draws, [size, draws.uniform(18, 24)])
        # the mover has a half of the picture to itself, along its way
        level = motion in ("left", "right") or (motion not in ("up", "down") and draws.random() < 0.5)
        mine, others = (16.0, 48.0) if draws.random() < 0.5 else (48.0, 16.0)
        along, away = draws.uniform(28, 36), draws.uniform(16, 48)
        mover = replace(mover, x=along if level else mine, y=mine if level else along)
        other = replace(other, x=away if level else others, y=others if level else away)
        return Scene("clip", split, (mover, other), motion=motion)

    def _choose(self, draws: random.Random, size: float, painted_share: float) -> Placed:
        """A thing at no place yet, in one of its styles, painted or with its own colours."""
        thing = self.things[pick(draws, self.usable)]
        sprite = pick(draws, self.sprites[thing.id])
        must = thing.family.startswith("shape:")
        if thing.paintable and (must or draws.random() < painted_share):
            return Placed(thing.id, sprite, 0, 0, round(size, 1), pick(draws, list(COLOURS)))
        return Placed(thing.id, sprite, 0, 0, round(size, 1), "", self.looks[sprite])

    def _choose_two(self, draws: random.Random, sizes: Sequence[float]) -> tuple[Placed, Placed]:
        first = self._choose(draws, sizes[0], 0.3)
        while True:
            second = self._choose(draws, sizes[1], 0.3)
            names = [self.things[placed.thing].name for placed in (first, second)]
            if self.things[first.thing].family != self.things[second.thing].family and names[0] != names[1]:
                return first, second

    def _scatter(self, draws: random.Random, thing: Placed, count: int) -> tuple[Placed, ...]:
        """`count` of a thing, apart from each other."""
        size = thing.size
        while True:
            found: list[Placed] = []
            for _ in range(60):
                x, y = (draws.uniform(size / 2 + EDGE, SIDE - EDGE - size / 2) for _ in range(2))
                if all(max(abs(x - one.x), abs(y - one.y)) >= size + GAP for one in found):
                    found.append(replace(thing, x=round(x, 1), y=round(y, 1)))
                if len(found) == count:
                    return tuple(found)
            size *= 0.95
            thing = replace(thing, size=round(size, 1))
