"""What each objective of `docs/objectives.md` buys on a small model, in minutes: a row of its table each.

    python tools/study_objectives.py preference            # one of STUDIES, or several
    python tools/study_objectives.py cost                  # processor time of a step against next-token training

Pictures are emoji of two drawing styles, from `data/raw` (`python tools/fetch_data.py`); every third concept is held
out. The recipes of `recipes/` train; what is measured is printed as JSON and kept in `--out`/NAME.json.
"""

from __future__ import annotations

import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import unimodal  # noqa: F401 (before transformers)
from unimodal.data.encoded_media import EncodedSpeech, load_speech
from unimodal.evaluation.shares import find_interval
from unimodal.model.attention import set_attention
from unimodal.objectives.sinks import measure_sinks
from unimodal.pipeline import Unimodal, load
from unimodal.sequence.document import Document, Turn
from unimodal.sequence.document import Image as Picture
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.study import Figures, PictureStudy, add_options, run_studies, time_steps

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STYLES = ("noto", "fluent3d")  # nano draws the first one more readily
REJECTED, CHOSEN = STYLES
SMALL = [f"decoder.{name}={value}" for name, value in (("hidden_size", 128), ("num_layers", 3), ("num_heads", 2),
         ("num_kv_heads", 2), ("intermediate_size", 352), ("max_positions", 1024))]  # fmt: skip
LONGEST = 200  # codes of an utterance
DRAWINGS = 4  # of each wish, before and after GRPO
Row = dict[str, object]


