"""The compression suite's Markdown table, and a plot of accuracy against time (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, Required
from xml.sax.saxutils import escape

from typing_extensions import TypedDict  # pydantic reads reports with it; typing has the same from Python 3.12 on

COLUMNS = {
    "method": "method",
    "keep": "kept",
    "picture_percent": "picture %",
    "clip_percent": "clip %",
    "speech_percent": "speech words %",
    "same_answer_percent": "same answer %",
    "ttft_ms_batch_1": "first token ms",
    "ttft_ms_batch_8": "… batch 8",
    "planning_ms_batch_1": "of it scoring",
    "tokens_per_s_batch_1": "tokens/s",
    "tokens_per_s_batch_8": "… batch 8",
    "memory_mib_batch_8": "memory MiB",
    "noise_percent": "noise %",
    "attack_percent": "attack %",
    "kept_alike_percent": "kept alike %",
}
#: the kind of a row: the whole model, or how a method works
RowKind = Literal["whole", "baseline", "tokens", "cache"]
COLOURS: dict[RowKind, str] = {"whole": "#c0392b", "baseline": "#7f8c8d", "tokens": "#2563a8", "cache": "#d98c00"}
Percent = Literal["picture_percent", "clip_percent", "speech_percent"]
#: subject of the questions → name of the share of right answers
MEDIA: dict[str, Percent] = {"picture": "picture_percent", "clip": "clip_percent", "speech": "speech_percent"}
VISUAL = ("picture", "clip")  # the media of the timed prompts


class CompressionRow(TypedDict, total=False):
    """One method at one share of kept tokens. Shares in per cent; None if there is nothing to measure."""

    method: Required[str]
    keep: Required[float]
    kind: Required[RowKind]
    picture_percent: Required[float]
    picture_percent_range: list[float]  # least and most over the seeds of random pruning
    clip_percent: Required[float]
    speech_percent: Required[float]
    same_answer_percent: float
    tokens_left_percent: float | None
    ttft_ms_batch_1: Required[float]
    ttft_ms_batch_8: Required[float]
    planning_ms_batch_1: float | None
    tokens_per_s_batch_1: float
    tokens_per_s_batch_8: float
    memory_mib_batch_1: float
    memory_mib_batch_8: float
    noise_percent: float | None
    attack_percent: float | None
    kept_alike_percent: float | None


class CompressionFigures(TypedDict):
    """The figures of the suite. questions, blind, right_of_whole_model: by subject of the questions."""

    questions: dict[str, int]
    blind: dict[str, float]
    right_of_whole_model: dict[str, float]
    noise_std: float
    attack_most: float
    attack_queries: int
    timed_codes: int
    rows: list[CompressionRow]


def make_markdown(figures: CompressionFigures) -> str:
    """The table, with a row for each method and share; below it the blind model's figures and the verdicts."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    for row in figures["rows"]:
        lines.append("| " + " | ".join(_format_cell(row, name) for name in COLUMNS) + " |")
    counts, blind = figures["questions"], figures["blind"]
    asked = ", ".join(f"{counts[name]} about {name}" for name in MEDIA)
    alone = ", ".join(f"{name} {blind[name]:g} %" for name in MEDIA)
    timing = f"Times and memory are of prompts of {figures['timed_codes']} codes of clips"
    lines += [
        "",
        f"Questions: {asked}. Asked without the medium, the model is right on: {alone}.",
        f"{timing}; scoring is inside the time to the first token. FASA finds its frequencies on every prompt "
        "here, which costs more than it saves; as published they are found once (`FASA.calibrate`).",
        f"Attacked pixels differ by at most {figures['attack_most']:g}, the worst of {figures['attack_queries']} tries "
        "for the tokens kept; the whole model has the first of them. Methods that merge, or act on the cache, keep no "
        "set of tokens to attack.",
        "",
        *list_verdicts(figures["rows"]),
    ]
    return "\n".join(lines)


def list_verdicts(rows: Sequence[CompressionRow]) -> list[str]:
    """The table's answers to the two main questions: two lines, and an empty one between them."""
    whole = next(row for row in rows if row["kind"] == "whole")
    halving = [
        f"{row['method']} {row['keep']:g} ({whole['ttft_ms_batch_1'] / row['ttft_ms_batch_1']:.1f}×)"
        for row in rows
        if row["kind"] != "whole"
        and row["ttft_ms_batch_1"] <= whole["ttft_ms_batch_1"] / 2
        and average_accuracy(row, VISUAL) >= average_accuracy(whole, VISUAL) - 1
    ]
    baselines = {(row["method"], row["keep"]): average_accuracy(row) for row in rows if row["kind"] == "baseline"}
    losers = []
    for name in dict.fromkeys(row["method"] for row in rows if row["kind"] == "tokens"):
        beaten = [
            f"{row['keep']:g} by {' and '.join(better)}"
            for row in rows
            if row["method"] == name and (better := _find_better(row, baselines))
        ]
        if beaten:
            losers.append(f"{name} ({', '.join(beaten)})")
    return [
        f"First token in half the time, at most one point lost on pictures and clips: {', '.join(halving) or 'none'}.",
        "",
        f"Published methods that a baseline beats at equal tokens: {', '.join(losers) or 'none'}.",
    ]


