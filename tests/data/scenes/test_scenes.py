"""Scenes are what their words say, and nothing that is held out ever stands in a training scene."""

import json
from collections import Counter

import numpy as np
import pytest

from unimodal.data.order import make_generator
from unimodal.data.scenes.colours import COLOURS, find_main_colour, paint
from unimodal.data.scenes.compose import Painter, move
from unimodal.data.scenes.plan import SHARES, Planner
from unimodal.data.scenes.scene import (
    MOTIONS,
    NUM_FRAMES,
    SIDE,
    SPLITS,
    Placed,
    Scene,
    Thing,
    has_held_out,
    is_held_out,
    list_combinations,
    read_scenes,
    write_scenes,
)
from unimodal.data.scenes.segment import find_parts, name_place
from unimodal.data.scenes.sources import EncodedScenes, list_scene_sources
from unimodal.data.scenes.words import NUMBERS, PLACES, RELATIONS, SceneWords, add_article, pluralise
from unimodal.sequence.document import Image, Video

NAMES = ("cat", "box", "leaf", "old key", "umbrella", "fish", "city bus", "star")


@pytest.fixture(scope="module")
def things():
    """Eight things; their sprites are a disc and a square of grey shades, in turn."""
    return [Thing(i, name, f"f{i}", "train", ("red",) if i == 0 else ()) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def sprites():
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    shades = np.repeat((60 + 2 * rows)[..., None], 3, axis=2)
    disc = (rows - 31.5) ** 2 + (columns - 31.5) ** 2 <= 32**2
    masks = [disc, np.ones_like(disc)]
    return np.stack([np.dstack([shades, 255 * masks[i % 2]]).astype(np.uint8) for i in range(len(NAMES))])


@pytest.fixture(scope="module")
def planner(things, sprites):
    return Planner(things, {i: [i] for i in range(len(things))}, [""] * len(things))


def plan_some(planner, count):
    return [planner.plan(number, split) for split in SPLITS for number in range(count)]


def test_what_is_held_out_together_is_never_in_training(planner, things, campaign):
    for rng in campaign(slice=6, whole=400):
        case = rng.randrange(10**6)
        for kind in (None, "clip"):
            assert not has_held_out(planner.plan(case, "train", kind), things)
            assert not has_held_out(planner.plan(case, "seen", kind), things)
            assert has_held_out(planner.plan(case, "combination", kind), things)


def test_a_tenth_of_all_combinations_is_held_out_and_stays_so():
    drawn = [is_held_out("colour", colour, f"family{i}") for i in range(300) for colour in COLOURS]
    assert 0.08 < np.mean(drawn) < 0.12
    scene = Scene("pair", "train", (Placed(0, 0, 9, 9, 9, "red"), Placed(1, 1, 9, 9, 9, "blue")), relation="left")
    things = [Thing(0, "cat", "b", "train", ("red",)), Thing(1, "dog", "a", "train")]
    # a colour that a thing has by nature is no combination of ours; a pair is the same in either order
    assert list(list_combinations(scene, things)) == [("colour", "blue", "a"), ("pair", "a", "b")]


def test_the_picture_shows_what_the_words_say(planner, things, sprites, campaign):
    """Count, colour, place and relation, read from the pixels by the background alone."""
    for rng in campaign(slice=8, whole=400):
        case = rng.randrange(10**6)
        painter = Painter(sprites)
        for kind in SHARES:
            scene = planner.plan(case, "train", kind)
            parts = find_parts(painter.draw(scene))
            assert len(parts) == len(scene.things), scene
            for placed in scene.things if len(scene.things) == 1 or kind == "count" else ():
                if placed.colour:
                    assert {part.colour for part in parts} == {placed.colour}
            if scene.place:
                assert name_place(parts[0], PLACES) == scene.place
            if kind == "pair":
                first, second = (
                    min(parts, key=lambda p, t=t: abs(p.x * SIDE - t.x) + abs(p.y * SIDE - t.y)) for t in scene.things
                )
                across, down = first.x - second.x, first.y - second.y
                assert {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[scene.relation]
            for placed in scene.things:  # whole, inside the picture
                assert placed.size / 2 <= placed.x <= SIDE - placed.size / 2
                assert placed.size / 2 <= placed.y <= SIDE - placed.size / 2


def test_scenes_are_the_same_every_time_and_survive_a_file(planner, things, sprites, tmp_path):
    scenes = plan_some(planner, 3)
    assert scenes == plan_some(planner, 3)
    write_scenes(tmp_path / "scenes.jsonl", scenes)
    again = read_scenes(tmp_path / "scenes.jsonl")
    assert again == scenes
    assert (Painter(sprites).draw(scenes[0]) == Painter(sprites).draw(again[0])).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_painted_sprite_is_called_by_its_colour(sprites, colour):
    painted = paint(sprites[1], colour)
    name, share = find_main_colour(painted[..., :3].reshape(-1, 3) / 255)
    assert name == colour and share > 0.6
    assert (painted[..., 3] == sprites[1][..., 3]).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_clips_move_as_they_say(planner, sprites, motion):
    first = Placed(1, 1, 32, 32, 20, "blue")
    scene = Scene("clip", "train", (first,), motion=motion)
    frames = Painter(sprites).draw_clip(scene)
    assert frames.shape == (NUM_FRAMES, SIDE, SIDE, 3)
    seen = [find_parts(frame) for frame in frames]
    begin, end = seen[0], seen[-1]
    if motion in ("appears", "disappears"):
        assert (len(begin), len(end)) == ((0, 1) if motion == "appears" else (1, 0))
        return
    [begin], [end] = begin, end
    assert {
        "left": end.x < begin.x - 0.3, "right": end.x > begin.x + 0.3, "up": end.y < begin.y - 0.3,
        "down": end.y > begin.y + 0.3, "grows": end.area > 3 * begin.area, "shrinks": begin.area > 3 * end.area,
        "turns": seen[1][0].area != begin.area or (frames[1] != frames[0]).any(),
    }[motion]  # fmt: skip
    assert move(first, motion, 0.0)[0] is not None


def test_captions_name_count_colour_place_and_relation(things):
    def caption(kind, *placed, **more):
        return SceneWords(Scene(kind, "train", placed, **more), things).caption()

    cat, box = Placed(0, 0, 13, 32, 14, "blue"), Placed(1, 1, 50, 32, 40)
    assert caption("count", cat, cat, cat) == "three blue cats"
    assert caption("place", cat, place="on the left") == "a blue cat on the left"
    assert caption("pair", cat, box, relation="left") == "a small blue cat to the left of a big box"
    assert caption("one", box, background="light pink") == "a big box on a light pink background"
    assert caption("clip", cat, box, motion="grows") == "a blue cat grows and a box stays still"


@pytest.mark.parametrize(
    ("name", "many"),
    [("cat", "cats"), ("box", "boxes"), ("leaf", "leaves"), ("fish", "fish"), ("city bus", "city buses"),
     ("cherry", "cherries"), ("key", "keys"), ("baby mouse", "baby mice")],
)  # fmt: skip
def test_plurals(name, many):
    assert pluralise(name) == many


def test_articles_follow_the_sound():
    assert [add_article(name) for name in ("owl", "unicorn", "umbrella", "cat")] == [
        "an owl",
        "a unicorn",
        "an umbrella",
        "a cat",
    ]


def test_answers_are_true_of_the_scene(planner, things, campaign):
    for rng in campaign(slice=5, whole=300):
        case = rng.randrange(10**6)
        for kind in (*SHARES, "clip"):
            scene = planner.plan(case, "train", kind)
            words, draws = SceneWords(scene, things), make_generator(case)
            names = [things[placed.thing].name for placed in scene.things]
            for question in words.ask_all(draws):
                answer = question.answer
                if question.about == "many":
                    assert answer == NUMBERS[len(scene.things)]
                elif question.about == "colour":
                    assert answer in {placed.colour or placed.looks for placed in scene.things}
                elif question.about == "where" and kind == "place":
                    assert answer == scene.place
                elif question.about == "where":
                    assert any(answer == add_article(name) or answer.endswith(f"the {name}") for name in names)
                    said = next(relation for relation, phrase in RELATIONS.items() if phrase in question.text + answer)
                    asked = question.text.startswith("Where")
                    subject = question.text[len("Where is the ") : -1] if asked else answer.split(" ", 1)[1]
                    first = names[0] == subject
                    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
                    assert said == (scene.relation if first else opposite[scene.relation])
                elif question.about == "moves":
                    assert answer == f"the {names[0]}"
                elif question.about == "background":
                    assert answer == scene.background


def test_every_name_is_asked_for_with_yes_and_with_no_and_none_that_is_held_out():
    things = [Thing(i, f"thing{i:03}", f"f{i}", "heldout" if i % 3 == 0 else "train") for i in range(300)]
    answers = Counter()
    for case in range(900):
        scene = Scene("one", "train", (Placed(case % 100 * 3 + 1, 0, 9, 9, 9),))
        question = SceneWords(scene, things).ask_whether(make_generator(case))
        answers[int(question.text.split("thing")[1].rstrip("?")), question.answer] += 1
    assert all(number % 3 for number, _ in answers)
    for first in (0, 200):  # early things and late ones
        told = Counter({answer: 0 for answer in ("yes", "no")})
        for (number, answer), count in answers.items():
            told[answer] += count * (first <= number < first + 100)
        assert 0.2 < told["yes"] / told.total() < 0.8


def test_documents_of_every_task_hold_the_scene_and_its_words(planner, things):
    pictures = [scene for scene in plan_some(planner, 12)]
    clips = [planner.plan(number, "train", "clip") for number in range(6)]
    codes = np.arange(len(pictures))[:, None] * 10 + np.arange(4)
    sources = list_scene_sources(
        EncodedScenes(codes, pictures, things), EncodedScenes(np.zeros((6, 5), int), clips, things)
    )
    assert {source.name for source in sources} == {
        "scene_to_text", "text_to_scene", "scene_talk", "moves_to_text", "text_to_moves",
    }  # fmt: skip
    turns = Counter()
    for source in sources:
        assert len(source) == (6 if "moves" in source.name else 12)
        for item in range(len(source)):
            for draw in range(4):
                document = source.make_document(item, draw)
                assert document == source.make_document(item, draw)
                [medium] = [part for part in document.parts if isinstance(part, (Image, Video))]
                assert (medium.codes == (codes[item] if isinstance(medium, Image) else 0)).all()
                answers = [turn for turn in document.turns if turn.role == "assistant"]
                assert len(answers) * 2 == len(document.turns)
                turns[source.name, len(answers)] += 1
                if source.name.startswith("text_to"):
                    assert answers[0].parts == (medium,)
    assert max(count for (name, count) in turns if name == "scene_talk") >= 3
    with pytest.raises(ValueError, match="encode again"):
        EncodedScenes(codes[:3], pictures, things)


def test_talk_asks_name_colour_and_count_of_one_picture(things):
    scene = Scene("count", "train", (Placed(5, 5, 20, 20, 14, "green"), Placed(5, 5, 45, 45, 14, "green")))
    asked = SceneWords(scene, things).talk()
    assert [(one.text, one.answer) for one in asked] == [
        ("What is this?", "fish"), ("And what colour are they?", "green"), ("And how many are there?", "two"),
    ]  # fmt: skip
    assert json.dumps([one.about for one in asked]) == '["what", "colour", "many"]'
