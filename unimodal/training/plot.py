"""A plot of a run's losses from metrics.jsonl: a line for the loss, and one for each modality or block."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from unimodal.files import write_bytes_atomically

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 540, 70, 180, 20, 40
COLOURS = ("#222222", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
Points = list[tuple[float, float]]


def read_losses(metrics: Path) -> dict[str, Points]:
    """Name → [(step, loss)] of every loss in a metrics file: ``loss`` first, validation losses last."""
    series: dict[str, Points] = {}
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if "loss" in name and isinstance(value, (int, float)):
                series.setdefault(name, []).append((float(record["step"]), float(value)))
    return dict(sorted(series.items(), key=lambda item: (item[0] != "loss", item[0].startswith("validation"), item[0])))


def plot_losses(folder: Path, name: str = "loss.png") -> Path | None:
    """Draw ``folder/metrics.jsonl`` as ``folder/name``; return its path, or None if there is nothing to draw."""
    metrics = folder / "metrics.jsonl"
    series = read_losses(metrics) if metrics.exists() else {}
    if not series:
        return None
    from PIL import Image, ImageDraw

    steps = [x for points in series.values() for x, _ in points]
    values = [y for points in series.values() for _, y in points]
    low_x, high_x = min(steps), max(max(steps), min(steps) + 1)
    low_y, high_y = min(0.0, min(values)), max(values) or 1.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y or 1) * (HEIGHT - TOP - BOTTOM)

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i in range(6):
        value = low_y + (high_y - low_y) * i / 5
        y = place((low_x, value))[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill="#e5e5e5")
        draw.text((LEFT - 8, y), f"{value:.3g}", fill="#444444", anchor="rm")
        step = low_x + (high_x - low_x) * i / 5
        draw.text((place((step, low_y))[0], HEIGHT - BOTTOM + 8), f"{step:.0f}", fill="#444444", anchor="ma")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6), "step", fill="#444444", anchor="mb")
    for index, (label, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        _draw_line(draw, [place(point) for point in points], colour)
        draw.line([(WIDTH - RIGHT + 12, TOP + 18 * index + 6), (WIDTH - RIGHT + 32, TOP + 18 * index + 6)], fill=colour)
        draw.text((WIDTH - RIGHT + 38, TOP + 18 * index), f"{label} {points[-1][1]:.3g}", fill=colour)
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_bytes_atomically(folder / name, data.getvalue())
    return folder / name


def _draw_line(draw: object, points: Sequence[tuple[float, float]], colour: str) -> None:
    if len(points) == 1:
        x, y = points[0]
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)  # type: ignore[attr-defined]
    else:
        draw.line(points, fill=colour, width=2, joint="curve")  # type: ignore[attr-defined]
