"""Figures as a table for people and as JSON for the model card.

A report holds the model's name and hashes and the figures of each suite. Saving adds to a report of the same model, so
that a long evaluation can be interrupted and continued suite by suite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unimodal.files import atomic_write_text


def new_report(model_name: str, hashes: Mapping[str, str], seed: int, limit: int | None) -> dict[str, Any]:
    return {"model": model_name, "sha256": dict(hashes), "seed": seed, "limit": limit, "suites": {}}


def continue_report(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The report at `path` if it is of the same model, seed and limit, else the fresh one.

    Raises ValueError if the file holds something else, which is then left alone.
    """
    if not path.exists():
        return fresh
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        suites = found["suites"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} exists and is not a report; name another file with --out") from None
    same = all(found.get(key) == fresh[key] for key in ("sha256", "seed", "limit"))
    return {**fresh, "suites": suites} if same else fresh


def save_report(report: Mapping[str, Any], path: Path) -> None:
    atomic_write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def lines_of(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, figure) of every number, names of nested figures joined by dots; lists of examples are left out."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from lines_of(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:g}"
        elif not isinstance(value, list):
            yield f"{prefix}{name}", str(value)


def table(suite: str, figures: Mapping[str, Any]) -> str:
    """The figures of one suite in two columns under its name."""
    rows = list(lines_of(figures))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([suite, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])
