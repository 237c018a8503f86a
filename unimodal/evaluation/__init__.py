"""What the model can do, in figures: one suite a file, each `run(model, data_folder, limit, seed, report) -> dict`.

A suite reads the prepared data, asks the model in the words of its training and judges with models that had no part in
it where there are such (`judges.py`). Figures are plain numbers in nested dicts; `report.py` prints and saves them.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimodal.pipeline import Unimodal

__all__ = ["SUITES", "Report", "run_suite", "run_suites", "suites_named"]

#: (what is being done, how far, of how many)
Report = Callable[[str, int, "int | None"], None]


def suites_named(names: Iterable[str]) -> list[str]:
    """The suites of some names, `all` being every one. Raises ValueError for a name that is none."""
    import difflib

    chosen: list[str] = []
    for name in names:
        if name != "all" and name not in SUITES:
            near = difflib.get_close_matches(name, SUITES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from all, {', '.join(SUITES)}"
            raise ValueError(f"no suite {name!r}; {hint}")
        chosen += [suite for suite in (SUITES if name == "all" else [name]) if suite not in chosen]
    return chosen


def run_suite(
    name: str, model: Unimodal, data_folder: Path, limit: int | None = None, seed: int = 0, report: Report | None = None
) -> dict[str, Any]:
    """The figures of one suite. `limit` items at most (of each voice, for speech); None is the suite's own number."""
    [name] = suites_named([name])
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of items to try, at least 1")
    suite = importlib.import_module(SUITES[name])
    return suite.run(model, Path(data_folder), limit, seed, report or _silent)


def _weights(folder: Path) -> dict[str, Path]:
    """The files that hold the decoder: whole, in shards, or what was trained of it."""
    whole = {"decoder": folder / "model.safetensors"}
    if whole["decoder"].is_file():
        return whole
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _sha256_of(path: Path) -> str:
    """Of a file's bytes: a report is continued only with the weights it was begun with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(text: str, done: int, total: int | None) -> None:
    """For callers who do not want to be told."""


def run_suites(
    names: Iterable[str],
    model: Unimodal,
    data_folder: Path,
    out: Path,
    limit: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Iterator[str]:
    """Runs suites one by one, saving the report after each, and yields the table of each.

    A suite with `files(figures)` and `table(figures)` has its own table, also written beside the report.
    The report at `out` is continued if it is of the same model, seed and limit: suites that are not run again stay.
    """
    from unimodal.evaluation.report import continue_report, new_report, save_report, table
    from unimodal.files import atomic_write_text

    names = suites_named(names)
    hashes = {**model.coder.sha256, **{name: _sha256_of(path) for name, path in _weights(model.folder).items()}}
    document = continue_report(out, new_report(model.folder.name, hashes, seed, limit))
    for name in names:
        figures = document["suites"][name] = run_suite(name, model, data_folder, limit, seed, report)
        save_report(document, out)
        suite = importlib.import_module(SUITES[name])
        if hasattr(suite, "files"):  # a table and a plot that are written beside the report
            for end, text in suite.files(figures).items():
                atomic_write_text(out.with_name(out.stem + end), text)
        yield suite.table(figures) if hasattr(suite, "table") else table(name, figures)


SUITES = {
    "image_reconstruction": "unimodal.evaluation.image_reconstruction",
    "video_reconstruction": "unimodal.evaluation.video_reconstruction",
    "speech_reconstruction": "unimodal.evaluation.speech_reconstruction",
    "picture_naming": "unimodal.evaluation.picture_naming",
    "picture_drawing": "unimodal.evaluation.picture_drawing",
    "transcription": "unimodal.evaluation.transcription",
    "speaking": "unimodal.evaluation.speaking",
    "clip_naming": "unimodal.evaluation.clip_naming",
    "clip_drawing": "unimodal.evaluation.clip_drawing",
    "compression": "unimodal.evaluation.compression",
    "text_forgetting": "unimodal.evaluation.text_forgetting",
}
