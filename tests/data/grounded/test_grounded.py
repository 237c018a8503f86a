"""Regions, the words for them, and the documents and files that are made of them."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.grounded_scenes import NAMES, make_sprites, write_grounded_scenes
from unimodal.data.grounded.coded import PlannedScenes, code_scenes
from unimodal.data.grounded.expressions import list_expressions, list_referred
from unimodal.data.grounded.regions import compute_iou, compute_overlap, draw_regions, find_box, list_regions
from unimodal.data.grounded.tasks import TASKS, GroundedSource
from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.plan import Planner
from unimodal.data.scenes.scene import Placed, Scene, Thing
from unimodal.data.scenes.words import SceneWords, add_article, pluralise
from unimodal.sequence.document import Image, Text

ROOT = Path(__file__).resolve().parents[3]
THINGS = [Thing(i, name, f"f{i}", "train") for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_grounded_scenes(tmp_path_factory.mktemp("data"), 4)


def test_a_mask_is_where_the_alpha_is_and_no_later_thing_lies():
    """A disc of 20 pixels behind a square that hides its right half."""
    disc, square = Placed(1, 1, 20, 32, 20), Placed(0, 0, 30, 32, 20)
    masks = Painter(make_sprites()).draw_masks(Scene("pair", "train", (disc, square)))
    assert masks[1].sum() == 400 and find_box(masks[1]).tolist() == [20 / 64, 22 / 64, 40 / 64, 42 / 64]
    assert masks[0].sum() == pytest.approx(np.pi * 100 / 2, rel=0.06) and not (masks[0] & masks[1]).any()
    assert find_box(masks[0]).tolist() == pytest.approx([10 / 64, 22 / 64, 20 / 64, 42 / 64], abs=1 / 64)
    alone = Painter(make_sprites()).draw_masks(Scene("one", "train", (disc,)))[0]
    assert alone.sum() == pytest.approx(np.pi * 100, rel=0.06)


def test_a_mask_lies_where_the_thing_is_drawn(campaign):
    planner = Planner(THINGS, {i: [i] for i in range(6)}, [""] * 6)
    painter = Painter(make_sprites())
    for rng in campaign(20, 400):
        scene = planner.plan(rng.randrange(10**6), "train")
        empty = Scene(scene.kind, scene.split, (), scene.background, seed=scene.seed)
        changed = (painter.draw(scene) != painter.draw(empty)).any(-1)
        union = painter.draw_masks(scene).any(0)
        assert not (union & ~changed).any() and (changed & ~union).sum() < 0.25 * union.sum() + 12  # the rim is paler


def test_overlap_is_counted():
    one, other = np.zeros((2, 8, 8), bool)
    one[:4, :4] = other[2:6, :4] = True
    assert compute_overlap(one, other) == (8, 24) and compute_iou(one, other) == 1 / 3 == compute_iou(other, one)
    assert compute_iou(one, one) == 1 and compute_iou(one, np.zeros((8, 8), bool)) == 0
    assert compute_iou(np.zeros((8, 8), bool), np.zeros((8, 8), bool)) == 0
    boxes = find_box(one), find_box(other)
    assert boxes[0].tolist() == [0, 0, 0.5, 0.5] and compute_iou(*boxes) == pytest.approx(1 / 3)
    far = np.array([0.75, 0.75, 1, 1], np.float32)
    assert compute_iou(boxes[0], far) == 0
    with pytest.raises(ValueError, match="no box around an empty mask"):
        find_box(np.zeros((4, 4), bool))


def find_fitting(text, words):
    """The regions of a scene that an expression can mean, read anew from its words."""
    things = words.scene.things
    reach = {"on the left": lambda one: -one.x, "on the right": lambda one: one.x, "at the top": lambda one: -one.y,
             "at the bottom": lambda one: one.y}  # fmt: skip
    if text.startswith("all ") or (text.startswith("the ") and text[4:] == pluralise(words.phrase(things[0]))):
        return [tuple(range(len(things)))] if len(things) > 1 else []
    chosen = list(range(len(things)))
    text = text.removeprefix("the ")
    for place, measure in reach.items():
        if text.endswith(f" {place}"):
            text = text.removesuffix(f" {place}")
            chosen = [max(chosen, key=lambda n, m=measure: m(things[n]))]
    if text in ("bigger thing", "smaller thing"):
        sign = 1 if text.startswith("bigger") else -1
        return [(max(chosen, key=lambda n: sign * things[n].size),)]
    for n in list(chosen):
        colour = things[n].colour or things[n].looks
        fits = {words.name(things[n]), "thing", f"{colour} {words.name(things[n])}", f"{colour} thing"}
        if text not in fits:
            chosen.remove(n)
    return [(n,) for n in chosen]


def test_an_expression_means_one_region_alone(campaign):
    planner = Planner(THINGS, {i: [i] for i in range(6)}, [""] * 6)
    heard = set()
    for rng in campaign(60, 2000):
        words = SceneWords(planner.plan(rng.randrange(10**6), "train"), THINGS)
        for region, listed in list_referred(words):
            assert len(listed) == len(set(listed))
            for text in listed:
                assert find_fitting(text, words) == [region], (text, words.scene)
                heard |= {re.sub("|".join((*NAMES, *map(pluralise, NAMES))), "X", text).split(" ", 1)[1]}
    assert {"X", "X on the left", "thing at the top", "bigger thing", "Xs"} <= heard | {"Xs"} and len(heard) > 12


def test_what_words_cannot_single_out_is_not_asked():
    """Three cats in a row, too near each other for a left and a right, are only all of them."""
    cats = tuple(Placed(0, 0, x, 32, 4) for x in (20, 26, 32))
    words = SceneWords(Scene("count", "train", cats), THINGS)
    assert list_regions(words.scene) == [(0,), (1,), (2,), (0, 1, 2)]
    assert list_referred(words) == [((0, 1, 2), ["the cats", "all cats"])]
    assert list_expressions(words, (1,)) == []


# ---- documents


def encode(medium, media):
    """Codes that say what they are of: how bright or large it is."""
    return [(each.flatten()[:4] * 50).round().long().numpy() if medium == "box" else
            np.array([int(each.sum()) % 97, int(each.mean() * 50)]) for each in media]  # fmt: skip


@pytest.fixture
def coded(folder, grounded_media):
    planned = PlannedScenes.load(folder)
    return code_scenes(planned, planned.find_rows("train", ("one", "count", "place", "pair")), encode, mask_size=32)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_asks_and_answers_what_is_drawn(coded, task):
    for item in range(len(coded)):
        words = coded.find_words(item)
        exchanges = TASKS[task](coded, item, None)
        assert exchanges
        for one in exchanges:
            media = {part.modality: part for part in (*one.question, *one.answer) if not isinstance(part, Text)}
            if task == "all_at_once":
                names = [part.text for part in one.answer if isinstance(part, Text)]
                order = sorted(words.scene.things, key=lambda placed: placed.x)
                assert names == [add_article(words.phrase(placed)) for placed in order]
                masks = [part for part in one.answer if not isinstance(part, Text)]
                assert len(masks) == len(names) and [*map(type, one.answer)][::2] == [Text] * len(names)
                continue
            mask = draw_regions(coded.planned.painter, words.scene)[one.region]
            if "mask" in media:
                small = torch.tensor(mask)[None, None, 1::2, 1::2].float()
                assert media["mask"].codes.tolist() == encode("mask", [small])[0].tolist()
            else:
                assert media["box"].codes.tolist() == (find_box(mask) * 50).round().tolist()
            said = next(part.text for part in (*one.answer, *one.question) if isinstance(part, Text))
            if task.endswith("_to_name"):
                name = words.name(words.scene.things[one.region[0]])
                assert said == (pluralise(name) if len(one.region) > 1 else add_article(name))
                assert len(one.answer) == 1 and len(one.question) == 2
            else:
                assert any(text in said for text in list_expressions(words, one.region)) and len(one.answer) == 1


def test_a_document_asks_about_one_picture_several_times(coded):
    source = GroundedSource(coded, dict.fromkeys(TASKS, 1.0), most=3, seed=5)
    for item in range(len(source)):
        document = source.make_document(item, 2)
        assert document == source.make_document(item, 2)
        assert [turn.role for turn in document.turns] == ["user", "assistant"] * (len(document.turns) // 2)
        pictures = [part for part in document.parts if isinstance(part, Image)]
        assert len(pictures) == 1 and document.turns[0].parts[0] == coded.make_picture(item)
        asked = [turn.parts for turn in document.turns[::2]]
        assert len(set(asked)) == len(asked) <= 3
    assert any(source.make_document(0, draw) != source.make_document(0, 0) for draw in range(1, 5))
    only = GroundedSource(coded, {"words_to_box": 1, "mask_to_name": 0})
    assert {part.modality for part in only.make_document(0).parts if not isinstance(part, Text)} == {"image", "box"}


@pytest.mark.parametrize(
    ("shares", "message"),
    [({"boxes": 1}, "no task 'boxes'; choose from mask_to_name"), ({"words_to_box": 0}, "no task has a share above 0"),
     ({"words_to_box": -1}, "share of words_to_box is -1"), ({"words_to_box": float("nan")}, "is nan")],
)  # fmt: skip
def test_shares_that_ask_nothing_are_refused(coded, shares, message):
    with pytest.raises(ValueError, match=message):
        GroundedSource(coded, shares)


def test_scenes_without_sprites_are_one_line(tmp_path, folder):
    with pytest.raises(ValueError, match="things.json: no such file|scenes.jsonl: no such file; make it with"):
        PlannedScenes.load(tmp_path)


# ---- files


def prepare(*arguments):
    before, sys.argv = sys.argv, ["prepare_grounded.py", *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "tools" / "prepare_grounded.py"), run_name="__main__")
    finally:
        sys.argv = before


def test_the_files_are_a_dataset_that_every_recipe_reads(folder, tmp_path, grounded_media):
    from unimodal.data.datasets import DatasetConfig, open_dataset
    from unimodal.media.access import load_medium

    prepare("--data", folder, "--out", tmp_path / "a", "--pictures", 3, "--test", 2)
    prepare("--data", folder, "--out", tmp_path / "b", "--pictures", 3, "--test", 2)
    names = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert {name for name in names if "/" not in name} == {
        f"{split}.jsonl" for split in ("train", "seen", "combination", "concept", "style")
    }
    planned = PlannedScenes.load(folder)
    documents = open_dataset(DatasetConfig(path=str(tmp_path / "a" / "train.jsonl")))
    assert len(documents) == 3 and not documents.bad_rows
    kinds = set()
    for document in documents:
        for part in document.parts:
            if isinstance(part, Text):
                continue
            kinds.add(part.modality)
            medium = load_medium(part.modality, part.source)
            row, _, region = Path(part.path).stem.partition("-")
            if part.modality == "image":
                assert np.array_equal(medium.permute(1, 2, 0), planned.painter.draw(planned.scenes[int(row)]))
                continue
            drawn = draw_regions(planned.painter, planned.scenes[int(row)])[tuple(map(int, region.split("-")))]
            wanted = drawn if part.modality == "mask" else find_box(drawn)
            assert np.allclose(medium.squeeze(), wanted, atol=1e-6)
    assert kinds == {"image", "mask", "box"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [(["--data", "nowhere"], "nowhere/scenes/scenes.jsonl: no such file"), (["--pictures", "0"], "give at least 1"),
     (["--tasks", "mask_to_name,boxes"], "no task 'boxes'")],
)  # fmt: skip
def test_a_mistake_is_one_line(folder, tmp_path, capsys, changes, message, grounded_media):
    with pytest.raises(SystemExit) as stop:
        prepare("--data", folder, "--out", tmp_path / "out", *changes)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and message in told and told.startswith("prepare_grounded: ") and told.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_what_is_said_to_be_written_is_json(folder, tmp_path, grounded_media):
    prepare("--data", folder, "--out", tmp_path, "--pictures", 1, "--test", 0)
    [line] = (tmp_path / "train.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert messages[0]["content"][0]["type"] == "image" and messages[-1]["role"] == "assistant"
