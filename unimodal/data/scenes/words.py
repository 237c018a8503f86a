"""The words of scenes: captions by a grammar, questions with their answers, and talk that comes back to a scene.

Every choice of a wording comes from a generator that the caller seeds. An answer is short (`three`, `red`, `on the
left`) and true of the picture; what a scene does not settle is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.data.scenes.colours import COLOURS
from unimodal.data.scenes.scene import Placed, Scene, Thing
from unimodal.data.sources import pick

NUMBERS = ("no", "one", "two", "three", "four", "five")
PLACES = {  # name → (column, row), each 0, 1 or 2, the first of them left and at the top
    "on the left": (0, 1), "on the right": (2, 1), "at the top": (1, 0), "at the bottom": (1, 2),
    "in the middle": (1, 1), "in the top left corner": (0, 0), "in the top right corner": (2, 0),
    "in the bottom left corner": (0, 2), "in the bottom right corner": (2, 2),
}  # fmt: skip
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
MOVES = {
    "left": ("moves to the left", "slides to the left"), "right": ("moves to the right", "slides to the right"),
    "up": ("moves up", "slides up"), "down": ("moves down", "slides down"), "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"), "turns": ("turns", "turns around"), "appears": ("appears", "comes up"),
    "disappears": ("disappears", "goes away"),
}  # fmt: skip
SMALL, BIG = 20, 36  # sides in pixels: up to the one a thing is small, from the other on it is big

PLURALS = {
    "mouse": "mice", "goose": "geese", "ox": "oxen", "deer": "deer", "fish": "fish", "sheep": "sheep", "bison": "bison",
    "moose": "moose", "shrimp": "shrimp", "squid": "squid", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
    "dice": "dice", "die": "dice", "tomato": "tomatoes", "potato": "potatoes", "volcano": "volcanoes",
    "mango": "mangoes", "buffalo": "buffalo", "scarf": "scarves", "aircraft": "aircraft",
    "shelf": "shelves", "cactus": "cacti", "tooth": "teeth", "foot": "feet", "child": "children", "calf": "calves",
}  # fmt: skip
SOUNDS_LIKE_YOU = ("uni", "use", "usa", "uk", "eu", "ute")


def pluralise(name: str) -> str:
    """`hot dog` → `hot dogs`; the last word is the noun."""
    head, _, noun = name.rpartition(" ")
    if noun in PLURALS:
        noun = PLURALS[noun]
    elif noun.endswith(("s", "x", "z", "ch", "sh")):
        noun += "es"
    elif noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return f"{head} {noun}".strip()


def add_article(words: str) -> str:
    """`old apple` → `an old apple`, `unicorn` → `a unicorn`."""
    vowel = words[0] in "aeiou" and not words.startswith(SOUNDS_LIKE_YOU) or words.startswith("hour")
    return f"{'an' if vowel else 'a'} {words}"


@dataclass(frozen=True)
class Question:
    """about: what, many, colour, where, size, background, moves, how or still."""

    about: str
    text: str
    answer: str


class SceneWords:
    """What can be said about one scene."""

    def __init__(self, scene: Scene, things: Sequence[Thing]) -> None:
        self.scene, self.things = scene, things

    @property
    def count(self) -> int:
        """How many things there are."""
        return len(self.scene.things)

    def name(self, placed: Placed) -> str:
        """`apple`"""
        return self.things[placed.thing].name

    def phrase(self, placed: Placed, sized: bool = False) -> str:
        """`small red apple`, with its painted colour and, if `sized`, its size."""
        size = self.size(placed) if sized else ""
        return " ".join(word for word in (size, placed.colour, self.name(placed)) if word)

    def size(self, placed: Placed) -> str:
        """`small`, `big` or, between them, ""."""
        return "small" if placed.size <= SMALL else "big" if placed.size >= BIG else ""

    # ---- captions

    def caption(self, draws: random.Random | None = None) -> str:
        """What the scene shows, all that matters of it; the wording of None is the plainest."""
        words = self._caption_things(draws)
        if self.scene.background != "white":
            words += f" on a {self.scene.background} background"
        return words

    def _caption_things(self, draws: random.Random | None) -> str:
        scene, first = self.scene, self.scene.things[0]
        if scene.kind == "count":
            alike = pluralise(self.phrase(first)) if self.count > 1 else self.phrase(first)
            return f"{NUMBERS[self.count]} {alike}"
        if scene.kind == "clip":
            return self._caption_clip(draws)
        if scene.kind == "pair":
            return self._caption_pair(draws)
        one = add_article(self.phrase(first, sized=scene.kind == "one"))
        if scene.place:
            if draws is not None and draws.random() < 0.2:
                return f"{scene.place} there is {one}"
            return f"{one} {scene.place}"
        return one

    def _caption_pair(self, draws: random.Random | None) -> str:
        first, second = self.scene.things
        sized = self.size(first) != self.size(second)
        one, other = (add_article(self.phrase(placed, sized)) for placed in (first, second))
        if draws is not None and draws.random() < 0.5:
            return f"{other} {RELATIONS[OPPOSITE[self.scene.relation]]} {one}"
        return f"{one} {RELATIONS[self.scene.relation]} {other}"

    def _caption_clip(self, draws: random.Random | None) -> str:
        assert self.scene.motion is not None
        first, *still = self.scene.things
        moves = MOVES[self.scene.motion]
        words = f"{add_article(self.phrase(first))} {moves[0] if draws is None else pick(draws, moves)}"
        if still:
            words += f" and {add_article(self.phrase(still[0]))} stays still"
        return words

    # ---- questions

    def ask_all(self, draws: random.Random) -> list[Question]:
        """Every question that the scene answers, in one wording each."""
        if self.scene.kind == "clip":
            found = [self.ask_happens(draws), self.ask_moves(draws), self.ask_how(draws), self.ask_still(draws)]
        else:
            found = [self.ask_what(draws), self.ask_many(draws), self.ask_colour(draws), self.ask_where(draws)]
            found += [self.ask_size(draws), self.ask_background(draws), self.ask_whether(draws)]
        return [question for question in found if question is not None]

    def answer_what(self) -> str:
        """What is to be seen: `an apple`, `apples`, `a cat and a dog`."""
        if self.scene.kind == "count" and self.count > 1:
            return pluralise(self.name(self.scene.things[0]))
        return " and ".join(add_article(self.name(placed)) for placed in self.scene.things)

    def ask_what(self, draws: random.Random) -> Question:
        asked = ("What is this?", "What do you see?", "What is in the picture?", "What does the picture show?")
        return Question("what", pick(draws, asked), self.answer_what())

    def ask_many(self, draws: random.Random) -> Question | None:
        if self.scene.kind == "pair":
            return None
        names = pluralise(self.name(self.scene.things[0]))
        asked = (f"How many {names} are there?", f"How many {names} do you see?", f"Count the {names}.", "How many?",
                 "How many are there?")  # fmt: skip
        return Question("many", pick(draws, asked), NUMBERS[self.count])

    def ask_colour(self, draws: random.Random) -> Question | None:
        asked = [placed for placed in self.scene.things if placed.colour or placed.looks]
        if not asked or (self.scene.kind == "count" and len({placed.colour for placed in asked}) > 1):
            return None
        placed, single = pick(draws, asked), self.count == 1 or self.scene.kind == "pair"
        name = self.name(placed) if single else pluralise(self.name(placed))
        verb = "is" if single else "are"
        words = [
            f"What colour {verb} the {name}?",
            f"Which colour {verb} the {name}?",
            f"What color {verb} the {name}?",
        ]
        if self.scene.kind != "pair":
            it = "is it" if single else "are they"
            words += [f"What colour {it}?", f"Which colour {it}?"]
        return Question("colour", pick(draws, words), placed.colour or placed.looks)

    def ask_where(self, draws: random.Random) -> Question | None:
        if self.scene.kind == "pair":
            first, second = self.scene.things
            relation = self.scene.relation
            if draws.random() < 0.5:
                first, second, relation = second, first, OPPOSITE[relation]
            if draws.random() < 0.5:
                text = f"What is {RELATIONS[relation]} the {self.name(second)}?"
                return Question("where", text, add_article(self.name(first)))
            answer = f"{RELATIONS[relation]} the {self.name(second)}"
            return Question("where", f"Where is the {self.name(first)}?", answer)
        if not self.scene.place:
            return None
        name = self.name(self.scene.things[0])
        return Question("where", pick(draws, (f"Where is the {name}?", "Where is it?")), self.scene.place)

    def ask_size(self, draws: random.Random) -> Question | None:
        if self.scene.kind == "pair":
            sizes = {self.size(placed): placed for placed in self.scene.things}
            if set(sizes) != {"small", "big"}:
                return None
            size, word = pick(draws, (("big", "bigger"), ("small", "smaller")))
            return Question("size", f"Which is {word}?", f"the {self.name(sizes[size])}")
        first = self.scene.things[0]
        if self.scene.kind != "one" or not self.size(first):
            return None
        name = self.name(first)
        asked = (f"Is the {name} big or small?", "Is it big or small?", f"How big is the {name}?")
        return Question("size", pick(draws, asked), self.size(first))

    def ask_background(self, draws: random.Random) -> Question:
        asked = ("What colour is the background?", "Which colour is the background?")
        return Question("background", pick(draws, asked), self.scene.background)

    def ask_whether(self, draws: random.Random) -> Question:
        """Whether something is there, or has a colour: yes or no, as often as the other."""
        placed = pick(draws, self.scene.things)
        colour, true = placed.colour or placed.looks, draws.random() < 0.5
        if colour and draws.random() < 0.5:
            said = colour if true else pick(draws, [name for name in COLOURS if name != colour])
            name = self.name(placed)
            many = self.scene.kind == "count" and self.count > 1
            asked = f"Are the {pluralise(name)} {said}?" if many else f"Is the {name} {said}?"
            return Question("whether", asked, "yes" if true else "no")
        present = {self.name(one) for one in self.scene.things}
        split = self.things[placed.thing].split  # what is held out is not named in training, nor told to be absent
        other = pick(draws, [thing.name for thing in self.things if thing.split == split])
        name = self.name(placed) if true or other in present else other
        return Question("whether", f"Is there {add_article(name)}?", "yes" if name in present else "no")

    def ask_happens(self, draws: random.Random) -> Question:
        asked = ("What happens?", "What happens in this clip?", "Describe the video.", "What does the video show?")
        return Question("what", pick(draws, asked), self.caption())

    def ask_moves(self, draws: random.Random) -> Question | None:
        asked = ("What moves?", "What moves here?", "Which thing moves?")
        return Question("moves", pick(draws, asked), f"the {self.name(self.scene.things[0])}")

    def ask_how(self, draws: random.Random) -> Question:
        assert self.scene.motion is not None
        name = self.name(self.scene.things[0])
        asked = (f"What does the {name} do?", f"How does the {name} move?")
        return Question("how", pick(draws, asked), f"it {MOVES[self.scene.motion][0]}")

    def ask_still(self, draws: random.Random) -> Question | None:
        if self.count < 2:
            return None
        return Question("still", "What stays still?", f"the {self.name(self.scene.things[1])}")

    # ---- talk

    def talk(self, draws: random.Random | None = None) -> list[Question]:
        """Three questions one after the other: name, colour, count. Later ones lean on earlier ones ("it", "they").

        Those that the scene does not settle are left out. None: in the plainest words, as the suites ask.
        """
        many = self.scene.kind == "count" and self.count > 1
        it, name = ("they" if many else "it"), self.name(self.scene.things[0])
        colour = self.scene.things[0].colour or self.scene.things[0].looks
        verb = "are" if many else "is"
        found = [Question("what", _choose(draws, ("What is this?", "What do you see?", "What is in the picture?")),
                          self.answer_what())]  # fmt: skip
        if colour and self.scene.kind != "pair":
            asked = (
                f"And what colour {verb} {it}?",
                f"What colour {verb} {it}?",
                "And the colour?",
                f"Which colour {verb} {it}?",
            )
            found.append(Question("colour", _choose(draws, asked), colour))
        if self.scene.kind != "pair":
            asked = (
                "And how many are there?",
                "How many are there?",
                "How many?",
                f"And how many {pluralise(name)} are there?",
            )
            found.append(Question("many", _choose(draws, asked), NUMBERS[self.count]))
        return found


def _choose(draws: random.Random | None, choices: Sequence[str]) -> str:
    return choices[0] if draws is None else pick(draws, choices)
