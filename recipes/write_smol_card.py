"""Writes the model card of smol from its evaluation report and its training record; no figure comes from memory.

    python recipes/write_smol_card.py [recipes/configs/smol2_card.yaml] [--set model=model_cards/smol]

Reads ``report.json``, ``report_speech.json`` and what other ``report_….json`` lie there (the commands are in the card),
``training.json`` and the adapter's own files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, TypeAdapter

from unimodal.config import Config
from unimodal.evaluation.card_table import ROWS, find, show, write_command
from unimodal.evaluation.report import EvaluationReport
from unimodal.files import read_json_as, write_text_atomically
from unimodal.training.command import run_recipe

CARD = """---
license: apache-2.0
language: en
library_name: unimodal
pipeline_tag: any-to-any
base_model: {base}
base_model_relation: adapter
tags: [unimodal, lora, image-to-text, text-to-image, text-to-speech, automatic-speech-recognition]
---

# unimodal {title}

{base} (135 M parameters, frozen) with LoRA of rank {rank} on its linear layers and {rows:,} new rows for the codes of
pictures, clips and speech: {trained:.1f} M trained parameters, {mib:.0f} MiB in all with the media tokenizers of
[{media}](../{media}). The base is not copied; it is loaded by its name and checked by a hash.

**Trained on two shared CPU cores for {hours:.1f} hours: {steps} steps, {tokens:,} tokens.** {about} On a GPU the
same command with more steps goes on (`{recipe}`).

```bash
unimodal chat --model {folder} "What is the capital of France?"
unimodal chat --model {folder} --image model_cards/{media}/samples/picture.png
unimodal generate "a red apple" --to image --out apple.png --model {folder}
```

## Results

```bash
{commands}
{write}
```

{table}
What the base still knows: perplexity of text that no corpus of ours holds (definitions of words that are left out
whole, and one novel of six), before and after, over the text rows that both models have. A ratio below 1 is no wonder:
the mixture holds other definitions and the other novels.

| text | before | after | ratio | after, over the whole joint vocabulary |
|---|---|---|---|---|
{forgetting}
Greedy answers of the tuned model to questions that are not in its corpus:

{answers}
{speed}
## How it was made

```bash
{data}
{corpus}
python recipes/finetune_lora.py {recipe}
{assemble}
```

New rows begin as words where a code has a name (concept prototypes, looks of training pictures) and as projected
codebook vectors elsewhere; rows of a block share what they learn (`share_rows`). The mixture holds what the base itself
answers to everyday questions, definitions of WordNet and pages of five novels by Jane Austen, so that it forgets
little. {stored}; the figures are of the
stored weights. Settings: `recipe.yaml`; steps, losses and the corpus's hashes: `training.json`.

## Data and licences

Pictures, clips and speech are those of [{media}](../{media}) (its card names each source and licence). Text: WordNet
3.0 (WordNet licence), novels by Jane Austen from Debian `r-cran-janeaustenr` (public domain), and answers of
{base} (Apache-2.0) to questions of our own.

## Limits

64×64 emoji and clip art, no photographs. Short English only. It repeats what its small base believes, and that is
often wrong. {limits}
"""


SPEED = """
## Speed

Pictures with guidance by a decoder of this shape (random weights), each ingredient of the engine switched on in turn,
beside `transformers.generate()` (peer):

```
{table}
```

```bash
OMP_NUM_THREADS=2 python tools/bench_generation.py --shape 135m --repeats 3 --decoders \\
    | tee {folder}/bench_generation.txt
```

This table is for the time: greedy ids of random weights say nothing of what bfloat16 and int8 cost a trained model.
"""


TRAINING = """
Training its base with LoRA of rank 8 on ragged text (definitions, paragraphs of novels), beside TRL's `SFTTrainer` on
the same documents: by its default (padded), with documents of like length together, and packed. Only the tokens of
documents count, not padding:

```
{table}
```

The first line of the table is its command; `trl` has to be installed for it.
"""


ABOUT = """A beginning: it shows
that the recipe works on a real language model and what such a model keeps of its text. It names pictures and clips,
since the rows of the codes that mean something begin as their words; drawing and speech need far more."""
DATA = (
    """python tools/fetch_data.py --set all            # and what `make nano` prepares, up to recipes/encode_media.py"""
)


class SmolCard(Config):
    model: Path = Path("model_cards/smol")
    media: str = "nano"  # the model whose tokenizers it has
    about: str = ABOUT
    limits: str = "What it draws, writes down and says is not usable yet: see the figures."
    stored: str = "LoRA is stored in half precision, the new rows in 8 bits with a scale for each row"
    data: str = DATA
    corpus: str = "python recipes/prepare_smol.py                  # the corpus as token shards"
    recipe: str = "recipes/configs/smol.yaml"
    assemble: str = "python recipes/assemble_smol.py"
    write: str = "python recipes/write_smol_card.py"
    #: the figures that have a target, by suite and group: the table then has the intervals of every figure
    targets: dict[str, str] = {}


