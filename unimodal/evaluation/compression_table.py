"""The compression suite for people: a Markdown table, and accuracy against time as a picture (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any
from xml.sax.saxutils import escape

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
COLOURS = {"whole": "#c0392b", "baseline": "#7f8c8d", "tokens": "#2563a8", "cache": "#d98c00"}
MEDIA = ("picture", "clip", "speech")
VISUAL = ("picture", "clip")  # of the prompts that are timed


def markdown(figures: Mapping[str, Any]) -> str:
    """A row for each method and share; what a blind model answers stands below."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    for row in figures["rows"]:
        lines.append("| " + " | ".join(_cell(row, name) for name in COLUMNS) + " |")
    counts, blind = figures["questions"], figures["blind"]
    asked = ", ".join(f"{counts[name]} about {name}" for name in MEDIA)
    alone = ", ".join(f"{name} {blind[name]:g} %" for name in MEDIA)
    timing = f"Times and memory are of prompts of {figures['timed_codes']} codes of clips"
    lines += [
        "",
        f"Questions: {asked}. Asked without the medium, the model is right on: {alone}.",
        f"{timing}; scoring is inside the time to the first token.",
        f"Attacked pixels differ by at most {figures['attack_most']:g}, the worst of {figures['attack_queries']} tries "
        "for the tokens kept; the whole model has the first of them. Methods that merge, or act on the cache, keep no "
        "set of tokens to attack.",
        "",
        *verdicts(figures),
    ]
    return "\n".join(lines)


def verdicts(figures: Mapping[str, Any]) -> list[str]:
    """What the table says of the two questions that are asked first, in two lines."""
    rows = figures["rows"]
    whole = next(row for row in rows if row["kind"] == "whole")
    halving = [
        f"{row['method']} {row['keep']:g} ({whole['ttft_ms_batch_1'] / row['ttft_ms_batch_1']:.1f}×)"
        for row in rows
        if row["kind"] != "whole"
        and row["ttft_ms_batch_1"] <= whole["ttft_ms_batch_1"] / 2
        and accuracy(row, VISUAL) >= accuracy(whole, VISUAL) - 1
    ]
    baselines = {(row["method"], row["keep"]): accuracy(row) for row in rows if row["kind"] == "baseline"}
    losers = []
    for name in dict.fromkeys(row["method"] for row in rows if row["kind"] == "tokens"):
        beaten = [
            f"{row['keep']:g} by {' and '.join(better)}"
            for row in rows
            if row["method"] == name
            and (better := [b for b in ("random", "pooling") if baselines.get((b, row["keep"]), -1.0) > accuracy(row)])
        ]
        if beaten:
            losers.append(f"{name} ({', '.join(beaten)})")
    return [
        f"First token in half the time, at most one point lost on pictures and clips: {', '.join(halving) or 'none'}.",
        "",
        f"Published methods that a baseline beats at equal tokens: {', '.join(losers) or 'none'}.",
    ]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if name == "picture_percent" and "picture_percent_range" in row:
        low, high = row["picture_percent_range"]
        return f"{value:g} ({low:g}–{high:g})"
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def accuracy(row: Mapping[str, Any], media: Sequence[str] = MEDIA) -> float:
    """The mean over the media, per cent."""
    return fmean(row[f"{name}_percent"] for name in media)


def plot(figures: Mapping[str, Any], width: int = 900, height: int = 560) -> str:
    """Mean accuracy against the time to the first token; the shares of one method are joined by a line."""
    rows = figures["rows"]
    left, right, top, bottom = 70, 150, 40, 60
    times = [row["ttft_ms_batch_8"] for row in rows]
    rights = [accuracy(row) for row in rows] + [fmean(figures["blind"][name] for name in MEDIA)]
    low_x, high_x = 0.95 * min(times), 1.05 * max(times)
    low_y, high_y = max(0.0, min(rights) - 3), min(100.0, max(rights) + 3)

    def x(value: float) -> float:
        return left + (value - low_x) / (high_x - low_x) * (width - left - right)

    def y(value: float) -> float:
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
            f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top}" y2="{height - bottom}" stroke="#e5e7eb"/>',
            f'<line x1="{left}" x2="{width - right}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#e5e7eb"/>',
            f'<text x="{x(at):.1f}" y="{height - bottom + 16}" text-anchor="middle">{at:.3g}</text>',
            f'<text x="{left - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.3g}</text>',
        ]
    blind = y(rights[-1])
    parts += [
        f'<text x="{(left + width - right) / 2}" y="{height - 20}" text-anchor="middle">ms, 8 clip prompts</text>',
        f'<text x="18" y="{height / 2}" transform="rotate(-90 18 {height / 2})" text-anchor="middle">per cent</text>',
        f'<line x1="{left}" x2="{width - right}" y1="{blind:.1f}" y2="{blind:.1f}" stroke="#111"'
        ' stroke-dasharray="4"/>',
        f'<text x="{left + 4}" y="{blind - 4:.1f}">blind</text>',
    ]
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    for name, own in by_method.items():
        colour = COLOURS[own[0]["kind"]]
        points = [(x(row["ttft_ms_batch_8"]), y(accuracy(row)), row) for row in own]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.35"/>')
        for a, b, row in points:
            title = escape(f"{name}, {row['keep']:g} kept: {accuracy(row):.1f} %, {row['ttft_ms_batch_8']:.1f} ms")
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>')
        a, b, _ = points[-1]
        parts.append(f'<text x="{a + 5:.1f}" y="{b + 4:.1f}" font-size="9" fill="{colour}">{escape(name)}</text>')
    for line, (kind, colour) in enumerate(COLOURS.items()):
        parts += [
            f'<circle cx="{width - right + 20}" cy="{top + 10 + 18 * line}" r="4" fill="{colour}"/>',
            f'<text x="{width - right + 30}" y="{top + 14 + 18 * line}">{kind}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
