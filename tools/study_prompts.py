"""What soft prompts and layers that grow buy on a small model, in minutes: rows of the table of `docs/objectives.md`.

    python tools/study_prompts.py prompt              # one of STUDIES, or several

A prompt is taught to draw in a style that the model draws less readily; every third concept is held out, and what is
measured is the held-out loss of the pictures' codes, in nats. Pictures are emoji from `data/raw`
(`python tools/fetch_data.py`). The recipes of `recipes/` train; figures are printed as JSON and kept in
`--out`/NAME.json.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import unimodal  # noqa: F401 (before transformers)
from unimodal.corpus.corpus import CorpusConfig
from unimodal.data.datasets import DatasetConfig
from unimodal.model.attention import set_attention
from unimodal.model.base import load_base
from unimodal.model.build import NanoConfig, build_model, build_nano
from unimodal.model.lora import LoraSettings
from unimodal.model.private_gradients import bound_epsilon
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.soft_prompt import list_prompt_ids
from unimodal.model.tokenformer import PattentionSettings, load_tokenformer, make_tokenformer
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.pipeline import load
from unimodal.sequence.document import Document, Image, Turn
from unimodal.sequence.packing import pack, stack
from unimodal.tuning.objective import make_objective
from unimodal.tuning.prompt_start import read_prompt_start
from unimodal.tuning.study import Figures, PictureStudy, add_options, run_studies, time_steps

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
KNOWN, WANTED = "noto", "fluent3d"  # nano draws the first one more readily


class Study(PictureStudy):
    """Drawings of one style, every third of them held out. length: tokens of a prompt."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(RECIPES, options)
        self.length = options.length

    def write_drawings(self, style: str, named: bool = False) -> tuple[str, str]:
        """Wishes to draw and their pictures in a style: the file to learn from, and the one that is held out.

        named: pictures that are asked about and their names instead.
        """
        rows = []
        for concept in self.list_pictures((style,)):
            image, label = {"type": "image", "path": concept[style]}, concept["name"]
            turns: list[tuple[str, object]] = [("user", f"Draw {label}."), ("assistant", [image])]
            if named:
                turns = [("user", [image, {"type": "text", "text": "What is this?"}]), ("assistant", label)]
            rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        kind = f"{style}_named" if named else style
        learnt = self.write_rows(kind, [row for number, row in enumerate(rows) if number % 3])
        return learnt, self.write_rows(f"{kind}_held_out", rows[::3])

    def teach(self, name: str, rows: tuple[str, str], *settings: str, recipe: str = "finetune_lora") -> Path:
        """Train on the first rows, without LoRA unless asked for, and score the others at the end."""
        bare = ["lora=null"] if recipe == "finetune_lora" else []
        return self.train(name, *rows, "loop.warmup_steps=1", *bare, *settings, recipe=recipe)

    def read_losses(self, name: str, modality: str = "image") -> Figures:
        """The loss of the last step of a run, and the held-out one behind it."""
        last = self.read_metrics(name)[-1]
        found = {"learnt": f"loss_{modality}", "held_out": f"validation_loss_{modality}"}
        return {key: round(last[column], 4) for key, column in found.items()}


