"""Studies of a few minutes on a small model: pictures of emoji to learn from, a recipe run on them, figures as JSON.

The tools that measure what an objective buys share this: each has studies by name, and `run_studies` is their command
line. One processor thread, one seed. Pictures are read from `data/raw` (`python tools/fetch_data.py`).
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from unimodal.data.emoji_concepts import put_on_white, read_concepts
from unimodal.data.emoji_packages import open_emoji_styles
from unimodal.files import write_json
from unimodal.sequence.packing import PackedBatch
from unimodal.tuning.loss import read_values, to_tensors

GROUPS = ("animals-nature", "food-drink", "objects")
ROUNDS = 5  # of what is timed
Figures = dict[str, object]
Study = TypeVar("Study")


class PictureStudy:
    """What studies of pictures share. recipes: the folder of the recipes. The options are those of `add_options`."""

    def __init__(self, recipes: Path, options: argparse.Namespace) -> None:
        self.recipes, self.model, self.out, self.raw = recipes, options.model, options.out, options.raw
        self.steps, self.concepts, self.tokens = options.steps, options.concepts, options.tokens

    def list_pictures(self, styles: Sequence[str]) -> list[dict[str, str]]:
        """The first concepts that all of these styles draw: their names, and the file of each style."""
        folder = self.out / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        opened = open_emoji_styles(self.raw)
        found: list[dict[str, str]] = []
        for concept in read_concepts(self.raw):
            if len(found) == self.concepts:
                break
            if concept["split"] != "train" or concept["group"] not in GROUPS:
                continue
            files = {"name": concept["label"]}
            for style in styles:
                picture = opened[style](concept["key"], concept["label"])
                if picture is None:
                    break
                path = folder / f"{concept['key']}_{style}.png"
                if not path.exists():
                    Image.fromarray(put_on_white(picture)).save(path)
                files[style] = str(path)
            else:
                found.append(files)
        return found

    def write_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> str:
        """A file of rows; its path."""
        path = self.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def train(self, name: str, rows: str, held_out: str | None, *settings: str, recipe: str = "finetune_lora") -> Path:
        """Run a recipe for the model on rows; the folder of what it makes. Held-out rows are scored at the end."""
        out, run = self.out / f"{name}_model", self.out / f"{name}_run"
        for folder in (out, run):
            shutil.rmtree(folder, ignore_errors=True)
        root = f"media_root: {self.out}"
        validation = f"[{{path: {held_out}, {root}}}]" if held_out else "[]"
        run_recipe(
            self.recipes / f"{recipe}.py",
            f"text={self.model}" if recipe == "pretrain" else f"base={self.model}",
            f"media={self.model}", f"out={out}", f"run={run}",
            f"corpus={{datasets: [{{path: {rows}, {root}}}], validation: {validation}, codes: {self.out}/codes, "
            f"length: 512, tokens_per_batch: {self.tokens}, batches_per_window: 4, condition_dropout: 0}}",
            f"loop.steps={self.steps}", "loop.warmup_steps=2", "loop.log_every=1", "loop.plot=false",
            f"loop.evaluate_every={self.steps if held_out else 0}", "loop.checkpoint_every_s=100000", *settings,
        )  # fmt: skip
        return out

    def read_metrics(self, name: str) -> list[dict[str, float]]:
        """What a run logged, step by step."""
        return [json.loads(line) for line in (self.out / f"{name}_run" / "metrics.jsonl").read_text().splitlines()]


def time_steps(
    modules: Mapping[str, torch.nn.Module],
    batches: Mapping[str, PackedBatch],
    beside: Mapping[str, str],
    rounds: int = 5,
) -> Figures:
    """The median processor time of a step of each objective, forward and backward, over that of the one it is beside.

    modules, batches: by name; all are run in turn, since the machine is shared. beside: name → the name of what it is
    compared with; those that stand beside themselves are given in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(ROUNDS):
        for name, module in modules.items():
            began = time.process_time()
            total, _ = module(*to_tensors(batches[name]), **read_values(batches[name]))
            total.backward()
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    found: Figures = {}
    for name, base in beside.items():
        if name == base:
            found[f"seconds of {name}"] = round(medians[name], 2)
        else:
            found[name] = round(medians[name] / medians[base], 2)
    return found


def run_recipe(recipe: Path, *settings: str) -> None:
    """Run a recipe in this process, as its command line does."""
    before, sys.argv = sys.argv, [str(recipe), *(word for one in settings for word in ("--set", one))]
    try:
        runpy.run_path(str(recipe), run_name="__main__")
    finally:
        sys.argv = before


def add_options(parser: argparse.ArgumentParser, out: str, concepts: int) -> None:
    """The options of a `PictureStudy`. out: the folder under `data/runs` that is used unless another is named."""
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("data/runs") / out)
    parser.add_argument("--concepts", type=int, default=concepts)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")


def run_studies(
    description: str | None,
    studies: Mapping[str, Callable[[Study], Figures]],
    make: Callable[[argparse.Namespace], Study],
    add: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str] | None = None,
) -> None:
    """The command line of some studies: runs those that are named, prints their figures and keeps them in --out.

    add: adds the options, `--out` among them, that `make` reads.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=studies)
    parser.add_argument("--model", type=Path, default=Path("model_cards/nano"), help="the model that learns")
    add(parser)
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    study = make(options)
    for name in options.names:
        began = time.process_time()
        figures = {**studies[name](study), "processor_seconds": round(time.process_time() - began)}
        write_json(options.out / f"{name}.json", figures)
        print(json.dumps({name: figures}), flush=True)
