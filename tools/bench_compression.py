"""Compression on at least 200 held-out questions a medium, with intervals; stopped and started again as time allows.

    python tools/bench_compression.py measure --model model_cards/nano --data data/prepared --rows bench_rows
    python tools/bench_compression.py time --model model_cards/nano --data data/prepared --rows bench_rows
    python tools/bench_compression.py write --rows bench_rows --out docs/compression_bench.md

`measure` keeps a file for every row (a method, a share, a seed and a medium) in a folder of the model's name, with the
score of each question, and goes on with those that are missing (released models' are in docs/comparison/compression):
the baselines and the shares in the middle come first. Random pruning has five seeds. Media are `picture`, `clip`,
`speech`, `seen_clip` (clips that were trained on, since few were not), and of scenes that have several questions each
`scene`, where every question is asked with the picture, and `later`, where it comes behind the first one's turn
(`several_questions.py`). `time` reads prompts of 512 codes by the whole model and by a method in turns, so that a busy
machine slows both, and counts the peak of held memory, scoring included, and what the cache holds. `write` makes for
every model the table of what is there, its verdicts and a plot. An interval is 95% over questions, or over pictures
where several are about one, by the bootstrap; the change against the whole model is paired, question by question, and a
method is below it where the interval is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from unimodal.compression import BASELINES, METHODS
from unimodal.compression.trained import load_compressor
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
from unimodal.evaluation.compression_timing import FirstToken, compare_first_token, measure_memory
from unimodal.evaluation.prepared import EVALUATION_STYLES, Clips, Pictures, Speech, sample
from unimodal.evaluation.several_questions import SeveralQuestions
from unimodal.files import read_json_as, write_json, write_text_atomically
from unimodal.pipeline import Unimodal, load
from unimodal.pipeline.compression import compress
from unimodal.training.identity import hash_weights

WHOLE, BLIND = "whole model", "blind"
MEDIA = ("picture", "clip", "speech")
SEEN = "seen_clip"
SEVERAL = ("scene", "later")  # several questions on one picture
ALL_MEDIA = ("picture", "clip", SEEN, "speech", *SEVERAL)
NAME_TOKENS = 32  # the most of an answer that is a name or a few words; one that goes on is not right any more
DRAWS = 2_000  # of a bootstrap
ORDER = (0.25, 0.5, 0.125)  # of the shares


@dataclass(frozen=True)
class Row:
    """The scores of a method's answers to the questions of a medium, between 0 and 1. groups: of each question, what it
    is about, where several are about one thing; empty where each has its own."""

    method: str
    keep: float
    seed: int
    medium: str
    scores: list[float]
    groups: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return name_row(self.method, self.keep, self.seed, self.medium)


@dataclass(frozen=True)
class Times:
    """Of a method: its first token and its cache beside the whole model's, and the peak of held memory, batch 8."""

    method: str
    keep: float
    first: FirstToken
    memory_mib: float


def name_row(method: str, keep: float, seed: int, medium: str) -> str:
    return f"{method.replace(' ', '-')}_{keep:g}_{seed}_{medium}.json"


# ---- measure


def list_configs(methods: Sequence[str] = (), keeps: Sequence[float] = ORDER) -> Iterator[tuple[str, float, int]]:
    """(method, share, seed), what a reader asks for first at the front. methods: by default all; the whole model and
    the blind one always come first."""
    assert set(ORDER) == set(KEEPS)
    yield WHOLE, 1.0, 0
    yield BLIND, 1.0, 0
    names = methods or [*BASELINES, *(name for name in METHOD_NAMES if name not in BASELINES)]
    for keep in keeps:
        for name in names:
            yield from ((name, keep, seed) for seed in range(SEEDS if name == "random" else 1))


def open_config(
    model: Unimodal, trained: Path | None, method: str, keep: float, seed: int
) -> AbstractContextManager[object]:
    """The context of a row. trained: where the folder of a method with a learned part lies."""
    if method in (WHOLE, BLIND):
        return nullcontext()
    if METHODS[method].is_learned:
        assert trained is not None
        return load_compressor(trained / method, keep)(model)
    return compress(model, method, keep=keep, **({"seed": seed} if method == "random" else {}))