def study_prompt(study: Study) -> Figures:
    """Prompt tuning: the style that is wanted, on held-out concepts."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    for name, rate in (("untrained", 1e-9), ("tuned", 0.1)):
        settings = f"prompt={{length: {study.length}, text: draw the picture}}"
        study.teach(f"prompt_{name}", rows, settings, f"loop.learning_rate={rate}", f"loop.final_learning_rate={rate}")
        figures[name] = study.read_losses(f"prompt_{name}")
    return figures


def study_layers(study: Study) -> Figures:
    """States of a prompt in all layers (prefix tuning), and in the upper half as projections of one space (MMRL), with
    and without the term that holds answers near the base: what is learnt of the wanted style on held-out concepts, and
    what becomes of drawings in the other style and of names, that nobody tuned."""
    rows, kept = study.write_drawings(WANTED), study.write_drawings(KNOWN)
    names = study.write_drawings(WANTED, named=True)
    text, length = "text: draw the picture", f"length: {study.length}"
    still = ("loop.learning_rate=1e-9", "loop.final_learning_rate=1e-9")
    figures: Figures = {}
    for name, settings in (
        ("prompt", [f"prompt={{{length}, {text}}}", "loop.learning_rate=0.1"]),
        ("prefix", [f"prompt={{{length}, {text}, prefix: {{}}}}", "loop.learning_rate=0.03"]),
        ("space", [f"prompt={{{length}, {text}, space: {{}}}}", "loop.learning_rate=3e-3"]),
        ("mmrl", [f"prompt={{{length}, {text}, space: {{}}}}", "loop.learning_rate=3e-3", "objective=mmrl"]),
        ("prompt_mmrl", [f"prompt={{{length}, {text}}}", "loop.learning_rate=0.1", "objective=mmrl"]),
    ):
        folder = study.teach(f"layers_{name}", rows, *settings)
        found = study.read_losses(f"layers_{name}")
        steps, study.steps = study.steps, 1
        for other, given, modality in (("other_style", kept, "image"), ("names", names, "text")):
            study.teach(f"layers_{name}_{other}", given, f"prompt.source={folder}", *still)
            found[other] = study.read_losses(f"layers_{name}_{other}", modality)["held_out"]
        study.steps = steps
        figures[name] = found
    return figures


def study_context(study: Study) -> Figures:
    """A context of two examples as it is, and tuned near them."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    for name, rate in (("untrained", 1e-9), ("tuned", 0.05)):
        study.teach(
            f"context_{name}", rows, f"prompt.context={{path: {rows[0]}, examples: 2, epsilon: 0.5}}",
            "objective=context_prompt", f"loop.learning_rate={rate}", f"loop.final_learning_rate={rate}",
        )  # fmt: skip
        figures[name] = study.read_losses(f"context_{name}")
    return figures


def study_transfer(study: Study) -> Figures:
    """A prompt of the style that the model knows, moved to the wanted one: alone, as a start, and by PANDA."""
    wanted = study.write_drawings(WANTED)
    source = study.teach(
        "source", study.write_drawings(KNOWN), f"prompt.length={study.length}", "loop.learning_rate=0.1"
    )
    figures: Figures = {}
    for name, settings in (
        ("alone", [f"prompt.length={study.length}"]),
        ("start", [f"prompt.source={source}"]),
        ("panda", [f"prompt.length={study.length}", f"objective.prompt_transfer={{source: {source}}}"]),
    ):
        study.teach(f"transfer_{name}", wanted, *settings, "loop.learning_rate=0.1")
        figures[name] = study.read_losses(f"transfer_{name}")
    return figures


def study_post(study: Study) -> Figures:
    """A prompt of the wanted style, moved by POST over rows of the other style alone; the small model is the model
    itself, the best that a distilled one could be."""
    wanted, known = study.write_drawings(WANTED), study.write_drawings(KNOWN)
    length = f"prompt.length={study.length}"
    source = study.teach("post_source", wanted, length, "loop.learning_rate=0.1")
    figures: Figures = {"source": study.read_losses("post_source")}
    objective = f"objective.prompt_transfer={{kind: post, source: {source}}}"
    moved = study.teach("post_moved", known, length, objective, "loop.learning_rate=0.1", "loop.seed=1")
    still = ["loop.learning_rate=1e-9", "loop.final_learning_rate=1e-9"]
    steps, study.steps = study.steps, 1
    for name, settings in (("before", [length, "loop.seed=1"]), ("moved", [f"prompt.source={moved}"])):
        study.teach(f"post_{name}_scored", wanted, *settings, *still)
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
        study.teach(run, rows, "lora={rank: 8}", "attention=sdpa", "loop.learning_rate=2e-3", *settings)
        figures[name] = study.read_losses(run, "text")
    return figures


def study_private(study: Study) -> Figures:
    """A prompt whose gradients are clipped and noised, beside one whose are not."""
    rows = study.write_drawings(WANTED)
    figures: Figures = {}
    passes = study.steps * study.tokens / (80 * (study.concepts - len(range(0, study.concepts, 3))))
    for name, private in (("plain", []), ("private", ["prompt.private={clip: 1.0, noise: 0.5}"])):
        study.teach(f"private_{name}", rows, f"prompt.length={study.length}", "loop.learning_rate=0.1", *private)
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
    source = study.teach("growth_small", rows, *sizes, f"pattention={{{small}}}", rate, recipe="pretrain")
    figures: Figures = {"small": study.read_losses("growth_small")}
    more = f"pattention={{{large}, source: {source}}}"
    grown = study.teach("growth_grown", rows, *sizes, more, rate, recipe="pretrain")
    figures["grown"] = study.read_losses("growth_grown")
    study.steps *= 2
    study.teach("growth_large", rows, *sizes, f"pattention={{{large}}}", rate, recipe="pretrain")
    study.steps //= 2
    figures["large"] = study.read_losses("growth_large")
    for name, folder in (("parameters_small", source), ("parameters_grown", grown)):
        figures[name] = sum(p.numel() for p in load_tokenformer(folder).parameters())
    return figures