class TrainingRecord(BaseModel):
    """What the card tells of `training.json`."""

    steps: int
    tokens: int
    hours: float


class BaseRecord(BaseModel):
    """What the card tells of `base.json`."""

    base: str


class LoraRecord(BaseModel):
    rank: int


class SettingsRecord(BaseModel):
    """What the card tells of `recipe.yaml`."""

    lora: LoraRecord


class Answer(BaseModel):
    asked: str
    answer: str


def list_reports(folder: Path) -> list[Path]:
    """`report.json`, which has to be there, and the others. Raises ValueError without it."""
    if not (folder / "report.json").is_file():
        raise ValueError(f"{folder} has no report.json; make it with `unimodal evaluate`")
    return [folder / "report.json", *sorted(folder.glob("report_*.json"))]


def make_table(report: EvaluationReport) -> str:
    """One line for each figure; what was not run is left out."""
    rows = ["| task | held out | measured |\n|---|---|---|\n"]

    def add(task: str, held: str, *path: str) -> None:
        value = report.find_figure(*path)
        if value is not None:
            rows.append(f"| {task} | {held} | {value:.1f}% |\n")

    add("picture → name", "seen concepts, unseen style", "picture_naming", "seen", "right_percent")
    add("the same by the nearest neighbour", "", "picture_naming", "seen", "nearest_neighbour_percent")
    add("picture → name", "unseen concepts, unseen style", "picture_naming", "heldout", "right_percent")
    add("text → picture, concept among the 5 nearest", "new seeds", "picture_drawing", "among_5_percent")
    add("clip → name", "seen concepts", "clip_naming", "seen", "right_percent")
    add("clip → name", "unseen concepts", "clip_naming", "heldout", "right_percent")
    add("speech → text, WER", "sentences never seen", "transcription", "all", "wer")
    add("text → speech, Whisper WER", "sentences never seen", "speaking", "wer")
    return "".join(rows)


def make_table_with_targets(report: EvaluationReport, targets: Mapping[str, str]) -> str:
    """One line for each figure that a card shows, with its interval, and its target where it has one."""
    lines = ["| task | held out | target | measured |\n|---|---|---|---|\n"]
    for row in ROWS:
        if found := show(find(report, row.path)):
            lines.append(f"| {row.task} | {row.held_out} | {targets.get('.'.join(row.path), '')} | {found} |\n")
    return "".join(lines)


def run(cfg: SmolCard, dry_run: bool) -> None:
    from safetensors import safe_open

    folder = cfg.model
    parts = {path: read_json_as(EvaluationReport, path) for path in list_reports(folder)}
    both = EvaluationReport(suites={name: found for part in parts.values() for name, found in part.suites.items()})
    training = read_json_as(TrainingRecord, folder / "training.json")
    base = read_json_as(BaseRecord, folder / "base.json").base
    settings = SettingsRecord.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
    rows = trained = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                if not name.endswith(("_scale", "_features", "_table")):
                    trained += shape[0] * shape[1]
                rows = shape[0] if name == "input" else rows
    if dry_run:
        return
    forgetting = "".join(
        f"| {name} | {f['perplexity_before']:.2f} | {f['perplexity_after']:.2f} | {f['ratio']:.3f} "
        f"| {f['perplexity_after_over_all_rows']:.2f} |\n"
        for name, f in both.list_groups("text_forgetting").items()
    )
    told = both.suites.get("text_forgetting", {}).get("answers", [])
    answers = "\n".join(f"- {each.asked} — {each.answer}" for each in TypeAdapter(list[Answer]).validate_python(told))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    bench = folder / "bench_generation.txt"
    speed = SPEED.format(table=bench.read_text().strip(), folder=folder) if bench.exists() else ""
    bench = folder / "bench_training.txt"
    speed += TRAINING.format(table=bench.read_text().strip()) if bench.exists() else ""
    text = CARD.format(
        speed=speed,
        base=base, rank=settings.lora.rank, rows=rows, trained=trained / 1e6, mib=size, hours=training.hours,
        steps=training.steps, tokens=training.tokens, forgetting=forgetting, answers=answers, folder=folder,
        table=make_table_with_targets(both, cfg.targets) if cfg.targets else make_table(both),
        commands="\n".join(write_command(part, path) for path, part in parts.items()),
        title=folder.name, media=cfg.media, about=cfg.about, limits=cfg.limits, stored=cfg.stored, data=cfg.data,
        corpus=cfg.corpus, recipe=cfg.recipe, assemble=cfg.assemble,
        write=cfg.write,
    )  # fmt: skip
    write_text_atomically(folder / "README.md", text)
    print(f"wrote {folder / 'README.md'}", file=sys.stderr)


if __name__ == "__main__":
    run_recipe(SmolCard, run)
