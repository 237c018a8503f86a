"""Figures as a table on the screen and as JSON for the model card.

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
    """The report of a model.

    sha256: by file or tokenizer. limit: the most items of a suite; None for each suite's own. compress: the methods
    that shortened what the model read; "" for none. suites: name of a suite → its figures.
    """

    model: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    compress: str = ""
    _: KW_ONLY
    suites: dict[str, dict[str, object]]

    def find_figure(self, *path: str) -> float | None:
        """A number by its suite and the names inside it: `find_figure("picture_naming", "seen", "right_percent")`.

        None where the suite was not run or has no such number.
        """
        value: object = self.suites
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def list_groups(self, suite: str) -> dict[str, dict[str, float]]:
        """The figures that a suite has of each of its groups (voices, codecs, splits): group → name → number."""
        return {
            group: {name: number for name, number in figures.items() if isinstance(number, int | float)}
            for group, figures in self.suites.get(suite, {}).items()
            if isinstance(figures, dict)
        }


def continue_report(path: Path, fresh: EvaluationReport) -> EvaluationReport:
    """The report at `path` if it has the weights, seed, limit and compression of the fresh one, else the fresh one.

    Raises ValueError if the file holds something else; it is not changed then.
    """
    if not path.exists():
        return fresh
    try:
        found = read_json_as(EvaluationReport, path)
    except ValueError:
        raise ValueError(f"{path} exists and is not a report; name another file with --out") from None
    is_same = all(vars(found)[name] == vars(fresh)[name] for name in ("sha256", "seed", "limit", "compress"))
    return replace(fresh, suites=found.suites) if is_same else fresh


def save_report(report: EvaluationReport, path: Path) -> None:
    write_json(path, asdict(report))


def list_lines(figures: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, figure) of every number, without lists of examples; names of nested figures are joined by dots."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from list_lines(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:g}"
        elif not isinstance(value, list):
            yield f"{prefix}{name}", str(value)


def make_table(suite: str, figures: Mapping[str, object]) -> str:
    """A table of one suite's figures: its name, and below it two columns."""
    rows = list(list_lines(figures))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([suite, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])
