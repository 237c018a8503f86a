"""What soft prompts and layers that grow buy on a small model, in minutes: rows of the table of `docs/objectives.md`.

    python tools/study_prompts.py prompt              # one of STUDIES, or several

A prompt is taught to draw in a style that the model draws less readily; every third concept is held out, and what is
measured is the held-out loss of the pictures' codes, in nats. Pictures are emoji from `data/raw`
(`python tools/fetch_data.py`). The recipes of `recipes/` train; figures are printed as JSON and kept in
`--out`/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

import unimodal  # noqa: F401 (before transformers)
from unimodal.data.emoji_concepts import put_on_white, read_concepts
from unimodal.data.emoji_packages import open_emoji_styles
from unimodal.files import write_json
from unimodal.model.private_gradients import bound_epsilon
from unimodal.model.tokenformer import load_tokenformer

ROOT = Path(__file__).resolve().parents[1]
KNOWN, WANTED = "noto", "fluent3d"  # nano draws the first one more readily
GROUPS = ("animals-nature", "food-drink", "objects")
Figures = dict[str, object]


class Study:
    """The pictures, folders and settings that the studies share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model, self.out, self.raw = args.model, args.out, args.raw
        self.steps, self.concepts, self.tokens, self.length = args.steps, args.concepts, args.tokens, args.length

    def write_drawings(self, style: str, named: bool = False) -> tuple[str, str]:
        """Wishes to draw and their pictures in a style: the file to learn from, and the one that is held out.

        named: pictures that are asked about and their names instead.
        """
        folder = self.out / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        draw, rows = open_emoji_styles(self.raw)[style], []
        for concept in read_concepts(self.raw):
            if len(rows) == self.concepts:
                break
            picture = draw(concept["key"], concept["label"]) if concept["split"] == "train" else None
            if concept["group"] not in GROUPS or picture is None:
                continue
            path = folder / f"{concept['key']}_{style}.png"
            if not path.exists():
                Image.fromarray(put_on_white(picture)).save(path)
            image, label = {"type": "image", "path": str(path)}, concept["label"]
            turns = [("user", f"Draw {label}."), ("assistant", [image])]
            if named:
                turns = [("user", [image, {"type": "text", "text": "What is this?"}]), ("assistant", label)]
            rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        paths, kind = [], f"{style}_named" if named else style
        for name, part in ((kind, [r for i, r in enumerate(rows) if i % 3]), (f"{kind}_held_out", rows[::3])):
            paths.append(self.out / f"{name}.jsonl")
            paths[-1].write_text("".join(json.dumps(row) + "\n" for row in part))
        return str(paths[0]), str(paths[1])

    def train(self, name: str, rows: tuple[str, str], *settings: str, recipe: str = "finetune_lora") -> Path:
        """Run a recipe on rows, and score the others at its end; the folder of its model."""
        out, run = self.out / f"{name}_model", self.out / f"{name}_run"
        for folder in (out, run):
            shutil.rmtree(folder, ignore_errors=True)
        start = [f"base={self.model}", "lora=null"] if recipe == "finetune_lora" else [f"text={self.model}"]
        root = f"media_root: {self.out}"
        asked = [
            *start, f"media={self.model}", f"out={out}", f"run={run}",
            f"corpus={{datasets: [{{path: {rows[0]}, {root}}}], validation: [{{path: {rows[1]}, {root}}}], codes: "
            f"{self.out}/codes, length: 512, tokens_per_batch: {self.tokens}, batches_per_window: 4, "
            "condition_dropout: 0}",
            f"loop.steps={self.steps}", "loop.warmup_steps=1", "loop.log_every=1", "loop.plot=false",
            f"loop.evaluate_every={self.steps}", "loop.checkpoint_every_s=100000", *settings,
        ]  # fmt: skip
        argv = [str(ROOT / "recipes" / f"{recipe}.py"), *(word for one in asked for word in ("--set", one))]
        before, sys.argv = sys.argv, argv
        try:
            runpy.run_path(argv[0], run_name="__main__")
        finally:
            sys.argv = before
        return out

    def read_losses(self, name: str, modality: str = "image") -> Figures:
        """The loss of the last step of a run, and the held-out one behind it."""
        lines = (self.out / f"{name}_run" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        found = {"learnt": f"loss_{modality}", "held_out": f"validation_loss_{modality}"}
        return {key: round(last[column], 4) for key, column in found.items()}


def study_prompt(study: Study) -> Figures:
    """Prompt tuning: the style that is wanted, on held-out concepts."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    for name, rate in (("untrained", 1e-9), ("tuned", 0.1)):
        settings = f"prompt={{length: {study.length}, text: draw the picture}}"
        study.train(f"prompt_{name}", rows, settings, f"loop.learning_rate={rate}", f"loop.final_learning_rate={rate}")
        figures[name] = study.read_losses(f"prompt_{name}")
    return figures


def study_context(study: Study) -> Figures:
    """A context of two examples as it is, and tuned near them."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    for name, rate in (("untrained", 1e-9), ("tuned", 0.05)):
        study.train(
            f"context_{name}", rows, f"prompt.context={{path: {rows[0]}, examples: 2, epsilon: 0.5}}",
            "objective=context_prompt", f"loop.learning_rate={rate}", f"loop.final_learning_rate={rate}",
        )  # fmt: skip
        figures[name] = study.read_losses(f"context_{name}")
    return figures


def study_transfer(study: Study) -> Figures:
    """A prompt of the style that the model knows, moved to the wanted one: alone, as a start, and by PANDA."""
    wanted = study.write_drawings(WANTED)
    source = study.train(
        "source", study.write_drawings(KNOWN), f"prompt.length={study.length}", "loop.learning_rate=0.1"
    )
    figures: Figures = {}
    for name, settings in (
        ("alone", [f"prompt.length={study.length}"]),
        ("start", [f"prompt.source={source}"]),
        ("panda", [f"prompt.length={study.length}", f"objective.prompt_transfer={{source: {source}}}"]),
    ):
        study.train(f"transfer_{name}", wanted, *settings, "loop.learning_rate=0.1")
        figures[name] = study.read_losses(f"transfer_{name}")
    return figures


def study_post(study: Study) -> Figures:
    """A prompt of the wanted style, moved by POST over rows of the other style alone; the small model is the model
    itself, the best that a distilled one could be."""
    wanted, known = study.write_drawings(WANTED), study.write_drawings(KNOWN)
    length = f"prompt.length={study.length}"
    source = study.train("post_source", wanted, length, "loop.learning_rate=0.1")
    figures: Figures = {"source": study.read_losses("post_source")}
    objective = f"objective.prompt_transfer={{kind: post, source: {source}}}"
    moved = study.train("post_moved", known, length, objective, "loop.learning_rate=0.1", "loop.seed=1")
    still = ["loop.learning_rate=1e-9", "loop.final_learning_rate=1e-9"]
    steps, study.steps = study.steps, 1
    for name, settings in (("before", [length, "loop.seed=1"]), ("moved", [f"prompt.source={moved}"])):
        study.train(f"post_{name}_scored", wanted, *settings, *still)
        figures[name] = study.read_losses(f"post_{name}_scored")
    study.steps = steps
    return figures


def study_restored(study: Study) -> Figures:
    """Naming pictures of the wanted style by LoRA: next tokens alone, and Croc's restoration beside them."""
    rows = study.write_drawings(WANTED, named=True)
    figures: Figures = {}
    for name, settings in (
        ("next_token", []),
        ("hungarian", ["objective.restored_codes={pool: 256}"]),
        ("nearest", ["objective.restored_codes={pool: 256, matching: nearest}"]),
    ):
        run = f"restored_{name}"
        study.train(run, rows, "lora={rank: 8}", "attention=sdpa", "loop.learning_rate=2e-3", *settings)
        figures[name] = study.read_losses(run, "text")
    return figures


def study_private(study: Study) -> Figures:
    """A prompt whose gradients are clipped and noised, beside one whose are not."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    passes = study.steps * study.tokens / (80 * (study.concepts - len(range(0, study.concepts, 3))))
    for name, private in (("plain", []), ("private", ["prompt.private={clip: 1.0, noise: 0.5}"])):
        study.train(f"private_{name}", rows, f"prompt.length={study.length}", "loop.learning_rate=0.1", *private)
        figures[name] = study.read_losses(f"private_{name}")
    figures["epsilon"] = round(bound_epsilon(0.5, max(1.0, passes), 1e-3), 1)
    return figures


def study_growth(study: Study) -> Figures:
    """A small TokenFormer, trained, grown, and trained on, beside a large one of as many steps in all."""
    rows = study.write_drawings(KNOWN)
    sizes = [f"decoder.{name}={value}" for name, value in (("hidden_size", 64), ("num_layers", 2), ("num_heads", 2),
             ("num_kv_heads", 2), ("max_positions", 512))]  # fmt: skip
    small, large = "attention_tokens: 32, mlp_tokens: 64", "attention_tokens: 64, mlp_tokens: 256"
    rate = "loop.learning_rate=3e-3"
    source = study.train("growth_small", rows, *sizes, f"pattention={{{small}}}", rate, recipe="pretrain")
    figures: Figures = {"small": study.read_losses("growth_small")}
    more = f"pattention={{{large}, source: {source}}}"
    grown = study.train("growth_grown", rows, *sizes, more, rate, recipe="pretrain")
    figures["grown"] = study.read_losses("growth_grown")
    study.steps *= 2
    study.train("growth_large", rows, *sizes, f"pattention={{{large}}}", rate, recipe="pretrain")
    study.steps //= 2
    figures["large"] = study.read_losses("growth_large")
    for name, folder in (("parameters_small", source), ("parameters_grown", grown)):
        figures[name] = sum(p.numel() for p in load_tokenformer(folder).parameters())
    return figures


STUDIES: dict[str, Callable[[Study], Figures]] = {
    "prompt": study_prompt,
    "context": study_context,
    "transfer": study_transfer,
    "post": study_post,
    "restored": study_restored,
    "private": study_private,
    "growth": study_growth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=STUDIES)
    parser.add_argument("--model", type=Path, default=Path("model_cards/nano"), help="the model that learns")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("data/runs/prompts"))
    parser.add_argument("--concepts", type=int, default=48)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--length", type=int, default=20, help="tokens of a prompt")
    args = parser.parse_args(arguments)
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    study = Study(args)
    for name in args.names:
        began = time.process_time()
        figures = {**STUDIES[name](study), "processor_seconds": round(time.process_time() - began)}
        write_json(args.out / f"{name}.json", figures)
        print(json.dumps({name: figures}))


if __name__ == "__main__":
    main()
