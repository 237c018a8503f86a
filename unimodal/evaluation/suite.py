"""What a suite is: a run that gives figures of a model, and how people are shown them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from unimodal.evaluation.report import make_table
from unimodal.pipeline import Unimodal

#: is told what is being done, how far it is, and of how many
ReportProgress: TypeAlias = Callable[[str, int, int | None], None]

#: what a suite found: numbers under their names, nested where they belong together, and lists of examples
FiguresT = TypeVar("FiguresT", bound=Mapping[str, object])
FiguresT_co = TypeVar("FiguresT_co", bound=Mapping[str, object], covariant=True)


class RunSuite(Protocol[FiguresT_co]):
    """Asks a model what the suite is about.

    data_folder: the prepared data. limit: the most items to try (of each voice, for speech); None is the suite's own
    number. Raises ValueError, in one line that says how to make it, for data that are missing.
    """

    def __call__(
        self, model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress
    ) -> FiguresT_co: ...


def make_no_files(figures: Mapping[str, object]) -> dict[str, str]:
    """For a suite that writes nothing beside the report."""
    return {}


@dataclass(frozen=True)
class Suite(Generic[FiguresT]):
    """A run, the table that is printed of its figures, and the texts that are written beside the report.

    table: (name of the suite, figures) → text. files: figures → texts, by what stands behind the report's name.
    """

    run: RunSuite[FiguresT]
    table: Callable[[str, FiguresT], str] = make_table
    files: Callable[[FiguresT], dict[str, str]] = make_no_files
