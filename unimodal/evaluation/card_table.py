"""What a model card shows of its reports: a row for every figure, with its interval and count, and the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unimodal.evaluation.report import EvaluationReport
from unimodal.evaluation.shares import find_interval


class Line(NamedTuple):
    """A row of the table: path is where its figure stands in the report."""

    task: str
    held_out: str
    target: str
    path: tuple[str, ...]


ROWS = (
    Line("picture → name", "seen concepts, unseen style", "≥ 85%", ("picture_naming", "seen")),
    Line("picture → name", "unseen concepts, unseen style", "≥ 50%", ("picture_naming", "heldout")),
    Line("text → picture, concept among the 5 nearest (lite2)", "new seeds", "≥ 85%", ("picture_variety", "among_5")),
    Line("different drawings of ten seeds", "", "≥ 8", ("picture_variety", "different_of_10")),
    Line("drawings within 25 dB of a training picture", "", "reported", ("picture_variety", "copies")),
    *(
        Line(f"scene → {what}", "combinations never seen", "≥ 80%", ("scene_reading", "combination", about))
        for about, what in (
            ("what", "name"), ("many", "count"), ("colour", "colour"), ("where", "place"), ("relation", "relation"),
        )
    ),
    *(
        Line(f"scene → {what}", "unseen style", "reported", ("scene_reading", "style", about))
        for about, what in (("what", "name"), ("many", "count"), ("colour", "colour"), ("where", "place"))
    ),
    *(
        Line(f"text → scene, {what} right", "combinations never seen", "≥ 70%", ("scene_drawing", "combination", about))
        for about, what in (("many", "count"), ("colour", "colour"), ("where", "place"), ("what", "name"))
    ),
    Line("three turns about a picture, all right", "combinations never seen", "≥ 70%",
        ("conversation", "combination", "all_right")),
    Line("clip → name", "seen concepts", "≥ 95%", ("clip_naming", "seen")),
    Line("clip → what moves", "combinations never seen", "≥ 80%", ("moving", "combination", "moves")),
    Line("clip → how it moves", "combinations never seen", "reported", ("moving", "combination", "how")),
    Line("text → clip, moves as asked", "combinations never seen", "reported", ("moving", "combination", "made")),
    Line("note → instrument", "notes never heard of it", "≥ 60%", ("sound_naming", "note combination", "named")),
    Line("effect → name", "recordings never heard", "≥ 60%", ("sound_naming", "effect sample", "named")),
    Line("text → sound, among the 5 nearest", "held-out sounds", "reported", ("sound_naming", "made")),
    *(
        Line(f"speech → text, WER, {voice}", held_out, target, ("everyday_speech", voice, "wer"))
        for voice, held_out, target in (
            ("slt", "sentences of another source", "≤ 15%"), ("rms", "sentences of another source", "≤ 15%"),
            ("awb", "the same, a voice never heard", "≤ 25%"), ("human", "a person, words and numbers", "≤ 40%"),
        )
    ),
    Line("text → speech, Moonshine WER", "sentences of another source", "≤ 20%",
        ("everyday_speech", "speaking", "wer")),
    Line("the same, DNSMOS", "", "≥ 2.9", ("everyday_speech", "speaking", "dnsmos")),
)  # fmt: skip


def find(report: EvaluationReport, path: Sequence[str]) -> object:
    value: object = report.suites
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def show(value: object) -> str | None:
    """A figure with its interval and count, of any of the shapes that suites give; None for what is not there."""
    if isinstance(value, int | float):
        return f"{value:g}"
    if not isinstance(value, dict):
        return None
    figures: dict[str, object] = value
    if "mean" in figures:
        return f"{figures['mean']} ± {figures['interval']}"
    count = figures.get("count", figures.get("pictures", figures.get("clips")))
    share = figures.get("percent", figures.get("right_percent"))
    if not isinstance(share, int | float):
        return None
    low, high = figures.get("low"), figures.get("high")
    if low is None and isinstance(count, int):
        low, high = (round(100 * bound, 1) for bound in find_interval(share / 100, count))
    return f"{share:.1f}% [{low}, {high}]" + (f", n = {count}" if count is not None else "")


def name_row(row: Line) -> str:
    return f"{row.task}, {row.held_out}"


def write_command(report: EvaluationReport, out: Path) -> str:
    """The command that ran the suites of a report, as far as it tells."""
    suites = [f"--suite {name}" for name in report.suites]
    lines = [" ".join(suites[at : at + 4]) for at in range(0, len(suites), 4)]
    limit = f"--limit {report.limit} " if report.limit is not None else ""
    return "unimodal evaluate " + " \\\n    ".join([*lines, f"--model {out.parent} {limit}--out {out}"])