def _find_better(row: CompressionRow, baselines: Mapping[tuple[str, float], float]) -> list[str]:
    """The baselines that are right more often at the same share. baselines: (method, share) → accuracy."""
    own = average_accuracy(row)
    return [name for name in ("random", "pooling", "downsample") if baselines.get((name, row["keep"]), -1.0) > own]


def _format_cell(row: CompressionRow, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if name == "picture_percent" and "picture_percent_range" in row:
        low, high = row["picture_percent_range"]
        return f"{value:g} ({low:g}–{high:g})"
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def average_accuracy(row: CompressionRow, media: Sequence[str] = tuple(MEDIA)) -> float:
    """The mean share of right answers over the media, in per cent."""
    return fmean(row[MEDIA[name]] for name in media)


def plot(figures: CompressionFigures, width: int = 900, height: int = 560) -> str:
    """A plot of mean accuracy against the time to the first token, as SVG; a line joins the shares of each method.

    width, height: in pixels.
    """
    rows = figures["rows"]
    left, right, top, bottom = 70, 150, 40, 60
    times = [row["ttft_ms_batch_8"] for row in rows]
    rights = [average_accuracy(row) for row in rows] + [fmean(figures["blind"][name] for name in MEDIA)]
    low_x, high_x = 0.95 * min(times), 1.05 * max(times)
    low_y, high_y = max(0.0, min(rights) - 3), min(100.0, max(rights) + 3)

    def place_x(value: float) -> float:
        return left + (value - low_x) / (high_x - low_x) * (width - left - right)

    def place_y(value: float) -> float:
        return height - bottom - (value - low_y) / max(high_y - low_y, 1e-9) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">Right answers (mean of media) against time to the first token</text>',
    ]
    for step in range(5):
        at, level = low_x + (high_x - low_x) * step / 4, low_y + (high_y - low_y) * step / 4
        parts += [
            f'<line x1="{place_x(at):.1f}" x2="{place_x(at):.1f}" y1="{top}" y2="{height - bottom}" stroke="#e5e7eb"/>',
            f'<line x1="{left}" x2="{width - right}" y1="{place_y(level):.1f}" y2="{place_y(level):.1f}" '
            'stroke="#e5e7eb"/>',
            f'<text x="{place_x(at):.1f}" y="{height - bottom + 16}" text-anchor="middle">{at:.3g}</text>',
            f'<text x="{left - 8}" y="{place_y(level) + 4:.1f}" text-anchor="end">{level:.3g}</text>',
        ]
    blind = place_y(rights[-1])
    parts += [
        f'<text x="{(left + width - right) / 2}" y="{height - 20}" text-anchor="middle">ms, 8 clip prompts</text>',
        f'<text x="18" y="{height / 2}" transform="rotate(-90 18 {height / 2})" text-anchor="middle">per cent</text>',
        f'<line x1="{left}" x2="{width - right}" y1="{blind:.1f}" y2="{blind:.1f}" stroke="#111"'
        ' stroke-dasharray="4"/>',
        f'<text x="{left + 4}" y="{blind - 4:.1f}">blind</text>',
    ]
    by_method: dict[str, list[CompressionRow]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    for name, own in by_method.items():
        colour = COLOURS[own[0]["kind"]]
        points = [(place_x(row["ttft_ms_batch_8"]), place_y(average_accuracy(row)), row) for row in own]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.35"/>')
        for a, b, row in points:
            title = escape(
                f"{name}, {row['keep']:g} kept: {average_accuracy(row):.1f} %, {row['ttft_ms_batch_8']:.1f} ms"
            )
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>')
        a, b, _ = points[-1]
        parts.append(f'<text x="{a + 5:.1f}" y="{b + 4:.1f}" font-size="9" fill="{colour}">{escape(name)}</text>')
    for line, (kind, colour) in enumerate(COLOURS.items()):
        parts += [
            f'<circle cx="{width - right + 20}" cy="{top + 10 + 18 * line}" r="4" fill="{colour}"/>',
            f'<text x="{width - right + 30}" y="{top + 14 + 18 * line}">{kind}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
