"""Scenes by their codes → documents: questions about them, requests to make them, and talk that comes back to them.

    scene_to_text   a picture, and one to five questions or a caption
    text_to_scene   a caption; the picture is the answer
    scene_talk      a picture (sometimes first drawn), then its name, its colour and how many there are
    moves_to_text   a clip, and what happens in it
    text_to_moves   a caption; the clip is the answer

Shapes: M scenes, N codes, G groups.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

from unimodal.data.order import make_generator
from unimodal.data.scenes.scene import Kind, Scene, Thing
from unimodal.data.scenes.words import Question, SceneWords
from unimodal.data.sources import WISH, make_informal, pick
from unimodal.sequence.document import Document, Image, Part, Text, Turn, Video

#: how often a question is asked, against others that a scene answers
ASKED = {"what": 1.0, "many": 1.5, "colour": 1.5, "where": 1.5, "size": 0.7, "background": 0.3, "whether": 0.5}
DESCRIBE = ("Describe the picture.", "Describe this picture.", "Describe the image.", "What is shown?")
DRAWN_SHARE = 0.2  # of the talks that begin with a picture that is asked for


class EncodedScenes:
    """The scenes of one split by their codes, int [M, N] or [M, N, G] of all splits, in the order of `scenes`."""

    def __init__(
        self,
        codes: np.ndarray,
        scenes: Sequence[Scene],
        things: Sequence[Thing],
        split: str = "train",
        kinds: Collection[Kind] | None = None,
    ) -> None:
        if len(codes) != len(scenes):
            raise ValueError(f"the codes of {len(codes)} scenes do not belong to {len(scenes)}; encode again")
        self._codes, self._scenes, self.things = codes, scenes, things
        self.part: type[Image] | type[Video] = Video if any(scene.motion for scene in scenes) else Image
        self.items = [
            row for row, scene in enumerate(scenes) if scene.split == split and (kinds is None or scene.kind in kinds)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def get_scene(self, item: int) -> Scene:
        return self._scenes[self.items[item]]

    def make_part(self, item: int) -> Image | Video:
        return self.part(codes=self._codes[self.items[item]].astype(np.int64))

    def find_words(self, item: int) -> SceneWords:
        return SceneWords(self.get_scene(item), self.things)


class SceneSource:
    """What the sources of scenes share. name: of the task."""

    def __init__(self, scenes: EncodedScenes, name: str, seed: int = 0) -> None:
        self.scenes, self.name, self.seed = scenes, name, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def get_group(self, item: int) -> str:
        return self.scenes.get_scene(item).kind

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        return self.write(item, draws)

    def write(self, item: int, draws: random.Random) -> Document:
        """The document of an item, in the wording that a generator chooses."""
        raise NotImplementedError


class SceneToText(SceneSource):
    """Asks about a scene: for its caption, or one to five questions one after the other."""

    def write(self, item: int, draws: random.Random) -> Document:
        words = self.scenes.find_words(item)
        if words.scene.kind == "clip":
            return make_talk(self.scenes.make_part(item), choose_questions(words.ask_all(draws), draws, 2), draws)
        questions = choose_questions(words.ask_all(draws), draws, 5)
        if draws.random() < 0.3:
            questions[-1] = Question("caption", pick(draws, DESCRIBE), words.caption(draws))
        return make_talk(self.scenes.make_part(item), questions, draws)


class TextToScene(SceneSource):
    """Asks for a scene by its caption; the picture or clip is the answer."""

    def write(self, item: int, draws: random.Random) -> Document:
        part = self.scenes.make_part(item)
        return Document([Turn("user", wish_for(self.scenes, item, draws)), Turn("assistant", [part])])


class SceneTalk(SceneSource):
    """Comes back to one picture: its name, its colour, how many there are; sometimes it is drawn first."""

    def write(self, item: int, draws: random.Random) -> Document:
        words, part = self.scenes.find_words(item), self.scenes.make_part(item)
        questions = words.talk(draws)
        if draws.random() < 0.3:
            others = [one for one in words.ask_all(draws) if one.about in ("where", "size", "background", "whether")]
            questions = [*questions, *choose_questions(others, draws, 1)][:4]
        if draws.random() < DRAWN_SHARE:
            wish = [Turn("user", wish_for(self.scenes, item, draws)), Turn("assistant", [part])]
            return Document([*wish, *make_talk(None, questions[1:] or questions, draws).turns])
        return make_talk(part, questions, draws)


def wish_for(scenes: EncodedScenes, item: int, draws: random.Random) -> str:
    """A request for a scene, in one of the wordings that pictures and clips are asked for in."""
    caption = scenes.find_words(item).caption(draws)
    modality = scenes.part.modality
    return make_informal(draws, pick(draws, WISH[modality]).format(name=caption, thing=caption))


def choose_questions(questions: Sequence[Question], draws: random.Random, most: int) -> list[Question]:
    """One to `most` of the questions, in random order, each about something else."""
    weighed = [(draws.random() ** (1 / ASKED.get(question.about, 1.0)), question) for question in questions]
    count = 1 + int(draws.random() * most)
    return [question for _, question in sorted(weighed, key=lambda pair: -pair[0])][:count]


def make_talk(medium: Image | Video | None, questions: Sequence[Question], draws: random.Random) -> Document:
    """Questions and answers, the medium beside the first question, mostly before it."""
    turns: list[Turn] = []
    for question in questions:
        asked: list[Part] = [Text(make_informal(draws, question.text))]
        if medium is not None and not turns:
            asked = [medium, *asked] if draws.random() < 0.75 else [*asked, medium]
        turns += [Turn("user", asked), Turn("assistant", question.answer)]
    return Document(turns)


def list_scene_sources(pictures: EncodedScenes | None, clips: EncodedScenes | None, seed: int = 0) -> list[SceneSource]:
    """All sources of the scenes that are there."""
    found: list[SceneSource] = []
    if pictures is not None:
        found += [SceneToText(pictures, "scene_to_text", seed), TextToScene(pictures, "text_to_scene", seed)]
        talked = [item for item in range(len(pictures)) if pictures.get_scene(item).kind != "pair"]
        if talked:
            found.append(SceneTalk(pictures, "scene_talk", seed))
    if clips is not None:
        found += [SceneToText(clips, "moves_to_text", seed), TextToScene(clips, "text_to_moves", seed)]
    return found