def ask_about(model: Unimodal, data: Path, medium: str, number: int, seed: int) -> Questions:
    """At least `number` questions, if there are so many. Raises ValueError for missing data."""
    if medium == "picture":
        pictures = Pictures.load(data)
        return ask_about_pictures(model, pictures, sample(pictures.find_rows(EVALUATION_STYLES, "train"), number, seed))
    if medium in ("clip", SEEN):
        return ask_about_clips(model, Clips.load(data), number, seed, "train" if medium == SEEN else "heldout")
    return ask_about_speech(model, Speech.load(data), number, seed)


def make_folder(model: Unimodal, asked: argparse.Namespace) -> Path:
    """The folder of the model's rows, which is made. ValueError if its rows are of other weights or questions."""
    folder = Path(asked.rows, Path(asked.model).name)
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "measured.txt"
    own = f"weights {hash_weights(model.engine.model)}, {asked.questions} questions, seed {asked.seed}\n"
    if told.is_file() and told.read_text("utf-8") != own:
        raise ValueError(f"the rows in {folder} are of {told.read_text('utf-8').strip()}, not of {own.strip()}; "
                         "name another folder for --rows")  # fmt: skip
    write_text_atomically(told, own)
    return folder


def measure(model: Unimodal, asked: argparse.Namespace) -> None:
    """Measure every row that is missing."""
    rows = make_folder(model, asked)
    questions: dict[str, Questions | SeveralQuestions] = {}
    for method, keep, own in list_configs(asked.methods, asked.keeps):
        for medium in asked.media:
            path = rows / name_row(method, keep, own, medium)
            if path.exists():
                continue
            kind = "scene" if medium in SEVERAL else medium
            if kind not in questions and kind == "scene":
                questions[kind] = SeveralQuestions.load(model, asked.data, asked.questions, asked.seed)
            elif kind not in questions:
                questions[kind] = ask_about(model, asked.data, medium, asked.questions, asked.seed)
            begin = time.perf_counter()
            with open_config(model, asked.trained, method, keep, own):
                scores, groups = score(model, questions[kind], medium, method == BLIND, asked.seed)
            row = Row(method, keep, own, medium, scores, groups)
            write_json(path, asdict(row))
            spent = time.perf_counter() - begin
            print(f"{row.name}: {100 * fmean(row.scores):.1f} % of {len(row.scores)}, {spent:.0f} s", flush=True)


def score(
    model: Unimodal, asked: Questions | SeveralQuestions, medium: str, blind: bool, seed: int
) -> tuple[list[float], list[int]]:
    """The score of each answer, and the picture that each question is about, where several are about one."""
    if isinstance(asked, SeveralQuestions):
        later = medium == "later" and not blind
        answers = asked.answer_later(model) if later else asked.answer_alone(model, seed, blind)
        return asked.judge(answers), asked.groups
    tokens = None if medium == "speech" else NAME_TOKENS
    answers = (answer_blindly if blind else answer_questions)(model, asked, seed, tokens)
    return [asked.judge(answer, number) for number, answer in enumerate(answers)], []


def measure_time(model: Unimodal, asked: argparse.Namespace) -> None:
    """Measure the times and the memory of every method and share that has none yet; of the whole model beside itself,
    too."""
    rows = make_folder(model, asked)
    prompts = None
    for method, keep, own in list_configs(asked.methods, asked.keeps):
        path = rows / f"times_{method.replace(' ', '-')}_{keep:g}.json"
        if method == BLIND or own or path.exists():
            continue
        if prompts is None:
            prompts = make_timed_prompts(model, ask_about(model, asked.data, asked.media[0], 16, asked.seed))
        first = compare_first_token(
            model, prompts, partial(open_config, model, asked.trained, method, keep, own), asked.rounds
        )
        with open_config(model, asked.trained, method, keep, own):
            memory = measure_memory(model, prompts)
        write_json(path, asdict(Times(method, keep, first, memory)))
        print(f"{path.stem}: first token × {first.wall:.2f}, cache × {first.cache:.2f}, {memory:.0f} MiB", flush=True)


