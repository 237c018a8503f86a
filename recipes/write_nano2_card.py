"""Writes what the card of nano 2 tells of the model, from its evaluation report; no figure comes from memory.

    python recipes/write_nano2_card.py [--set model=model_cards/nano2]

Reads ``report.json``, ``report_drawing.json`` and ``report_more.json`` (the commands are in the card), ``recipe.json``
and ``curve.json``, the losses of training that `--set metrics=[RUN/metrics.jsonl, …]` writes anew from the runs, where
they are at hand, or with `--set more=true` behind those of earlier runs. What is measured is kept in
``milestones.json`` beside the steps of the model, so that the card shows how it grew. In ``README.md`` what stands
above the heading of the tokenizers is replaced, and the rest is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from unimodal.config import Config
from unimodal.evaluation.card_table import ROWS, find, name_row, show, write_command
from unimodal.evaluation.report import EvaluationReport
from unimodal.files import read_json_as, write_json, write_text_atomically
from unimodal.training.command import run_recipe

REST = "## The tokenizers"  # the heading that the kept part begins with
LOSSES = ("loss_text", "loss_known", "loss_semantic", "loss_image", "loss_audio", "ctc")
CURVE_ROWS = 12
REPORTS = ("report.json", "report_drawing.json", "report_more.json")

HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: any-to-any
tags:
  - unimodal
  - image-to-text
  - text-to-image
  - text-to-speech
  - automatic-speech-recognition
  - image-tokenizer
  - video-tokenizer
  - audio-tokenizer
---

# unimodal nano 2

A stock Llama of {millions:.1f} M parameters over one vocabulary of {rows:,} rows and three media tokenizers. Beside
what [nano](../nano) does it learns to talk about composed pictures (what, how many, in which colour, where) over
several turns, to draw them, to tell what moves in a clip, and to name sounds; no code of it stands for a training
picture.

**It is in training, and this is how far it is**: {steps:,} steps of {per_step:,} tokens ({tokens:.1f} M in all) on a
shared CPU core, begun with nano's layers. It draws what it is asked for three times in five, names seven of ten things
in a style that it never saw, tells the colours of composed pictures, instruments and packaged clips, and reads what
voices of its training say of new sentences with two of five words wrong. **What it says is not understood**, places,
counts and names within scenes it often gets wrong, three questions in a row nearly always, and ten seeds give mostly
one picture: use nano to speak.

```bash
unimodal chat --model model_cards/nano2 --image model_cards/nano2/samples/picture.png "What colour is it?"
unimodal chat --model model_cards/nano2 --audio model_cards/nano2/samples/speech.wav "What is said?"
unimodal generate "a red apple" --to image --out apple.png --model model_cards/nano2
```

## Results

```bash
{commands}
python recipes/write_nano2_card.py
```

Shares are of held-out items, with 95% intervals; judges are no part of the model, and named in `report.json`.

{table}{gallery}
## What more training would bring

Losses while it trained, in nats a token or code, each a mean over 20 steps; `ctc` is that of reading speech at its
codes, in nats a piece of text.

{curve}
"""

GALLERY = """
![held-out pictures, the same after their codes, drawings, a clip](gallery.png)

*Top to bottom: pictures of concepts that were never trained on, the same after their 64 codes, drawings asked for in
words, the frames of a clip asked for in words; `gallery.json` names them. Seed 0, nothing is picked:
`python recipes/make_gallery.py --set model={folder}`.*
"""


class Nano2Card(Config):
    model: Path = Path("model_cards/nano2")
    metrics: tuple[Path, ...] = ()
    more: bool = False


class Milestone(BaseModel):
    """What was measured after so many steps. measured: the row of the table → its figure."""

    steps: int
    tokens: int
    measured: dict[str, str]


class LoopRecord(BaseModel):
    steps: int


class StageSettings(BaseModel):
    loop: LoopRecord
    tokens_per_step: int


class StageRecord(BaseModel):
    """`recipe.json` of the last part: its settings, and the steps of the parts before that were really made."""

    config: StageSettings
    initial_steps: int = 0


class DecoderSizes(BaseModel):
    """`config.json`."""

    vocab_size: int
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int

    def count_parameters(self) -> int:
        """Of a Llama whose tables are tied and whose heads all have keys of their own."""
        a_layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * a_layer + self.hidden_size