class Study(PictureStudy):
    """Concepts in both styles, every third of them held out."""

    def __init__(self, recipes: Path, options: Namespace, rate: float) -> None:
        super().__init__(recipes, options)
        self.rate = rate  # of grpo

    def write_text_base(self) -> Path:
        """The model without its rows of media and controls, as a base of text alone; its folder."""
        from transformers import AutoModelForCausalLM

        whole = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        whole.resize_token_embeddings(load(self.model, device="cpu").vocabulary.text_size)
        whole.config.bos_token_id = whole.config.eos_token_id = whole.config.pad_token_id = 0
        base = self.out / "text_base"
        whole.save_pretrained(base)
        tokenizer = json.loads((self.model / "tokenizer.json").read_text())
        (base / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
        return base

    def list_both(self) -> list[dict[str, str]]:
        return self.list_pictures(STYLES)

    def load_speech(self, split: str) -> EncodedSpeech:
        """The encoded utterances of a split, by the model's own audio tokenizer."""
        sha256 = load(self.model, device="cpu").coder.get_tokenizer("audio").sha256
        return load_speech(self.raw.parent / "prepared" / "speech", split, LONGEST, sha256)

    def split(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """(concepts to learn from, concepts that are held out)."""
        pictures = self.list_both()
        return [p for i, p in enumerate(pictures) if i % 3], pictures[::3]


def draw(name: str) -> list[Row]:
    return [{"role": "user", "content": f"Draw {name}."}]


def answer_with(path: str) -> list[Row]:
    return [{"role": "assistant", "content": [{"type": "image", "path": path}]}]


def ask(path: str) -> list[Row]:
    return [
        {"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "What is this?"}]},
    ]


def score_drawings(model: Unimodal, concepts: Sequence[dict[str, str]], style: str) -> list[float]:
    """The log-probability of each concept's picture of a style as the answer to the wish to draw it, in nats a code."""
    prompts, answers = [], []
    for concept in concepts:
        picture = model.coder.encode_part(Picture(path=concept[style]))
        turns = [Turn("user", f"Draw {concept['name']}."), Turn("assistant", [picture])]
        rendered = model.template.render(Document(turns))
        begin = int((rendered.labels >= 0).argmax())
        prompts.append(rendered.ids[:begin].tolist())
        answers.append(rendered.ids[begin:].tolist())
    found = model.engine.compute_log_likelihood(prompts, answers)
    return [score / len(answer) for score, answer in zip(found, answers, strict=True)]


def compare_styles(model: Unimodal, concepts: Sequence[dict[str, str]]) -> Figures:
    """How often the chosen style is the likelier one, with Wilson's 95% interval, and the likelihood of both."""
    right, wrong = (score_drawings(model, concepts, style) for style in (CHOSEN, REJECTED))
    wins, num = sum(a > b for a, b in zip(right, wrong, strict=True)), len(right)
    return {
        "win_rate": round(wins / num, 3), "pairs": num, "interval": wilson(wins, num),
        "nats_chosen": round(statistics.mean(right), 3), "nats_rejected": round(statistics.mean(wrong), 3),
    }  # fmt: skip


def wilson(hits: int, num: int) -> list[float]:
    """Wilson's 95% interval of a share."""
    return [round(end, 3) for end in find_interval(hits / num, num)]


def write_pairs(study: Study, concepts: Sequence[dict[str, str]], name: str) -> str:
    """To each wish a picture of the style that the model draws less readily is chosen."""
    rows: list[Row] = [
        {"prompt": draw(c["name"]), "chosen": answer_with(c[CHOSEN]), "rejected": answer_with(c[REJECTED])}
        for c in concepts
    ]
    return study.write_rows(name, rows)


def study_preference(study: Study) -> Figures:
    """DPO: the style that is chosen becomes the likelier one on held-out concepts; alone, and with the likelihood of
    what is chosen beside it."""
    learnt, held_out = study.split()
    rows, others = write_pairs(study, learnt, "pairs"), write_pairs(study, held_out, "held_out_pairs")
    figures: Figures = {"before": compare_styles(load(study.model, device="cpu"), held_out)}
    for name, more in (("preference", []), ("chosen_weight", ["objective.preference.chosen_weight=1"])):
        settings = ["objective.preference.beta=0.02", "loop.learning_rate=1e-3", *more]
        folder = study.train(name, rows, others, *settings)
        figures[name] = {
            **compare_styles(load(folder, device="cpu"), held_out),
            "held_out_reward_accuracy": study.read_metrics(name)[-1]["validation_reward_accuracy"],
        }
    return figures


def study_critical(study: Study) -> Figures:
    """cDPO beside DPO at equal steps: tokens weighed by models that are tuned on the chosen and on the rejected."""
    learnt, held_out = study.split()
    rows, others = write_pairs(study, learnt, "pairs"), write_pairs(study, held_out, "held_out_pairs")
    tuned = []
    for style in (CHOSEN, REJECTED):
        taught: list[Row] = [{"messages": [*draw(c["name"]), *answer_with(c[style])]} for c in learnt]
        path = study.write_rows(f"critical_{style}", taught)
        tuned.append(study.train(f"critical_{style}", path, None, "loop.learning_rate=1e-3"))
    figures: Figures = {"before": compare_styles(load(study.model, device="cpu"), held_out)}
    contrast = f"objective.preference.critical={{right: {tuned[0]}, wrong: {tuned[1]}}}"
    for name, more in (("preference_alone", []), ("critical", [contrast])):
        settings = ["objective.preference.beta=0.02", "loop.learning_rate=1e-3", *more]
        folder = study.train(name, rows, others, *settings)
        figures[name] = {
            **compare_styles(load(folder, device="cpu"), held_out),
            "held_out_reward_accuracy": study.read_metrics(name)[-1]["validation_reward_accuracy"],
        }
    return figures


def study_row_prior(study: Study) -> Figures:
    """Nano without its rows of media, which are learnt anew for its layers from few drawings, with and without a prior.

    The rows begin as projections of the codebook's vectors.
    """
    learnt, held_out = study.split()
    base = study.write_text_base()
    rows, others = (
        study.write_rows(name, [{"messages": [*draw(c["name"]), *answer_with(c[STYLES[0]])]} for c in concepts])
        for name, concepts in (("row_drawings", learnt), ("held_out_row_drawings", held_out))
    )
    figures: Figures = {}
    for name, more in (
        ("without", []),
        *((f"weight {w:g}", [f"objective.row_prior.weight={w}"]) for w in (1e-4, 1e-3)),
    ):
        run = "row_prior_" + name.replace(" ", "_")
        study.train(run, rows, others, f"base={base}", "lora=null", "loop.learning_rate=3e-3", *more)
        last = study.read_metrics(run)[-1]
        figures[name] = {"learnt": round(last["loss_image"], 3), "held_out": round(last["validation_loss_image"], 3)}
    return figures


def study_kto(study: Study) -> Figures:
    """KTO: the same from single pictures that are called good or bad."""
    learnt, held_out = study.split()
    rows: list[Row] = [
        {"prompt": draw(c["name"]), "completion": answer_with(c[style]), "label": style == CHOSEN}
        for c in learnt
        for style in STYLES
    ]
    before = compare_styles(load(study.model, device="cpu"), held_out)
    folder = study.train(
        "kto", study.write_rows("labels", rows), None, "objective.kto.beta=0.02", "loop.learning_rate=1e-3"
    )
    return {"before": before, "after": compare_styles(load(folder, device="cpu"), held_out)}


def name_pictures(model: Unimodal, concepts: Sequence[dict[str, str]]) -> list[bool]:
    """Whether the answer to "What is this?" holds the concept's name, for the first style; decoded greedily."""
    named = []
    for concept in concepts:
        [answer] = model.chat(
            [Picture(path=concept[STYLES[0]]), "What is this?"], to="text", tokens=16, temperature=0.0
        )
        named.append(concept["name"].lower() in str(answer.part.text).lower())
    return named


def study_unlearning(study: Study) -> Figures:
    """Who's Harry Potter: some of the names that the model knows go, the others stay."""
    model = load(study.model, device="cpu")
    pictures = study.list_both()
    known = [c for c, right in zip(pictures, name_pictures(model, pictures), strict=True) if right]
    forget, keep = known[: max(2, len(known) // 4)], known[max(2, len(known) // 4) :]

    def name_rows(concepts: Sequence[dict[str, str]], **more: object) -> list[Row]:
        answers = [{"role": "assistant", "content": c["name"]} for c in concepts]
        return [{"messages": [*ask(c[STYLES[0]]), a], **more} for c, a in zip(concepts, answers, strict=True)]

    taught = study.write_rows("forget", name_rows(forget))
    reinforced = study.train("reinforced", taught, None, "loop.learning_rate=1e-3", f"loop.steps={study.steps // 2}")
    rows = study.write_rows("unlearn", [*name_rows(forget, label=False), *name_rows(keep, label=True)])
    folder = study.train(
        "unlearning", rows, None, f"objective.unlearning.reinforced={reinforced}", "loop.learning_rate=1e-3"
    )
    tuned, metrics = load(folder, device="cpu"), study.read_metrics("unlearning")
    gone, stayed = name_pictures(tuned, forget), name_pictures(tuned, keep)
    return {
        "forgotten_named": [round(sum(gone) / len(gone), 3), wilson(sum(gone), len(gone)), len(gone)],
        "kept_named": [round(sum(stayed) / len(stayed), 3), wilson(sum(stayed), len(stayed)), len(stayed)],
        "names_known_before": [len(known), len(pictures)],
        "forget_likelihood": [round(metrics[i]["forget_likelihood"], 3) for i in (0, -1)],
    }


def pack_answers(model: Unimodal, concepts: Sequence[dict[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings of concepts behind one another, without padding: ids and positions, each [1, N]."""
    ids: list[int] = []
    positions: list[int] = []
    for concept in concepts:
        picture = model.coder.encode_part(Picture(path=concept[STYLES[0]]))
        turns = [Turn("user", f"Draw {concept['name']}."), Turn("assistant", [picture])]
        row = model.template.render(Document(turns)).ids.tolist()
        ids, positions = ids + row, positions + list(range(len(row)))
    return torch.tensor([ids]), torch.tensor([positions])


def study_sinks(study: Study) -> Figures:
    """The loss against sinks beside next-token training: what is measured of sinks, and the held-out loss, with and
    without it."""
    learnt, held_out = study.split()
    rows, others = (
        study.write_rows(name, [{"messages": [*draw(c["name"]), *answer_with(c[STYLES[0]])]} for c in concepts])
        for name, concepts in (("drawings", learnt), ("held_out_drawings", held_out))
    )
    figures: Figures = {}
    model = load(study.model, device="cpu")
    ids, positions = pack_answers(model, held_out[:6])
    set_attention(model.decoder, "varlen")
    figures["before"] = measure_sinks(model.decoder, ids, positions)
    for name, settings in (("without", []), ("with", ["objective.sinks.weight=1.0"])):
        folder = study.train(f"sinks_{name}", rows, others, "loop.learning_rate=1e-3", *settings)
        tuned = load(folder, device="cpu").decoder
        set_attention(tuned, "varlen")
        loss = study.read_metrics(f"sinks_{name}")[-1]["validation_loss"]
        figures[name] = {**measure_sinks(tuned, ids, positions), "validation_loss": round(loss, 4)}
    return figures


def study_grpo(study: Study) -> Figures:
    """GRPO by the model's own captions."""
    return reinforce(study, "grpo", {"caption": {"wish": "Draw {text}."}})


def study_grpo_similarity(study: Study) -> Figures:
    """GRPO by likeness to the concept's picture of the first style, as the codes' vectors have it."""
    return reinforce(study, "grpo_similarity", {"similarity": {}})


def reinforce(study: Study, name: str, rewards: dict[str, dict[str, str]]) -> Figures:
    """Drawings before and after GRPO: how well the model of the start names them, how many of them
    differ, and what a judge says of them that is no part of the model, for wishes that are learnt from and others."""
    from unimodal.evaluation.drawing_judge import DrawingJudge
    from unimodal.tuning.rewards import Attempt, RewardContext, Rewards

    learnt, held_out = study.split()
    outside = DrawingJudge(study.list_both(), STYLES)
    rows = study.write_rows("wishes", [{"messages": [*draw(c["name"]), *answer_with(c[STYLES[0]])]} for c in learnt])

    def measure_wishes(concepts: Sequence[dict[str, str]], model: Unimodal, context: RewardContext) -> Figures:
        attempts, drawn = [], []
        for place, concept in enumerate(concepts):
            question = Document([Turn("user", f"Draw {concept['name']}.")])
            for seed in range(DRAWINGS):
                [output] = model.chat(
                    [f"Draw {concept['name']}."], to="image", seed=place * DRAWINGS + seed, temperature=1.0
                )
                attempts.append(Attempt(question, (output.part,)))
                drawn.append(output.media)
        scores, _ = Rewards({"caption": {"wish": "Draw {text}."}}, {}).score(attempts, context)
        means = torch.as_tensor(scores).reshape(-1, DRAWINGS).float().mean(1).tolist()  # of each wish
        different = {attempt.medium.codes.tobytes() for attempt in attempts if attempt.medium is not None}
        wishes = [drawn[first : first + DRAWINGS] for first in range(0, len(drawn), DRAWINGS)]
        names = [concept["name"] for concept in concepts]
        alike = [
            float(outside.judge(some, [name] * DRAWINGS)["likeness"]) for some, name in zip(wishes, names, strict=True)
        ]
        return {"captions": means, "likenesses": alike, "different": len(different), "drawings": len(attempts),
                **outside.measure_spread(wishes),
                **outside.judge(drawn, [name for name in names for _ in range(DRAWINGS)])}  # fmt: skip

    def measure(folder: Path) -> dict[str, Figures]:
        model, judge = load(folder, device="cpu"), load(study.model, device="cpu")
        context = RewardContext(judge.decoder, judge.template, judge.coder, {"image": "What is this?"})
        return {name: measure_wishes(concepts[:40], model, context)
                for name, concepts in (("learnt", learnt), ("held_out", held_out))}  # fmt: skip

    before = measure(study.model)
    folder = study.train(
        name, rows, None, "objective.grpo={medium: image, group: 8, questions: 4, max_tokens: 200}",
        f"objective.grpo.rewards={json.dumps(rewards)}", f"loop.learning_rate={study.rate}",
    )  # fmt: skip
    metrics = study.read_metrics(name)
    third = max(1, len(metrics) // 3)
    course = [round(statistics.mean(m["reward"] for m in part), 3) for part in (metrics[:third], metrics[-third:])]
    after = measure(folder)
    return {"before": before, "after": after, "reward_while_training": course, "change": compare_wishes(before, after)}


def compare_wishes(before: dict[str, Figures], after: dict[str, Figures]) -> Figures:
    """How far each wish rose, paired: means with their standard errors."""
    found: Figures = {}
    for kind in before:
        for measure in ("captions", "likenesses"):
            rises = [new - old for old, new in zip(before[kind][measure], after[kind][measure], strict=True)]
            error = statistics.stdev(rises) / len(rises) ** 0.5
            found[f"{kind}_{measure}"] = f"{statistics.mean(rises):+.3f} ± {error:.3f}"
    return found


def study_distillation(study: Study) -> Figures:
    """A small student from nothing: the held-out loss of its own labels, with a teacher and alone, at equal steps."""
    learnt, held_out = study.split()
    pairs = []
    for concepts in (learnt, held_out):
        rows: list[Row] = []
        for concept in concepts:
            for style in STYLES:
                rows += [
                    {"messages": [*draw(concept["name"]), *answer_with(concept[style])]},
                    {"messages": [*ask(concept[style]), {"role": "assistant", "content": concept["name"]}]},
                ]
        pairs.append(rows)
    learnt_rows, other_rows = (study.write_rows(n, r) for n, r in zip(("both", "held_out_both"), pairs, strict=True))
    teacher = f"teacher: {study.model}"
    figures: Figures = {}
    for name, objective in (
        ("alone", []),
        ("logits", [f"objective.distillation={{{teacher}, share: 0.7}}"]),
        ("hidden", [f"objective.distillation={{{teacher}, share: 0.5, logits: {{}}, hidden: {{}}}}"]),
        ("relations", [f"objective.distillation={{{teacher}, share: 0.5, logits: {{}}, relations: {{}}}}"]),
    ):
        run = f"distillation_{name}"
        study.train(run, learnt_rows, other_rows, *SMALL, *objective, "loop.learning_rate=3e-3", recipe="pretrain")
        last = study.read_metrics(run)[-1]
        figures[name] = {m: round(last[f"validation_loss_{m}"], 4) for m in ("text", "image")}
    return figures


def study_transcript(study: Study) -> Figures:
    """A small decoder from nothing that learns to write down speech: the held-out loss of the words, with the term and
    without it. Needs the codes of recipes/encode_media.py, and a model whose audio tokenizer made them."""
    files = []
    for split, most in (("train", None), ("test", 200)):
        speech = study.load_speech(split)
        rows: list[Row] = []
        for item in range(len(speech))[:most]:
            sound = {"type": "audio", "codes": speech.get_codes(item).tolist()}
            asked = {"role": "user", "content": [sound, {"type": "text", "text": "What is said?"}]}
            rows.append({"messages": [asked, {"role": "assistant", "content": speech.get_text(item)}]})
        files.append(study.write_rows(f"{split}_speech", rows))
    figures: Figures = {}
    for name, more in (("without", []), *((f"weight {w:g}", [f"objective.transcript.weight={w}"]) for w in (0.3, 1.0))):
        run = "transcript_" + name.replace(" ", "_")
        study.train(run, *files, *SMALL, *more, "loop.learning_rate=3e-3", recipe="pretrain")
        found = study.read_metrics(run)
        figures[name] = {"learnt": round(found[-1]["loss_text"], 3),
                         "held_out": round(found[-1]["validation_loss_text"], 3)}  # fmt: skip
    return figures


def study_cost(study: Study) -> Figures:
    """Median processor time of a step, forward and backward, over that of next-token training, on the same drawings:
    objectives with LoRA, prompts of 20 tokens without. `row_prior` is beside new rows alone, behind a base of text."""
    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.lora import LoraSettings
    from unimodal.model.prompt_settings import PromptSettings
    from unimodal.model.soft_prompt import list_prompt_ids
    from unimodal.objectives.next_token import LossConfig
    from unimodal.objectives.registry import ObjectiveConfig
    from unimodal.sequence.packing import pack, stack
    from unimodal.sequence.templates.own import Template, join_group
    from unimodal.tuning.objective import make_objective
    from unimodal.tuning.vocabulary import make_joint_template

    loaded = load(study.model, device="cpu")
    folder, parts = str(study.model), {"logits": {}, "hidden": {}, "relations": {}}
    text_base = str(study.write_text_base())
    teacher = {"teacher": folder}
    asked: dict[str, tuple[dict[str, object], dict[str, object] | None]] = {
        "next_token": ({}, None),
        "sinks": ({"sinks": {}}, None),
        "preference": ({"preference": {}}, None),
        "cdpo": ({"preference": {"critical": {"right": folder, "wrong": folder}}}, None),
        "kto": ({"kto": {}}, None),
        "unlearning": ({"unlearning": {"reinforced": folder}}, None),
        "distillation": ({"distillation": teacher}, None),
        "distillation, all parts": ({"distillation": {**teacher, **parts}}, None),
        **{name: ({name: {}}, None) for name in ("masked_codes", "token_unify", "any_order", "parallel_copies")},
        "next_x": ({"next_x": {"unit": "whole"}}, None),
        "restored_codes": ({"restored_codes": {}}, None),
        "prompt": ({}, {}),
        "prompt.private": ({}, {"private": {}}),
        "prompt.prefix": ({}, {"prefix": {}}),
        "prompt.space": ({}, {"space": {}}),
        "prompt.space, mmrl": ({"mmrl": {}}, {"space": {}}),
        "new rows": ({}, None),
        "row_prior": ({"row_prior": {}}, None),
    }

    def render_pairs(template: Template) -> list[Rendered]:
        pairs = []
        for concept in study.list_both()[:4]:
            pair = []
            for style, sign in zip(STYLES, (1.0, -1.0), strict=True):
                picture = loaded.coder.encode_part(Picture(path=concept[style]))
                turns = [Turn("user", f"Draw {concept['name']}."), Turn("assistant", [picture])]
                pair.append(template.render(Document(turns)).give_values(sign))
            pairs.append(join_group(pair))
        return pairs

    modules, batches, beside = {}, {}, {}
    for name, (settings, prompt) in asked.items():
        rows_alone = name in ("new rows", "row_prior")
        base = load_base(text_base if rows_alone else folder)
        template = make_joint_template(base, loaded.coder) if rows_alone else loaded.template
        model = build_model(
            base, template.vocabulary, LoraSettings() if prompt is None and not rows_alone else None,
            prompt=None if prompt is None else PromptSettings.model_validate(prompt),
        )  # fmt: skip
        model.config.use_cache = False
        if name == "restored_codes":
            set_attention(model, "sdpa")
        chosen = ObjectiveConfig.model_validate(settings)
        modules[name] = make_objective(chosen, LossConfig(), model, template, loaded.coder).train()
        items = [pair.put_before(list_prompt_ids(model)) for pair in render_pairs(template)]
        batches[name] = stack(pack(items, 512, template.vocabulary.get_control_id("<|pad|>")))
        beside[name] = "new rows" if rows_alone else "next_token"
    return {**time_steps(modules, batches, beside), "tokens": int(batches["next_token"].ids.size)}


def study_cost_of_transcripts(study: Study) -> Figures:
    """The same for `transcript`, beside next-token training on the same utterances. Needs encoded speech."""
    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.lora import LoraSettings
    from unimodal.objectives.next_token import LossConfig
    from unimodal.objectives.registry import ObjectiveConfig
    from unimodal.sequence.document import Audio, Text
    from unimodal.sequence.packing import pack, stack
    from unimodal.tuning.objective import make_objective

    loaded = load(study.model, device="cpu")
    speech = study.load_speech("test")
    items = []
    for item in range(8):
        asked = Turn("user", [Audio(codes=speech.get_codes(item)), Text("What is said?")])
        items.append(loaded.template.render(Document([asked, Turn("assistant", speech.get_text(item))])))
    batch = stack(pack(items, 1024, loaded.vocabulary.get_control_id("<|pad|>")))
    modules = {}
    for name, settings in (("next_token of speech", {}), ("transcript", {"transcript": {}})):
        model = build_model(load_base(str(study.model)), loaded.vocabulary, LoraSettings())
        model.config.use_cache = False
        chosen = ObjectiveConfig.model_validate(settings)
        modules[name] = make_objective(chosen, LossConfig(), model, loaded.template, loaded.coder).train()
    found = time_steps(modules, dict.fromkeys(modules, batch), dict.fromkeys(modules, "next_token of speech"))
    return {**found, "tokens": int(batch.ids.size)}


STUDIES: dict[str, Callable[[Study], Figures]] = {
    "preference": study_preference,
    "critical": study_critical,
    "kto": study_kto,
    "unlearning": study_unlearning,
    "sinks": study_sinks,
    "grpo": study_grpo,
    "grpo_similarity": study_grpo_similarity,
    "distillation": study_distillation,
    "row_prior": study_row_prior,
    "transcript": study_transcript,
    "cost": study_cost,
    "cost_of_transcripts": study_cost_of_transcripts,
}


def main(arguments: Sequence[str] | None = None) -> None:
    def make(options: Namespace) -> Study:
        return Study(RECIPES, options, options.grpo_rate)

    def add(parser: ArgumentParser) -> None:
        add_options(parser, "objectives", 90)
        parser.add_argument("--grpo-rate", type=float, default=2e-4, help="the learning rate of grpo")

    run_studies(__doc__, STUDIES, make, add, arguments)


if __name__ == "__main__":
    main()
