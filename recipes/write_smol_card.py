"""Writes the model card of smol from its evaluation report and its training record; no figure comes from memory.

    python recipes/write_smol_card.py [--set model=model_cards/smol]

Reads ``report.json`` and ``report_speech.json`` (the commands are in the card), ``training.json`` and the adapter's own
files.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import BaseModel, TypeAdapter

from unimodal.config import Config
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

# unimodal smol

{base} (135 M parameters, frozen) with LoRA of rank {rank} on its linear layers and {rows:,} new rows for the codes of
pictures, clips and speech: {trained:.1f} M trained parameters, {mib:.0f} MiB in all with the media tokenizers of
[nano](../nano). The base is not copied; it is loaded by its name and checked by a hash.

**Trained on two shared CPU cores for {hours:.1f} hours: {steps} steps, {tokens:,} tokens.** A beginning: it shows
that the recipe works on a real language model and what such a model keeps of its text. It names pictures and clips,
since the rows of the codes that mean something begin as their words; drawing and speech need far more. On a GPU the
same command with more steps goes on (`recipes/configs/smol.yaml`).

```bash
unimodal chat --model model_cards/smol "What is the capital of France?"
unimodal chat --model model_cards/smol --image model_cards/nano/samples/picture.png
unimodal generate "a red apple" --to image --out apple.png --model model_cards/smol
```

## Results

```bash
unimodal evaluate {suites} \\
    --model {folder} --limit {limit} --out {folder}/report.json
unimodal evaluate {speech_suites} \\
    --model {folder} --limit {speech_limit} --out {folder}/report_speech.json
python recipes/write_smol_card.py
```

| task | held out | measured |
|---|---|---|
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
python tools/fetch_data.py --set all            # and the preparation of `make nano`, up to recipes/encode_media.py
python recipes/prepare_smol.py                  # the corpus as token shards
python recipes/finetune_lora.py recipes/configs/smol.yaml
python recipes/assemble_smol.py
```

New rows begin as words where a code has a name (concept prototypes, looks of training pictures) and as projected
codebook vectors elsewhere; rows of a block share what they learn (`share_rows`). The mixture holds what the base itself
answers to everyday questions, definitions of WordNet and pages of five novels by Jane Austen, so that it forgets
little. LoRA is stored in half precision, the new rows in 8 bits with a scale for each row; the figures are of the
stored weights. Settings: `recipe.yaml`; steps, losses and the corpus's hashes: `training.json`.

## Data and licences

Pictures, clips and speech are those of [nano](../nano) (its card names each source and licence). Text: WordNet 3.0
(WordNet licence), novels by Jane Austen from Debian `r-cran-janeaustenr` (public domain), and answers of
{base} (Apache-2.0) to questions of our own.

## Limits

64×64 emoji and clip art, no photographs. Short English only. It repeats what its small base believes, and that is
often wrong. What it draws, writes down and says is not usable yet: see the figures.
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


class SmolCard(Config):
    model: Path = Path("model_cards/smol")


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


def name_suites(report: EvaluationReport) -> str:
    return " ".join(f"--suite {name}" for name in report.suites)


def make_table(report: EvaluationReport) -> str:
    """One line for each figure; what was not run is left out."""
    rows = []

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


def run(cfg: SmolCard, dry_run: bool) -> None:
    from safetensors import safe_open

    folder = cfg.model
    report = read_json_as(EvaluationReport, folder / "report.json")
    speech = read_json_as(EvaluationReport, folder / "report_speech.json")
    both = replace(report, suites=report.suites | speech.suites)
    training = read_json_as(TrainingRecord, folder / "training.json")
    base = read_json_as(BaseRecord, folder / "base.json").base
    settings = SettingsRecord.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
    rows = trained = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                if not name.endswith("_scale"):
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
        steps=training.steps, tokens=training.tokens, table=make_table(both), forgetting=forgetting,
        answers=answers, suites=name_suites(report), folder=folder, limit=report.limit,
        speech_suites=name_suites(speech), speech_limit=speech.limit,
    )  # fmt: skip
    write_text_atomically(folder / "README.md", text)
    print(f"wrote {folder / 'README.md'}", file=sys.stderr)


if __name__ == "__main__":
    run_recipe(SmolCard, run)
