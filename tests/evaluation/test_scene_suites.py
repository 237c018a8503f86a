"""The suites of scenes, sounds, conversations and variety on a few items, with figures that can be known beforehand."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from unimodal.data.named_sounds import NamedSound
from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.plan import Planner
from unimodal.data.scenes.scene import MOTIONS, SIDE, SPLITS, Placed, Scene, Thing, write_scenes
from unimodal.evaluation import conversation, moving, picture_variety, run_suite, scene_drawing, scene_reading
from unimodal.evaluation.prepared_scenes import PreparedScenes, is_same_answer, is_thing_named
from unimodal.evaluation.shares import find_interval, measure_share
from unimodal.sequence.document import Document, Turn

NAMES = ("cat", "box", "owl", "leaf", "key", "drum")
PER_SPLIT = 16


class ColourJudge:
    """In place of EfficientNet-lite2: compares pictures by their colours."""

    def __init__(self, size: int) -> None:
        assert size == 2

    def extract(self, pictures: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(pictures - 0.5, 8).flatten(1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Sixteen pictures of each split, and clips of every motion, of six things that are squares of shades."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    folder.mkdir()
    things = [Thing(i, name, f"f{i}", "train") for i, name in enumerate(NAMES)]
    rows = np.mgrid[0:SIDE, 0:SIDE][0]
    sprites = np.stack(
        [np.dstack([rows * (i % 3), rows, rows * 2 % 200, np.full_like(rows, 255)]) for i in range(len(NAMES))]
    ).astype(np.uint8)
    planner = Planner(things, {i: [i] for i in range(len(things))}, [""] * len(things))
    kinds = ("one", "count", "place", "pair")
    planned = [planner.plan(i, split, kinds[i % 4]) for split in SPLITS for i in range(PER_SPLIT)]
    square = [Placed(i % 6, i % 6, 32, 32, 20, "blue") for i in range(len(MOTIONS))]
    clips = [Scene("clip", "seen", (one,), motion=motion) for one, motion in zip(square, MOTIONS, strict=True)]
    two = (Placed(0, 0, 16, 32, 20, "red"), Placed(1, 1, 48, 32, 20))
    clips += [Scene("clip", "seen", two, motion="up"), Scene("clip", "train", two[::-1], motion="down")]
    painter = Painter(sprites)
    (folder / "things.json").write_text(json.dumps([asdict(thing) for thing in things]))
    write_scenes(folder / "scenes.jsonl", planned)
    write_scenes(folder / "moves.jsonl", clips)
    np.savez(folder / "scenes.npz", pixels=np.stack([painter.draw(scene) for scene in planned]))
    np.savez(folder / "moves.npz", frames=np.stack([painter.draw_clip(scene) for scene in clips]))
    style = np.array(["noto"] * len(NAMES))
    np.savez(folder / "sprites.npz", pixels=sprites, thing=np.arange(len(NAMES)), style=style)
    return folder.parent


def answer(monkeypatch, suite, texts):
    """Makes a suite's model answer with the next of these texts; returns the documents it is asked."""
    asked = []

    def answer_texts(model, documents, *_):
        asked.extend(documents)
        return [texts[i % len(texts)] for i in range(len(documents))]

    monkeypatch.setattr(suite, "answer_texts", answer_texts)
    return asked


def test_shares_have_wilsons_interval():
    assert measure_share([True] * 10) == {"count": 10, "percent": 100.0, "low": 72.2, "high": 100.0}  # his own example
    assert measure_share([]) == {"count": 0, "percent": 0.0, "low": 0.0, "high": 100.0}
    assert find_interval(0.3, 100) == pytest.approx((0.2189, 0.3958), abs=1e-4)
    half = measure_share([True, False] * 200)
    assert half["low"] == pytest.approx(45.1, abs=0.2) and half["high"] == pytest.approx(54.9, abs=0.2)


def test_answers_that_are_alike_in_groups_count_as_their_groups():
    """Ten seeds of a wish that are all right or all wrong tell what one tells; spread evenly they tell ten times."""
    alike = measure_share(
        [number % 3 == 0 for number in range(30) for _ in range(10)], np.repeat(range(30), 10).tolist()
    )
    alone = measure_share([number % 3 == 0 for number in range(30)])
    assert alike["percent"] == alone["percent"] and alike["count"] == 300 and alike["groups"] == 30
    assert alike["low"] == pytest.approx(alone["low"], abs=0.5) and alike["high"] == pytest.approx(
        alone["high"], abs=0.5
    )
    spread = measure_share([seed % 2 == 0 for _ in range(30) for seed in range(10)], np.repeat(range(30), 10).tolist())
    assert (spread["low"], spread["high"]) == tuple(
        measure_share([True, False] * 150)[name] for name in ("low", "high")
    )
    assert measure_share([True] * 20, [0] * 10 + [1] * 10)["low"] == measure_share([True] * 2)["low"]
    rng = np.random.default_rng(0)  # the truth lies in the interval as often as it says
    held = 0
    for _ in range(300):
        of = np.repeat(rng.beta(1, 1, 40), 10)
        found = measure_share((rng.random(400) < of).tolist(), np.repeat(range(40), 10).tolist())
        held += found["low"] <= 50 <= found["high"]
    assert 0.9 < held / 300 < 0.99