# ---- write


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of each question, [N], the mean over seeds, and what each is about, int64 [N]."""

    each: np.ndarray
    groups: np.ndarray

    @property
    def percent(self) -> float:
        return 100 * float(self.each.mean())

    def compare(self, other: Scores) -> Scores:
        """The change from others, question by question."""
        return Scores(self.each - other.each, self.groups)

    def find_interval(self) -> tuple[float, float]:
        """The 95% interval of the mean, in per cent."""
        sums = np.bincount(self.groups, self.each)
        counts = np.bincount(self.groups)
        draws = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
        low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), (0.025, 0.975))
        return 100 * float(low), 100 * float(high)


Key = tuple[str, float]  # a method and a share
AllScores = dict[Key, dict[str, Scores]]  # by medium


def read_scores(found: list[Row]) -> AllScores:
    """The scores of each question by (method, share) and medium, the mean over seeds."""
    grouped: dict[Key, dict[str, list[Row]]] = {}
    for row in found:
        grouped.setdefault((row.method, row.keep), {}).setdefault(row.medium, []).append(row)
    return {
        key: {
            medium: Scores(
                np.array([row.scores for row in rows]).mean(0), np.array(rows[0].groups or range(len(rows[0].scores)))
            )
            for medium, rows in media.items()
        }
        for key, media in grouped.items()
    }


def format_score(scores: Scores | None, whole: Scores | None) -> str:
    """The mean with its interval, and the change against the whole model with its own."""
    if scores is None:
        return "–"
    low, high = scores.find_interval()
    told = f"{scores.percent:.1f} ({low:.0f}–{high:.0f})"
    if whole is None or whole is scores or len(whole.each) != len(scores.each):
        return told
    return f"{told}; {format_change(scores.compare(whole))}"


def format_change(change: Scores) -> str:
    low, high = change.find_interval()
    return f"{change.percent:+.1f} ({low:+.0f} to {high:+.0f})"


INTRODUCTION = (
    "In a cell: the mean score in per cent with its 95% interval, then the change against the whole model, paired by "
    "question, with its own. Random pruning is the mean of five seeds, once all are measured. Blind is the model "
    "asked without the medium. Each question about a *scene* is asked with the picture; *later* is the same question "
    "behind what reading the picture with another one left. *First token* (by the clock), *processor* (its processor "
    "time), *step* (of each further token) and *cache* (bytes behind the prompt) are against the whole model's own "
    "forward, of prompts of 512 codes, one at a time, in turns, scoring inside; the whole model is timed beside "
    "itself. *Peak*: what reading 8 of them at once and writing 8 tokens holds beside the weights. *Equal time* names "
    "the best baseline that reads a prompt at least as fast, by its score of the first medium. A row or a cell that "
    "is not here was not measured."
)
HEADS = ("first token ×", "processor ×", "step ×", "cache ×", "peak MiB, batch 8", "equal time")


def write(rows: Path, out: Path) -> None:
    """The page with a section and a plot for every model. ValueError where nothing was measured."""
    folders = [folder for folder in sorted(rows.glob("*")) if folder.is_dir() and any(folder.glob("[!t]*.json"))]
    if not folders:
        raise ValueError(f"{rows} has no rows; measure some first")
    lines = ["# Compression, with intervals", "", INTRODUCTION, ""]
    for folder in folders:
        picture = out.with_name(f"{out.stem}_{folder.name}.svg")
        table, drawn = make_section(folder)
        lines += [f"## {folder.name}", "", f"![Scores and their intervals]({picture.name})", "", *table, ""]
        write_text_atomically(picture, drawn)
    lines.append("Made by `python tools/bench_compression.py write`; `measure` and `time` go on with what is missing.")
    write_text_atomically(out, "\n".join(lines) + "\n")


def make_section(folder: Path) -> tuple[list[str], str]:
    """The table and the verdicts of a model's rows, and the plot."""
    found = [read_json_as(Row, path) for path in sorted(folder.glob("*.json")) if not path.name.startswith("times_")]
    timed = [read_json_as(Times, path) for path in sorted(folder.glob("times_*.json"))]
    scores, times = read_scores(found), {(one.method, one.keep): one for one in timed}
    order = [key for key in dict.fromkeys((method, keep) for method, keep, _ in list_configs()) if key in scores]
    order += sorted(scores.keys() - set(order))
    media = [medium for medium in ALL_MEDIA if any(medium in own for own in scores.values())]
    counts = ", ".join(f"{max(len(own[m].each) for own in scores.values() if m in own)} ({m})" for m in media)
    heads = ["method", "kept", *(f"{medium} %; change" for medium in media), *HEADS]
    lines = [f"Questions: {counts}.", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in order:
        cells = [format_score(scores[key].get(m), scores.get((WHOLE, 1.0), {}).get(m)) for m in media]
        cells += format_times(times.get(key))
        lines.append(f"| {key[0]} | {key[1]:g} | {' | '.join(cells)} | {find_as_fast(key, scores, times, media[0])} |")
    if taught := sorted({key[0] for key in order if key[0] in METHODS and METHODS[key[0]].is_learned}):
        lines += ["", f"Taught by `python tools/train_compressors.py`, some minutes each: {', '.join(taught)}."]
    lines += ["", *list_verdicts(scores, times, media)]
    return lines, plot(scores, order, media)


def format_times(own: Times | None) -> list[str]:
    """The cells of the first token's time to the peak of memory."""
    if own is None:
        return ["–"] * 5
    first = own.first
    return [f"{each:.2f}" for each in (first.wall, first.processor, first.step, first.cache)] + [
        f"{own.memory_mib:.4g}"
    ]


def find_as_fast(key: Key, scores: AllScores, times: dict[Key, Times], medium: str) -> str:
    """The baseline with the best score among those with no later first token, and that score."""
    if key not in times or key[0] in (*BASELINES, WHOLE):
        return "–"
    own = times[key].first.wall
    fast = [
        (scores[other][medium].percent, f"{other[0]} {other[1]:g}")
        for other in scores
        if other[0] in BASELINES and medium in scores[other] and other in times and times[other].first.wall <= own
    ]
    return "none" if not fast else "{1}: {0:.1f}".format(*max(fast))


def list_verdicts(scores: AllScores, times: dict[Key, Times], media: Sequence[str]) -> list[str]:
    """What halves the first token or quarters the cache at one point or less, and what loses to a baseline."""
    lines = []
    whole = scores.get((WHOLE, 1.0), {})
    for what, name, most in (
        ("First token in half the time", "wall", 0.5),
        ("A quarter of the cache", "cache", 0.25),
    ):
        told = []
        for key, own in scores.items():
            if key not in times or getattr(times[key].first, name) > most or key[0] == WHOLE:
                continue
            changes = {m: own[m].compare(whole[m]) for m in media if m in own and m in whole}
            if changes and all(change.percent >= -1 for change in changes.values()):
                said = ", ".join(f"{m} {format_change(change)}" for m, change in changes.items())
                told.append(f"{key[0]} {key[1]:g} (× {getattr(times[key].first, name):.2f}; {said})")
        if any(key in times for key in scores if key[0] != WHOLE):
            lines += [f"{what}, at most one point lost in the mean: {'; '.join(told) or 'none'}.", ""]
    for baseline in ("random", "pooling", "downsample"):
        losers, beaten, level = [], [], []
        for key, own in scores.items():
            other = scores.get((baseline, key[1]), {})
            if key[0] in (*BASELINES, WHOLE, BLIND) or find_kind(key[0]) != "tokens":
                continue
            for medium in media:
                if medium in own and medium in other:
                    low, high = own[medium].compare(other[medium]).find_interval()
                    told = losers if high < 0 else beaten if low > 0 else level
                    told.append(f"{key[0]} {key[1]:g} ({medium})")
        lines += [] if not losers + beaten + level else [
            f"Methods on tokens below {baseline} at equal tokens, by the interval of the paired difference: "
            f"{', '.join(losers) or 'none'}; above it {len(beaten)} rows; not told apart from it: "
            f"{', '.join(level) or 'none'}.", "",
        ]  # fmt: skip
    return [*lines, *list_late_losers(scores)][:-1]


def list_late_losers(scores: AllScores) -> list[str]:
    """Which methods are worse off with a later question than with one that was there when the picture was read."""
    whole = scores.get((WHOLE, 1.0), {})
    if not all(kind in whole for kind in SEVERAL):
        return []
    told = []
    for key, own in scores.items():
        if key[0] in (WHOLE, BLIND) or not all(kind in own for kind in SEVERAL):
            continue
        lost = own["later"].compare(own["scene"]).compare(whole["later"].compare(whole["scene"]))
        told += [f"{key[0]} {key[1]:g} ({format_change(lost)})"] if lost.find_interval()[1] < 0 else []
    return [
        "Methods that lose more with a later question than with one that stands beside the picture, beyond what the "
        f"whole model does, by the interval: {', '.join(told) or 'none'}.", "",
    ]  # fmt: skip


def plot(scores: AllScores, order: Sequence[Key], media: Sequence[str]) -> str:
    """The scores about each medium with their intervals, a line for each method and share, as SVG."""
    keys = [key for key in order if any(medium in scores[key] for medium in media)]
    left, gap, step = 170, 24, 16
    width = max(200, 620 // len(media))
    height, whole_width = 52 + step * len(keys), left + (width + gap) * len(media) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole_width} {height + 28}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{whole_width}" height="{height + 28}" fill="white"/>',
    ]
    for place, medium in enumerate(media):
        begin = left + (width + gap) * place
        parts.append(f'<text x="{begin}" y="20" font-size="13">{medium}: right, per cent</text>')
        for level in range(0, 101, 20):
            x = begin + width * level / 100
            parts += [
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{height}" stroke="#e5e7eb"/>',
                f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{level}</text>',
            ]
        for number, key in enumerate(keys):
            if medium not in scores[key]:
                continue
            own, y = scores[key][medium], 42 + step * number
            colour = "#111" if key[0] == BLIND else COLOURS[find_kind(key[0])]
            low, high = (begin + width * end / 100 for end in own.find_interval())
            x = begin + width * own.percent / 100
            parts += [
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
                f'<circle cx="{x:.1f}" cy="{y}" r="3.5" fill="{colour}"/>',
            ]
    for number, key in enumerate(keys):
        label = key[0] if key[1] == 1 else f"{key[0]}, {key[1]:g}"
        parts.append(f'<text x="{left - 8}" y="{46 + step * number}" text-anchor="end">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def read_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("measure", "time", "write"))
    parser.add_argument("--rows", type=Path, required=True, help="the folder of what is measured")
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--media", type=read_names, default=MEDIA, help=f"of {', '.join(ALL_MEDIA)}")
    parser.add_argument("--methods", type=read_names, default=(), help="by default every one that needs no training")
    parser.add_argument("--trained", type=Path, help="what tools/train_compressors.py wrote, for methods that learn")
    parser.add_argument("--keeps", type=lambda text: tuple(map(float, read_names(text))), default=ORDER)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timed runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/compression_bench.md"))
    asked = parser.parse_args(arguments)
    learned = (
        [] if asked.trained is None else [path.name for path in sorted(asked.trained.glob("*")) if path.name in METHODS]
    )
    for name, given, known in (
        ("media", asked.media, ALL_MEDIA),
        ("methods", asked.methods, [*METHOD_NAMES, *learned]),
    ):
        if unknown := [one for one in given if one not in known]:
            parser.error(f"--{name} {unknown[0]}: choose from {', '.join(known)}")
    if not all(0 < keep < 1 for keep in asked.keeps) or min(asked.questions, asked.rounds, len(asked.media)) < 1:
        parser.error("--keeps are shares between 0 and 1; --questions and --rounds at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if asked.work == "write":
            write(asked.rows, asked.out)
        else:
            (measure if asked.work == "measure" else measure_time)(load(asked.model), asked)
    except ValueError as error:
        print(f"bench_compression: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
