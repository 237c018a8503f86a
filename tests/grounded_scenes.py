"""Scenes of six things with alpha, as tools/prepare_scenes.py writes them, small enough to be drawn in a moment."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.plan import Planner
from unimodal.data.scenes.scene import SIDE, SPLITS, Thing, write_scenes
from unimodal.media.registry import MEDIA

NAMES = ("cat", "box", "owl", "leaf", "key", "drum")
KINDS = ("one", "count", "place", "pair")


def make_sprites() -> np.ndarray:
    """Squares and discs in shades of their own, uint8 [6, 64, 64, 4]."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    disc = (rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 31**2
    return np.stack([
        np.dstack([rows * (i % 3), columns, rows * 2 % 200, np.where(disc | (i % 2 == 0), 255, 0)])
        for i in range(len(NAMES))
    ]).astype(np.uint8)  # fmt: skip


def write_grounded_scenes(folder: Path, per_split: int = 8) -> Path:
    """`folder/scenes` with as many pictures of each split."""
    (folder / "scenes").mkdir(parents=True)
    things = [Thing(i, name, f"f{i}", "train") for i, name in enumerate(NAMES)]
    planner = Planner(things, {i: [i] for i in range(len(things))}, [""] * len(things))
    planned = [planner.plan(i, split, KINDS[i % 4]) for split in SPLITS for i in range(per_split)]
    sprites = make_sprites()
    painter = Painter(sprites)
    (folder / "scenes" / "things.json").write_text(json.dumps([asdict(thing) for thing in things]))
    write_scenes(folder / "scenes" / "scenes.jsonl", planned)
    np.savez(folder / "scenes" / "scenes.npz", pixels=np.stack([painter.draw(scene) for scene in planned]))
    style = np.array(["noto"] * len(NAMES))
    np.savez(folder / "scenes" / "sprites.npz", pixels=sprites, thing=np.arange(len(NAMES)), style=style)
    return folder


@pytest.fixture
def grounded_media(own_registrations):
    """Masks and boxes are registered, also where an earlier test of this process imported their modules."""
    for name, medium in (("masks", "mask"), ("boxes", "box")):
        MEDIA.pop(medium, None)
        sys.modules.pop(f"unimodal.tokenizers.more_media.{name}", None)
        importlib.import_module(f"unimodal.tokenizers.more_media.{name}")
