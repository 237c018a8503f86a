"""Figures as a table for people and as JSON for the model card.

A report holds the model's name and hashes and the figures of each suite. Saving adds to a report of the same model, so
that a long evaluation can be interrupted and continued suite by suite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path

from unimodal.files import read_json_as, write_json


@dataclass
class EvaluationReport:
    """The report of a model. sha256: of its weights and tokenizers. limit: items of a suite at most, None for no limit.

    suites: the figures by name of the suite.
    """

    model: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    _: KW_ONLY
    suites: dict[str, dict[str, object]]


def continue_report(path: Path, fresh: EvaluationReport) -> EvaluationReport:
    """The report at `path` if it is of the same weights, seed and limit, else the fresh one.

    Raises ValueError if the file holds something else, which is then left alone.
    """
    if not path.exists():
        return fresh
    try:
        found = read_json_as(EvaluationReport, path)
    except ValueError:
        raise ValueError(f"{path} exists and is not a report; name another file with --out") from None
    is_same = (found.sha256, found.seed, found.limit) == (fresh.sha256, fresh.seed, fresh.limit)
    return replace(fresh, suites=found.suites) if is_same else fresh


def save_report(report: EvaluationReport, path: Path) -> None:
    write_json(path, asdict(report))


def list_lines(figures: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, figure) of every number, names of nested figures joined by dots; lists of examples are left out."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from list_lines(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:g}"
        elif not isinstance(value, list):
            yield f"{prefix}{name}", str(value)


def make_table(suite: str, figures: Mapping[str, object]) -> str:
    """The figures of one suite in two columns under its name."""
    rows = list(list_lines(figures))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([suite, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])