def study_cost(study: Study) -> Figures:
    """Median processor time of a step on eight drawings over that of next-token training with LoRA, of prompts that
    learn by objectives of their own; and of small decoders from nothing, with pattention over without."""
    loaded = load(study.model, device="cpu")
    wanted = study.write_drawings(WANTED)
    steps, study.steps = study.steps, 1
    source = study.teach("cost_source", wanted, f"prompt.length={study.length}", "loop.learning_rate=0.1")
    study.steps = steps
    folder, length = str(study.model), {"length": study.length}
    context = {"context": {"path": wanted[0], "examples": 2, "epsilon": 0.5}}
    moved: dict[str, object] = {"source": str(source)}
    asked: dict[str, tuple[dict[str, object], dict[str, object] | None]] = {
        "next_token": ({}, None),
        "prompt": ({}, length),
        "context_prompt": ({"context_prompt": {}}, context),
        "prompt_transfer, panda": ({"prompt_transfer": moved}, length),
        "prompt_transfer, post": ({"prompt_transfer": {**moved, "kind": "post"}}, length),
    }
    documents = [
        loaded.template.render(
            Document(
                [
                    Turn("user", f"Draw {concept['name']}."),
                    Turn("assistant", [loaded.coder.encode_part(Image(path=concept[WANTED]))]),
                ]
            )
        )
        for concept in study.list_pictures((WANTED,))[2:10]
    ]
    sets = (DatasetConfig(path=wanted[0]),)
    corpus = CorpusConfig(datasets=sets, codes=study.out / "codes", length=512, condition_dropout=0.0)
    modules, batches = {}, {}
    for name, (settings, prompt) in asked.items():
        given = None if prompt is None else PromptSettings.model_validate(prompt)
        model = build_model(
            load_base(folder), loaded.vocabulary, LoraSettings() if prompt is None else None, prompt=given,
            prompt_words=read_prompt_start(given, corpus, loaded.template, loaded.coder),
        )  # fmt: skip
        model.config.use_cache = False
        chosen = ObjectiveConfig.model_validate(settings)
        modules[name] = make_objective(chosen, LossConfig(), model, loaded.template, loaded.coder).train()
        items = [document.put_before(list_prompt_ids(model)) for document in documents]
        batches[name] = stack(pack(items, 1024, loaded.vocabulary.get_control_id("<|pad|>")))
    beside = dict.fromkeys(modules, "next_token")
    sizes = NanoConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, max_positions=1024)
    for name, kept in (
        ("decoder from nothing", None),
        ("pattention", PattentionSettings(attention_tokens=64, mlp_tokens=256)),
    ):
        pad, bos, eos = (loaded.vocabulary.get_control_id(f"<|{mark}|>") for mark in ("pad", "bos", "end_of_turn"))
        made = build_nano(loaded.vocabulary.size, sizes, pad_id=pad, bos_id=bos, eos_id=eos)
        if kept is not None:
            make_tokenformer(made, kept)
        set_attention(made)
        modules[name] = PackedLoss(made, loaded.vocabulary).train()
        batches[name], beside[name] = batches["next_token"], "decoder from nothing"
    return {**time_steps(modules, batches, beside), "tokens": int(batches["next_token"].ids.size)}


STUDIES: dict[str, Callable[[Study], Figures]] = {
    "prompt": study_prompt,
    "layers": study_layers,
    "context": study_context,
    "transfer": study_transfer,
    "post": study_post,
    "restored": study_restored,
    "private": study_private,
    "growth": study_growth,
    "cost": study_cost,
}


def add_own_options(parser: ArgumentParser) -> None:
    add_options(parser, "prompts", 48)
    parser.add_argument("--length", type=int, default=20, help="tokens of a prompt")


def main(arguments: Sequence[str] | None = None) -> None:
    run_studies(__doc__, STUDIES, Study, add_own_options, arguments)


if __name__ == "__main__":
    main()
