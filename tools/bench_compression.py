"""Compression on at least 200 held-out questions a medium, with intervals; stopped and started again as time allows.

    python tools/bench_compression.py measure --model model_cards/nano --data data/prepared --rows bench_rows
    python tools/bench_compression.py write --rows bench_rows --out docs/compression_bench.md

`measure` keeps a file for every row (a method, a share, a seed and a medium), with the score of each question, and goes
on with those that are missing: the baselines and the shares in the middle come first. Random pruning has five seeds.
`write` makes the table of what is there and a plot beside it. An interval is 95% over questions, by the bootstrap; the
change against the whole model is paired, question by question, and a method is below it where the interval is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from unimodal.compression import BASELINES, CompressionSession
from unimodal.evaluation.compression import (
    KEEPS,
    METHOD_NAMES,
    SEEDS,
    Questions,
    answer_blindly,
    answer_questions,
    ask_about_clips,
    ask_about_pictures,
    ask_about_speech,
    find_kind,
    make_timed_prompts,
)
from unimodal.evaluation.compression_table import COLOURS
from unimodal.evaluation.compression_timing import measure_times
from unimodal.evaluation.prepared import EVALUATION_STYLES, Clips, Pictures, Speech, sample
from unimodal.files import read_json_as, write_json, write_text_atomically
from unimodal.pipeline import Unimodal, load
from unimodal.pipeline.compression import compress

WHOLE, BLIND = "whole model", "blind"
MEDIA = ("picture", "clip", "speech")
DRAWS = 2_000  # of a bootstrap
ORDER = (0.25, 0.5, 0.125)  # of the shares


@dataclass(frozen=True)
class Row:
    """The scores of a method's answers to the questions of a medium, between 0 and 1."""

    method: str
    keep: float
    seed: int
    medium: str
    scores: list[float]

    @property
    def name(self) -> str:
        return name_row(self.method, self.keep, self.seed, self.medium)


@dataclass(frozen=True)
class Times:
    """Seconds, speed and memory of a method (`measure_times`)."""

    method: str
    keep: float
    figures: dict[str, float | None]


def name_row(method: str, keep: float, seed: int, medium: str) -> str:
    return f"{method.replace(' ', '-')}_{keep:g}_{seed}_{medium}.json"


# ---- measure


def list_configs() -> Iterator[tuple[str, float, int]]:
    """(method, share, seed), what a reader asks for first at the front."""
    assert set(ORDER) == set(KEEPS)
    yield WHOLE, 1.0, 0
    yield BLIND, 1.0, 0
    names = [*BASELINES, *(name for name in METHOD_NAMES if name not in BASELINES)]
    for keep in ORDER:
        for name in names:
            yield from ((name, keep, seed) for seed in range(SEEDS if name == "random" else 1))


def open_config(model: Unimodal, method: str, keep: float, seed: int) -> AbstractContextManager[object]:
    if method in (WHOLE, BLIND):
        return nullcontext()
    return compress(model, method, keep=keep, **({"seed": seed} if method == "random" else {}))


def ask_about(model: Unimodal, data: Path, medium: str, number: int, seed: int) -> Questions:
    """At least `number` questions, if there are so many. Raises ValueError for missing data."""
    if medium == "picture":
        pictures = Pictures.load(data)
        return ask_about_pictures(model, pictures, sample(pictures.find_rows(EVALUATION_STYLES, "train"), number, seed))
    if medium == "clip":
        return ask_about_clips(model, Clips.load(data), number, seed)
    return ask_about_speech(model, Speech.load(data), number, seed)


def measure(model: Unimodal, data: Path, rows: Path, media: tuple[str, ...], number: int, seed: int) -> None:
    """Measure every row that is missing."""
    rows.mkdir(parents=True, exist_ok=True)
    questions: dict[str, Questions] = {}
    for method, keep, own in list_configs():
        for medium in media:
            path = rows / name_row(method, keep, own, medium)
            if path.exists():
                continue
            if medium not in questions:
                questions[medium] = ask_about(model, data, medium, number, seed)
            asked = questions[medium]
            with open_config(model, method, keep, own):
                answers = (answer_blindly if method == BLIND else answer_questions)(model, asked, seed)
            row = Row(method, keep, own, medium, [asked.judge(answer, i) for i, answer in enumerate(answers)])
            write_json(path, asdict(row))
            print(f"{row.name}: {100 * fmean(row.scores):.1f} % of {len(row.scores)}", flush=True)
        times = rows / f"times_{method.replace(' ', '-')}_{keep:g}.json"
        if method != BLIND and own == 0 and not times.exists() and questions:
            prompts = make_timed_prompts(model, next(iter(questions.values())))
            with open_config(model, method, keep, own) as session:
                figures = measure_times(model, prompts, session if isinstance(session, CompressionSession) else None)
            write_json(times, asdict(Times(method, keep, figures)))


# ---- write


