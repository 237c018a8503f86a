"""What codes that are learnt in spans buy on a small model: pictures in few passes, and what they lose by it.

    python tools/study_spans.py start masked --steps 240      # one of STUDIES, or several; rows of docs/objectives.md

Each objective trains the whole of nano on drawings of one style. Then concepts are drawn, token by token and by the
objective's own decoder: `learnt` ones, which the training showed, and `held_out` ones, which it did not (nano was
taught all of them once); `start` is nano as it is, `next_token` after as many steps of next tokens. A drawing is
judged by a frozen EfficientNet-lite1, which nano's tokenizer does not look through (lite0 it does): which picture of
all concepts and both styles is nearest, and how near the concept's own one is, as a cosine of features less their mean.
`nats` is the loss of the drawn codes under the model of the start, a code, which says how likely they are together.
`--reuse` judges models that are in `--out` already. Pictures are emoji from `data/raw` (`python tools/fetch_data.py`).
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import unimodal  # noqa: F401 (before transformers)
from unimodal.evaluation.drawing_judge import DrawingJudge
from unimodal.pipeline import Unimodal, load
from unimodal.sequence.document import Document, Turn
from unimodal.tuning.study import Figures, PictureStudy, add_options, run_studies

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
LEARNT, OTHER = "noto", "fluent3d"  # nano draws the first one more readily


class Study(PictureStudy):
    """Drawings of one style to learn from, and a judge of what is drawn of the other concepts."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(RECIPES, options)
        self.drawings, self.rate, self.reuse = options.drawings, options.rate, options.reuse
        concepts = self.list_pictures((LEARNT, OTHER))
        step = max(1, len(concepts) // self.drawings)
        self.held_out = concepts[::step][: self.drawings]
        self.learnt = concepts[1::step][: self.drawings]
        self.start = load(self.model, device="cpu")
        self.judge_of = DrawingJudge(concepts, (LEARNT, OTHER))
        kept = {concept["name"] for concept in self.held_out}
        rows: list[list[dict[str, object]]] = [[], []]
        for concept in concepts:
            turns = [("user", f"Draw {concept['name']}."), ("assistant", [{"type": "image", "path": concept[LEARNT]}])]
            messages = [{"role": role, "content": content} for role, content in turns]
            rows[concept["name"] in kept].append({"messages": messages})
        self.rows = self.write_rows("drawings", rows[0]), self.write_rows("held_out_drawings", rows[1])

    def teach(self, name: str, *settings: str) -> Path:
        """Whole training on the drawings; the folder of the model."""
        if self.reuse and (self.out / f"{name}_model" / "model.safetensors").is_file():
            return self.out / f"{name}_model"
        rate = [f"loop.learning_rate={self.rate}", f"loop.final_learning_rate={self.rate / 10}"]
        return self.train(name, *self.rows, *rate, "loop.warmup_steps=10", *settings, recipe="finetune_full")

    def judge(self, model: Unimodal, decoder: str | None = None) -> Figures:
        """Draw concepts, each by its own seed, and judge the drawings."""
        return {
            "learnt": self.judge_concepts(self.learnt, model, decoder),
            "held_out": self.judge_concepts(self.held_out, model, decoder),
        }

    def judge_concepts(self, concepts: Sequence[dict[str, str]], model: Unimodal, decoder: str | None) -> Figures:
        drawn, passes, prompts, answers = [], [], [], []
        for seed, concept in enumerate(concepts):
            [output] = model.chat([f"Draw {concept['name']}."], to="image", seed=seed, decoder=decoder)
            passes.append(model.engine.stats.forwards)
            drawn.append(output.media)
            turns = [Turn("user", f"Draw {concept['name']}."), Turn("assistant", [output.part])]
            rendered = self.start.template.render(Document(turns))
            begin = int((rendered.labels >= 0).argmax())
            prompts.append(rendered.ids[:begin].tolist())
            answers.append(rendered.ids[begin:].tolist())
        scores = self.start.engine.compute_log_likelihood(prompts, answers)
        return {
            "passes": statistics.median(passes),
            **self.judge_of.judge(drawn, [concept["name"] for concept in concepts]),
            "nats": round(-statistics.mean(s / len(a) for s, a in zip(scores, answers, strict=True)), 3),
        }

    def read_held_out(self, name: str) -> float:
        return round(self.read_metrics(name)[-1]["validation_loss_image"], 3)


def study_start(study: Study) -> Figures:
    """The model as it is: token by token."""
    return study.judge(study.start, "plain")


def study_next_token(study: Study) -> Figures:
    """As many steps of next tokens: token by token."""
    tuned = load(study.teach("next_token"), device="cpu")
    return {"held_out_loss": study.read_held_out("next_token"), "token by token": study.judge(tuned, "plain")}


def study_masked(study: Study) -> Figures:
    """Masked codes: by 4, 8 and 11 passes for a block of codes, of which a picture of nano's has three."""
    folder = study.teach("masked", "objective.masked_codes.share=0.9")
    return {"held_out_loss": study.read_held_out("masked"), **judge_by(study, folder, "masked", "passes", (4, 8, 11))}


def study_next_x(study: Study) -> Figures:
    """xAR over whole blocks, and code by code; nano's codes lie in no raster, so there are no cells."""
    figures: Figures = {}
    for unit in ("whole", "token"):
        folder = study.teach(f"next_x_{unit}", f"objective.next_x={{unit: {unit}, share: 0.9}}")
        found = judge_by(study, folder, "next-x", "steps", (8, 12) if unit == "whole" else (1, 2))
        figures |= {f"{unit}, {name}": value for name, value in found.items()}
        figures[f"{unit}, held_out_loss"] = study.read_held_out(f"next_x_{unit}")
    return figures


def study_any_order(study: Study) -> Figures:
    """Any subset of the codes given, by the lossless speculative sampler of the same model."""
    model = load(study.teach("any_order", "objective.any_order.share=0.9"), device="cpu")
    return {"held_out_loss": study.read_held_out("any_order"), "any-order": study.judge(model)}


def judge_by(study: Study, folder: Path, decoder: str, setting: str, values: Sequence[int]) -> Figures:
    """Judge a model with several values of a setting of its own decoder, and token by token."""
    found: Figures = {}
    for value in values:
        model = load(folder, device="cpu")
        writing = model.processor.writing
        assert writing is not None and decoder in writing.decoders
        writing.decoders[decoder][setting] = value
        found[f"{setting} {value}"] = study.judge(model)
    return found | {"token by token": study.judge(load(folder, device="cpu"), "plain")}


def study_token_unify(study: Study) -> Figures:
    """Random, next and next-all codes by turns: by masked passes, and token by token."""
    folder = study.teach("token_unify", "objective.token_unify={}")
    return {"held_out_loss": study.read_held_out("token_unify"), **judge_by(study, folder, "masked", "passes", (4, 11))}


def study_parallel_copies(study: Study) -> Figures:
    """A noisy copy of each picture beside next tokens: whole blocks in few rounds, and token by token."""
    folder = study.teach("parallel_copies", "objective.parallel_copies={}")
    found = judge_by(study, folder, "next-x", "steps", (4, 12))
    return {"held_out_loss": study.read_held_out("parallel_copies"), **found}


STUDIES: dict[str, Callable[[Study], Figures]] = {
    "start": study_start,
    "next_token": study_next_token,
    "masked": study_masked,
    "next_x": study_next_x,
    "any_order": study_any_order,
    "token_unify": study_token_unify,
    "parallel_copies": study_parallel_copies,
}


def add_own_options(parser: ArgumentParser) -> None:
    add_options(parser, "spans", 400)
    parser.add_argument("--drawings", type=int, default=60, help="held-out concepts that are drawn")
    parser.add_argument("--reuse", action="store_true", help="judge what was trained before")
    parser.add_argument("--rate", type=float, default=5e-4, help="the learning rate")


def main(arguments: Sequence[str] | None = None) -> None:
    run_studies(__doc__, STUDIES, Study, add_own_options, arguments)


if __name__ == "__main__":
    main()
