"""What the model can do, in figures: one suite a file, each with a `SUITE` (`suite.py`) at its end.

A suite reads the prepared data, asks the model in the words of its training and judges the answers, where it can with
models that had no part in the training (`judges.py`). Figures are plain numbers in nested dicts; `report.py` prints and
saves them.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimodal.evaluation.suite import ReportProgress, Suite
    from unimodal.pipeline import Unimodal
    from unimodal.pipeline.compression import AskedMethods

__all__ = ["SUITES", "TOKENIZERS", "choose_suites", "run_suite", "run_suites"]


def choose_suites(names: Iterable[str]) -> list[str]:
    """The names of the suites to run; `all` stands for every one. Raises ValueError for an unknown name."""
    chosen: list[str] = []
    for name in names:
        if name != "all" and name not in SUITES:
            near = difflib.get_close_matches(name, [*SUITES, TOKENIZERS], n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from all, {', '.join(SUITES)}, or {TOKENIZERS}"
            raise ValueError(f"no suite {name!r}; {hint}")
        chosen += [suite for suite in (SUITES if name == "all" else [name]) if suite not in chosen]
    return chosen


def open_suite(name: str) -> Suite[Mapping[str, object]]:
    """The suite of this name; its module is imported only now. Raises ValueError for an unknown name."""
    [name] = choose_suites([name])
    return importlib.import_module(SUITES[name]).SUITE


def run_suite(
    name: str,
    model: Unimodal,
    data_folder: Path,
    limit: int | None = None,
    seed: int = 0,
    report: ReportProgress | None = None,
) -> Mapping[str, object]:
    """The figures of one suite, from the prepared data in a folder.

    limit: items at most (of each voice, for speech), by default the suite's own number. report: called with progress.
    Raises ValueError for an unknown name, a limit below 1, and missing data.
    """
    suite = open_suite(name)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of items to try, at least 1")
    return suite.run(model, Path(data_folder), limit, seed, report or _ignore_progress)


def run_suites(
    names: Iterable[str],
    model: Unimodal,
    data_folder: Path,
    out: Path,
    limit: int | None = None,
    seed: int = 0,
    report: ReportProgress | None = None,
    compress: AskedMethods = (),
) -> Iterator[str]:
    """Run suites one by one; save the report after each and yield its table.

    A report at `out` of the same model, seed, limit and compression is continued: its other suites stay. Further files
    of a suite are written beside it. compress: methods that shorten all that the model reads, by name, by the folder of
    a trained one, or made. Raises ValueError as
    `run_suite` does, for a file at `out` that is no report, and for methods that are unknown or do not fit.
    """
    from unimodal.compression import open_methods
    from unimodal.evaluation.report import EvaluationReport, continue_report, save_report
    from unimodal.files import write_text_atomically
    from unimodal.pipeline.compression import check_methods, describe_methods, identify_methods, load_methods

    names, methods = choose_suites(names), check_methods(model, load_methods(compress))
    if methods and COMPRESSION in names:
        raise ValueError(f"--suite {COMPRESSION} tries every method itself; leave --compress out, or name other suites")
    hashes = {**model.coder.sha256, **{name: _hash_file(path) for name, path in _list_weights(model.folder).items()}}
    told = describe_methods(methods)
    fresh = EvaluationReport(model.folder.name, hashes, seed, limit, identify_methods(methods), suites={})
    document = continue_report(out, fresh)
    for name in names:
        with open_methods(methods, model.engine) as sessions:
            figures = run_suite(name, model, data_folder, limit, seed, report)
        document.suites[name] = dict(figures)
        save_report(document, out)
        suite = open_suite(name)
        for end, text in suite.files(figures).items():
            write_text_atomically(out.with_name(out.stem + end), text)
        table = suite.table(name, figures)
        if sessions:
            before, after = sessions[0].stats.tokens_before, sessions[-1].stats.tokens_after
            table = f"compressed by {told}: {after} of {before} tokens of media reached the last layer\n{table}"
        yield table


def _list_weights(folder: Path) -> dict[str, Path]:
    """The files of the decoder's weights: whole, in shards, or those of an adapter."""
    from unimodal.model_folder.layout import WEIGHTS

    whole = folder / WEIGHTS
    return {"decoder": whole} if whole.is_file() else {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _hash_file(path: Path) -> str:
    """The sha256 of a file's bytes: a report is continued only with the same weights."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ignore_progress(text: str, done: int, total: int | None) -> None:
    """Progress that nobody asked for."""


#: the suite that compares methods of compression
COMPRESSION = "compression"
#: the comparison of tokenizers (`tokenizer_bench`), which measures no model
TOKENIZERS = "tokenizers"
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
    "picture_variety": "unimodal.evaluation.picture_variety",
    "scene_reading": "unimodal.evaluation.scene_reading",
    "scene_drawing": "unimodal.evaluation.scene_drawing",
    "grounding": "unimodal.evaluation.grounding",
    "conversation": "unimodal.evaluation.conversation",
    "moving": "unimodal.evaluation.moving",
    "sound_naming": "unimodal.evaluation.sound_naming",
    "everyday_speech": "unimodal.evaluation.everyday_speech",
    "compression": "unimodal.evaluation.compression",
    "text_forgetting": "unimodal.evaluation.text_forgetting",
    "character_tasks": "unimodal.evaluation.character_tasks",
}
