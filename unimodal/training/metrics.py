"""Metrics of a run: one JSON object a line, always; a mean over the steps since the last line."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


class MetricsLog:
    """Collects scalars per step and writes their means to ``metrics.jsonl``."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        return {name: self._sums[name] / self._counts[name] for name in self._sums}

    def flush(self, **fields: Any) -> dict[str, Any]:
        """Writes one line of ``fields`` and the means, clears the sums, and returns what it wrote."""
        record = {**fields, **{name: round(value, 6) for name, value in self.means().items()}}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        self._sums.clear()
        self._counts.clear()
        return record

    def cut_after(self, step: int) -> None:
        """Drops lines past ``step``: a resumed run does not leave lines of steps that are done again."""
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text().splitlines() if json.loads(line).get("step", 0) <= step]
        self.path.write_text("".join(line + "\n" for line in lines))