def test_answers_are_compared_by_their_words():
    assert is_same_answer("It is on the left.", "on the left") and is_same_answer("Three", "three")
    assert not is_same_answer("on the right", "on the left") and not is_same_answer("", "two")
    leaf, things = Thing(0, "leaf", "f", "train"), [Thing(i, n, n, "train") for i, n in enumerate(("leaf", "fig leaf"))]
    assert is_thing_named("leaves", leaf, things) and is_thing_named("a leaf!", leaf, things)
    assert not is_thing_named("a fig", leaf, things) and not is_thing_named("a leaf", things[1], things)
    assert not is_thing_named("a fig leaf", leaf, things) and not is_thing_named("two fig leaves", leaf, things)
    guitar = NamedSound("0", "guitar, C4", "note", "guitar", "C4", "train")
    assert guitar.is_named_by("a guitar, C4", ("guitar", "electric guitar"))
    assert not guitar.is_named_by("electric guitar, C4", ("guitar", "electric guitar"))


def test_scene_reading_counts_what_is_right(model, scenes, monkeypatch):
    asked = answer(monkeypatch, scene_reading, ["three"])
    figures = run_suite("scene_reading", model, scenes)
    prepared = PreparedScenes.load(scenes)
    for split in ("seen", "combination", "concept", "style"):
        many = [len(one.things) for one in prepared.scenes if one.split == split and one.kind == "count"]
        assert figures[split]["many"]["percent"] == round(100 * many.count(3) / len(many), 1)
        assert figures[split]["many"]["count"] == figures[split]["where"]["count"] == PER_SPLIT // 4
        assert figures[split]["what"]["percent"] == figures[split]["relation"]["percent"] == 0
    assert all(document.turns[0].parts[0].modality == "image" for document in asked)


def test_scene_drawing_is_judged_by_what_is_drawn(model, scenes, monkeypatch):
    prepared = PreparedScenes.load(scenes)
    monkeypatch.setattr(scene_drawing, "PackagedJudge", ColourJudge)

    def draw(model, documents, to, *_):
        """The prepared picture of each wish, found by its caption."""
        captions = {prepared.find_words(row).caption(): row for row in range(len(prepared.scenes))}
        wishes = [document.turns[0].text for document in documents]
        found = [max((c for c in captions if c in wish), key=len) for wish in wishes]
        return list(prepared.take(np.array([captions[caption] for caption in found])))

    monkeypatch.setattr(scene_drawing, "answer_media", draw)
    figures = run_suite("scene_drawing", model, scenes)
    for split in ("seen", "combination"):
        for about in ("count", "colour", "place", "relation"):
            assert figures[split][about]["percent"] == 100 or not figures[split][about]["count"], (split, about)
            assert figures[f"{split}_original"][about] == figures[split][about]
    assert sum(figures[split][about]["count"] for split in ("seen", "combination") for about in ("count", "place")) > 5

    monkeypatch.setattr(scene_drawing, "answer_media", lambda model, asked, *_: [torch.ones(3, 64, 64)] * len(asked))
    figures = run_suite("scene_drawing", model, scenes)  # a white sheet shows nothing
    assert all(shares["percent"] == 0 for shares in figures["seen"].values())


def test_a_conversation_is_right_only_if_all_of_it_is(model, scenes, monkeypatch):
    prepared = PreparedScenes.load(scenes)
    asked = answer(monkeypatch, conversation, ["cats", "blue", "two"])
    figures = run_suite("conversation", model, scenes)
    assert [len(document.turns) for document in asked[:1]] == [1] and max(len(one.turns) for one in asked) == 5
    last = next(document for document in asked if len(document.turns) == 5)
    assert [turn.role for turn in last.turns] == ["user", "assistant"] * 2 + ["user"]
    assert last.turns[4].text.startswith("And how many")
    for split in figures.keys() - {"judge"}:
        shares = figures[split]
        painted = [
            one for one in prepared.scenes if one.split == split and one.kind == "count" and one.things[0].colour
        ]
        assert shares["all_right"]["count"] == len(painted)
        assert shares["all_right"]["percent"] <= min(shares[about]["percent"] for about in ("what", "colour", "many"))


def test_moving_things_are_named_and_made_motions_judged(model, scenes, monkeypatch):
    prepared = PreparedScenes.load(scenes, clips=True)
    answer(monkeypatch, moving, ["the cat"])

    def film(model, documents, to, *_):
        captions = {prepared.find_words(row).caption(): row for row in range(len(MOTIONS))}
        rows = [next(row for caption, row in captions.items() if caption in one.turns[0].text) for one in documents]
        return list(prepared.take(np.array(rows)))

    monkeypatch.setattr(moving, "answer_media", film)
    figures = run_suite("moving", model, scenes)["seen"]
    assert figures["moves"]["count"] == 1 and figures["moves"]["percent"] == 100
    assert figures["made"]["percent"] == figures["original"]["percent"] == 100 and figures["made"]["count"] == len(
        MOTIONS
    )
    assert figures["how"]["percent"] == 0