def make_table(milestones: Sequence[Milestone]) -> str:
    """One line a figure, the last milestone's behind those of earlier ones; what was not measured is left out."""
    *earlier, last = milestones
    heads = [*(f"after {one.tokens / 1e6:.1f} M tokens" for one in earlier), "measured"]
    lines = [f"| task | held out | target | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for row in ROWS:
        if found := last.measured.get(name_row(row)):
            cells = [*(one.measured.get(name_row(row), "") for one in earlier), found]
            lines.append(f"| {row.task} | {row.held_out} | {row.target} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def add_milestone(path: Path, reached: Milestone) -> list[Milestone]:
    """Those of the file, with this one in the place of one that has made as many steps; written back."""
    kept = read_json_as(list[Milestone], path) if path.is_file() else []
    found = sorted([*(one for one in kept if one.steps != reached.steps), reached], key=lambda one: one.steps)
    write_json(path, [one.model_dump() for one in found])
    return found


def read_curve(paths: Sequence[Path], before: float = 0.0) -> Iterator[dict[str, float]]:
    """The records of training, the steps of later parts counted on from `before`."""
    for path in paths:
        step = 0.0
        for line in path.read_text("utf-8").splitlines():
            record: Mapping[str, float] = json.loads(line)
            step = record["step"]
            yield {"step": before + step, **{name: record[name] for name in LOSSES if name in record}}
        before += step


def draw_curve(records: Sequence[Mapping[str, float]]) -> str:
    """A table of about a dozen of the records, the last among them."""
    every = max(1, -(-len(records) // CURVE_ROWS))
    chosen = records[::-1][::every][::-1]
    lines = [
        f"| step | {' | '.join(name.removeprefix('loss_') for name in LOSSES)} |",
        "|---" * (len(LOSSES) + 1) + "|",
    ]
    for record in chosen:
        cells = (f"{record[name]:.2f}" if name in record else "" for name in LOSSES)
        lines.append(f"| {record['step']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(cfg: Nano2Card, dry_run: bool) -> None:
    folder = cfg.model
    parts = {path: read_json_as(EvaluationReport, path) for path in map(folder.joinpath, REPORTS) if path.is_file()}
    if not parts:
        raise ValueError(f"{folder} has no {' and no '.join(REPORTS)}; make them with `unimodal evaluate`")
    report = EvaluationReport(suites={name: one for part in parts.values() for name, one in part.suites.items()})
    sizes = read_json_as(DecoderSizes, folder / "config.json")
    record = read_json_as(StageRecord, folder / "recipe.json")
    readme = folder / "README.md"
    _, heading, rest = readme.read_text("utf-8").partition(REST)
    if not heading:
        raise ValueError(f"{readme} has no heading {REST!r}; what stands from there on is kept")
    steps = record.config.loop.steps + record.initial_steps
    known = read_json_as(list[dict[str, float]], folder / "curve.json") if cfg.more or not cfg.metrics else []
    earlier = [one for one in known if not cfg.metrics or one["step"] <= record.initial_steps]
    records = [*earlier, *read_curve(cfg.metrics, record.initial_steps if cfg.more else 0.0)]
    tokens = steps * record.config.tokens_per_step
    measured = {name_row(row): text for row in ROWS if (text := show(find(report, row.path)))}
    commands = "\n".join(write_command(part, path) for path, part in parts.items())
    if dry_run:
        return
    milestones = add_milestone(folder / "milestones.json", Milestone(steps=steps, tokens=tokens, measured=measured))
    card = HEAD.format(
        millions=sizes.count_parameters() / 1e6, rows=sizes.vocab_size, steps=steps, tokens=tokens / 1e6,
        per_step=record.config.tokens_per_step, commands=commands, table=make_table(milestones),
        curve=draw_curve(records),
        gallery=GALLERY.format(folder=folder) if (folder / "gallery.png").is_file() else "",
    )  # fmt: skip
    if cfg.metrics:
        write_json(folder / "curve.json", records)
    write_text_atomically(readme, card + "\n" + heading + rest)
    print(f"wrote {readme}", file=sys.stderr)


if __name__ == "__main__":
    run_recipe(Nano2Card, run)