def bootstrap(scores: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of scores [N], in per cent."""
    draws = np.random.default_rng(0).integers(0, len(scores), (DRAWS, len(scores)))
    low, high = np.quantile(scores[draws].mean(1), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def read_scores(found: list[Row]) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """The scores of each question by (method, share) and medium, the mean over seeds."""
    grouped: dict[tuple[str, float], dict[str, list[list[float]]]] = {}
    for row in found:
        grouped.setdefault((row.method, row.keep), {}).setdefault(row.medium, []).append(row.scores)
    return {key: {medium: np.array(each).mean(0) for medium, each in media.items()} for key, media in grouped.items()}


def format_score(scores: np.ndarray | None, whole: np.ndarray | None) -> str:
    """The mean with its interval, and the change against the whole model with its own."""
    if scores is None:
        return "–"
    low, high = bootstrap(scores)
    told = f"{100 * scores.mean():.1f} ({low:.0f}–{high:.0f})"
    if whole is None or whole is scores or len(whole) != len(scores):
        return told
    change = scores - whole
    low, high = bootstrap(change)
    return f"{told}; {100 * change.mean():+.1f} ({low:+.0f} to {high:+.0f})"


def write(rows: Path, out: Path, title: str) -> None:
    found = [read_json_as(Row, path) for path in sorted(rows.glob("*.json")) if not path.name.startswith("times_")]
    timed = [read_json_as(Times, path) for path in sorted(rows.glob("times_*.json"))]
    if not found:
        raise ValueError(f"{rows} has no rows; measure some first")
    scores, times = read_scores(found), {(one.method, one.keep): one.figures for one in timed}
    order = list(dict.fromkeys((method, keep) for method, keep, _ in list_configs()))
    media = [medium for medium in MEDIA if any(medium in own for own in scores.values())]
    columns = {"ttft_ms_batch_1": "first token ms", "ttft_ms_batch_8": "… batch 8", "tokens_per_s_batch_1": "tokens/s",
               "memory_mib_batch_8": "peak MiB, batch 8"}  # fmt: skip
    heads = ["method", "kept", *(f"{medium} %; change" for medium in media), *columns.values(), "equal time"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in order:
        if key not in scores:
            continue
        cells = [format_score(scores[key].get(m), scores.get((WHOLE, 1.0), {}).get(m)) for m in media]
        figures = times.get(key, {})
        cells += ["–" if (value := figures.get(name)) is None else f"{value:.4g}" for name in columns]
        lines.append(f"| {key[0]} | {key[1]:g} | {' | '.join(cells)} | {find_as_fast(key, scores, times, media[0])} |")
    counts = ", ".join(f"{max(len(own[m]) for own in scores.values() if m in own)} about a {m}" for m in media)
    head = [
        f"# {title}", "",
        f"Questions: {counts}. In a cell: the mean score in per cent with its 95% interval, then the change against "
        "the whole model, paired by question, with its own. Random pruning is the mean of five seeds, once all are "
        "measured. Blind is the model asked without the medium. *Equal time* names the best baseline that reads a "
        "prompt at least as fast, by its score of the first medium. A row that is not here was not measured.", "",
        f"![Scores and their intervals]({out.stem}.svg)", "",
    ]  # fmt: skip
    command = "Made by `python tools/bench_compression.py write`; `measure` goes on with the rows that are missing."
    write_text_atomically(out, "\n".join([*head, *lines, "", command]) + "\n")
    write_text_atomically(out.with_suffix(".svg"), plot(scores, order, media[0]))


def find_as_fast(
    key: tuple[str, float],
    scores: dict[tuple[str, float], dict[str, np.ndarray]],
    times: dict[tuple[str, float], dict[str, float | None]],
    medium: str,
) -> str:
    """The baseline with the best score among those with no later first token, and that score."""
    own = times.get(key, {}).get("ttft_ms_batch_1")
    if own is None or key[0] in (*BASELINES, WHOLE):
        return "–"
    fast = [
        (100 * float(scores[other][medium].mean()), f"{other[0]} {other[1]:g}")
        for other in scores
        if other[0] in BASELINES and medium in scores[other]
        and (at := times.get(other, {}).get("ttft_ms_batch_1")) is not None and at <= own
    ]  # fmt: skip
    return "none" if not fast else "{1}: {0:.1f}".format(*max(fast))


def plot(scores: dict[tuple[str, float], dict[str, np.ndarray]], order: list[tuple[str, float]], medium: str) -> str:
    """The scores about a medium with their intervals, a line for each method and share, as SVG."""
    keys = [key for key in order if medium in scores.get(key, {})]
    left, width, step = 190, 520, 18
    height = 60 + step * len(keys)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height + 30}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{left + width + 60}" height="{height + 30}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14">Right answers about a {medium}, per cent, with 95% intervals</text>',
    ]
    for level in range(0, 101, 20):
        x = left + width * level / 100
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="34" y2="{height}" stroke="#e5e7eb"/>',
            f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{level}</text>',
        ]
    for number, key in enumerate(keys):
        own, y = scores[key][medium], 46 + step * number
        colour = "#111" if key[0] == BLIND else COLOURS[find_kind(key[0])]
        low, high = (left + width * end / 100 for end in bootstrap(own))
        x = left + width * float(own.mean())
        label = key[0] if key[1] == 1 else f"{key[0]}, {key[1]:g}"
        parts += [
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"/>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("measure", "write"))
    parser.add_argument("--rows", type=Path, required=True, help="the folder of what is measured")
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--media", default=",".join(MEDIA))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/compression_bench.md"))
    asked = parser.parse_args()
    if asked.work == "write":
        write(asked.rows, asked.out, f"Compression of {Path(asked.model).name}, with intervals")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure(load(asked.model), asked.data, asked.rows, tuple(asked.media.split(",")), asked.questions, asked.seed)


if __name__ == "__main__":
    main()