def test_variety_counts_different_drawings_and_copies(model, data, monkeypatch):
    monkeypatch.setattr(picture_variety, "PackagedJudge", ColourJudge)
    pictures = picture_variety.Pictures.load(data)

    def draw(model, documents, *_, search):
        """Copies for the first concept, ten shades of grey for the second."""
        assert len(documents) == 20 and search is None
        copy = pictures.take(np.flatnonzero((pictures.concept == 0) & (pictures.style == "noto")))[0]
        return [copy] * 10 + [torch.full((3, 64, 64), i / 20) for i in range(10)]

    monkeypatch.setattr(picture_variety, "sample", lambda rows, *_: rows[:2])
    monkeypatch.setattr(picture_variety, "answer_media", draw)
    figures = run_suite("picture_variety", model, data)
    assert figures["visible_of_10"]["mean"] == 5.5  # one of the first, ten of the second
    assert 3 <= 2 * figures["different_of_10"]["mean"] - 1 <= 10  # shades nearer than 25 dB are the same
    assert figures["copies"]["percent"] == 50 and figures["among_5"]["percent"] >= 50


def test_a_search_answers_where_one_is_asked_for(model, data):
    """The media of `answer_media` are those of the pipeline's own search."""
    from unimodal.evaluation.asking import answer_media

    documents = [Document([Turn("user", "a red apple")])] * 2
    found = answer_media(model, documents, "image", 3, lambda *_: None, "drawing", search=("best-of-n", {"n": 2}))
    for number, picture in enumerate(found):
        own = model.generate("a red apple", "image", seed=3 + number, search="best-of-n", search_settings={"n": 2})
        assert torch.equal(picture, own.media)
    plain = answer_media(model, documents, "image", 3, lambda *_: None, "drawing")
    assert len(plain) == 2


@pytest.fixture
def sounds(tmp_path):
    """Sines of two effects and of one instrument, in training and held out."""
    (tmp_path / "sounds").mkdir()
    listed, waves, start = [], [], 0
    for i in range(12):
        name, kind = (("crow", "effect"), ("hi-hat", "effect"), ("flute, C4", "note"))[i % 3]
        note = "C4" if kind == "note" else ""
        split = "train" if i < 6 else ("combination" if kind == "note" else "variant")
        wave = (9_000 * np.sin(np.arange(3_000) * (0.05 + 0.4 * (i % 3)))).astype(np.int16)
        listed.append(asdict(NamedSound(str(i), name, kind, name.split(",")[0], note, split, start, len(wave))))
        waves.append(wave)
        start += len(wave)
    np.concatenate(waves).tofile(tmp_path / "sounds" / "audio.int16")
    (tmp_path / "sounds" / "sounds.json").write_text(json.dumps(listed))
    return tmp_path


def test_sounds_are_named_and_made(model, sounds, monkeypatch):
    from unimodal.evaluation import sound_naming

    asked = answer(monkeypatch, sound_naming, ["a flute, C4, I think"])
    held = {"The sound of a crow.": 0, "The sound of a hi-hat.": 1, "Play C4 on the flute.": 2}
    samples = np.fromfile(sounds / "sounds" / "audio.int16", np.int16).reshape(12, -1)

    def make(model, documents, to, *_):
        return [torch.from_numpy(samples[held[one.turns[0].text]].astype(np.float32) / 32768) for one in documents]

    monkeypatch.setattr(sound_naming, "answer_media", make)
    figures = run_suite("sound_naming", model, sounds)
    assert figures["note combination"]["named"]["percent"] == figures["note combination"]["note"]["percent"] == 100
    assert figures["effect variant"]["named"] == measure_share([False] * 4, ["crow", "hi-hat"] * 2)
    assert figures["made"]["percent"] == figures["made_original"]["percent"] == 100
    assert all(document.turns[0].text == "What do you hear?" for document in asked)


def test_everyday_speech_is_read_said_and_heard(model, data, monkeypatch):
    from unimodal.evaluation import everyday_speech

    class Dnsmos:
        def score(self, sound):
            return 3.0

    monkeypatch.setattr(everyday_speech, "DnsmosJudge", Dnsmos)
    monkeypatch.setattr(everyday_speech, "load_recogniser", lambda name: lambda sound: "a sunny day")
    answer(monkeypatch, everyday_speech, ["a cloudy day"])
    figures = run_suite("everyday_speech", model, data, limit=2)
    assert figures["slt"]["wer"]["percent"] == 33.33 and figures["slt"]["judge_wer"]["percent"] == 0
    assert figures["speaking"] == {"sentences": 1, "wer": {"percent": 0.0, "low": 0.0, "high": 0.0}, "dnsmos": 3.0}
