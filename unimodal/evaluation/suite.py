"""What a suite is: a function that measures figures of a model, and the form in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from unimodal.evaluation.report import make_table
from unimodal.pipeline import Unimodal

#: called with progress: (task, items done, items in all or None)
ReportProgress: TypeAlias = Callable[[str, int, int | None], None]

#: the figures of a suite: numbers by name, nested in groups, and lists of examples
FiguresT = TypeVar("FiguresT", bound=Mapping[str, object])
FiguresT_co = TypeVar("FiguresT_co", bound=Mapping[str, object], covariant=True)


class RunSuite(Protocol[FiguresT_co]):
    """Measures the figures of a model.

    data_folder: the prepared data. limit: the most items to try (of each voice, for speech), by default the suite's own
    number. Raises ValueError for missing data, in one line that names the command which makes them.
    """

    def __call__(
        self, model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress
    ) -> FiguresT_co: ...


def make_no_files(figures: Mapping[str, object]) -> dict[str, str]:
    """The files of a suite that writes nothing beside the report: none."""
    return {}


@dataclass(frozen=True)
class Suite(Generic[FiguresT]):
    """A suite: its run, the table of its figures, and further texts.

    table: (name of the suite, figures) → the printed text. files: figures → texts to write beside the report, by the
    end of the file's name.
    """

    run: RunSuite[FiguresT]
    table: Callable[[str, FiguresT], str] = make_table
    files: Callable[[FiguresT], dict[str, str]] = make_no_files
