"""Metrics of a run: JSON objects, one a line, each with the means since the line before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

Sums = dict[str, tuple[float, float]]  # name → (sum, count)


def add_sums(into: Sums, values: Mapping[str, tuple[float, float]]) -> Sums:
    for name, (total, count) in values.items():
        old_total, old_count = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_count + count)
    return into


def compute_means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in sums.items() if count}


class MetricsLog:
    """Collects sums and counts per step and writes their means to ``metrics.jsonl``."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._sums: Sums = {}

    def add(self, values: Mapping[str, float | tuple[float, float]]) -> None:
        """Add a step's numbers: a pair is a sum and its count (of tokens, say), a plain number counts once."""
        add_sums(self._sums, {n: v if isinstance(v, tuple) else (v, 1.0) for n, v in values.items()})

    def take(self) -> Sums:
        """Return what was added since the last call, and begin anew."""
        taken, self._sums = self._sums, {}
        return taken

    def write(self, parts: Iterable[Sums], **fields: float) -> dict[str, float]:
        """Write one line of ``fields`` and the means over all ``parts`` (one a rank); return its content."""
        total: Sums = {}
        for part in parts:
            add_sums(total, part)
        record = {**fields, **{name: round(value, 6) for name, value in compute_means(total).items()}}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def flush(self, **fields: float) -> dict[str, float]:
        """``write`` of this process's own sums."""
        return self.write([self.take()], **fields)

    def cut_after(self, step: int) -> None:
        """Remove lines past ``step``: a resumed run writes them again."""
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text().splitlines() if json.loads(line).get("step", 0) <= step]
        self.path.write_text("".join(line + "\n" for line in lines))
