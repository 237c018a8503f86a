"""`unimodal inspect`: reports on what happens inside a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from unimodal.cli.progress import Reporter
from unimodal.cli.shared import Seed, check_choice, check_file, check_folder
from unimodal.media.registry import MEDIA

#: report → the options that it reads besides those of all
REPORTS: dict[str, tuple[str, ...]] = {
    "heads": ("--prompt", "--text", "--tokens"),
    "media": ("--file", "--prompt", "--answer", "--to"),
    "functions": ("--prompt", "--text", "--tokens"),
    "attribution": ("--prompt", "--file", "--answer", "--to"),
    "points": ("--prompt", "--file", "--answer", "--to"),
    "flow": ("--prompt", "--file", "--answer", "--to"),
    "alignment": ("--file", "--prompt", "--text", "--tokens"),
    "hidden": (),
    "codes": ("--file",),
}
#: settings that are shares or thresholds; the others are whole numbers
FRACTIONS = ("recurring", "replaced", "above", "below", "share")
#: report → the settings of its own that `--set` changes
SETTINGS: dict[str, tuple[str, ...]] = {
    "media": ("layer", "recurring"),
    "attribution": ("draws", "least_steps", "most_steps", "replaced", "kept", "among", "checks"),
    "points": ("points", "above", "below", "shrink", "cosine"),
    "hidden": ("rows", "share", "length"),
    "codes": ("symbols", "values", "steps"),
}


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, name or hub id, or a base's.")],
    report: Annotated[str, typer.Argument(metavar="REPORT", help=f"What to look at: {', '.join(REPORTS)}.")],
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="WORDS", help="What the model is asked.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", metavar="F…", help="A picture, sound or clip; one or more files.")
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="WORDS", help="What it is held to answer; by default its own answer."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="X", help="Answer with text, image, audio or video.")
    ] = None,
    texts: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE…", help="UTF-8 text, each file a kind of text.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="At most so many tokens of a text.")] = 128,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=N…", help="A setting of the report; see docs/inspect.md.")
    ] = None,
    seed: Seed = 0,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures, too.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot: .svg or .png.")] = None,
) -> None:
    """Look inside a model, ours or any causal LM of transformers: print a report, and write its figures and a plot."""
    check_choice("REPORT", report, tuple(REPORTS))
    check_choice("--to", to, ("text", *MEDIA))
    given = {
        "--prompt": prompt, "--file": files, "--answer": answer, "--to": to, "--text": texts,
        "--tokens": tokens if tokens != 128 else None,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None and value != [] and option not in REPORTS[report]:
            known = ", ".join(REPORTS[report]) or "none of these options"
            raise ValueError(f"{option} is not for the report {report}, which reads {known}")
    changes = read_settings(report, settings or [])
    if tokens < 1:
        raise ValueError(f"--tokens {tokens}: give one or more")
    for option, path in (("--json", json), ("--plot", plot)):
        if path is not None:
            check_folder(path, option)
    kinds = [(path, check_file(path)) for path in files or []]
    from unimodal.evaluation.inspection import make_report
    from unimodal.evaluation.inspection.opened import open_model
    from unimodal.evaluation.inspection.report import InspectionInput, check_plot
    from unimodal.sequence.document import MEDIA_PARTS
    from unimodal.text.corpora import read_text

    if plot is not None:
        check_plot(plot.suffix.lower())
    with Reporter() as tell:
        tell("starting")
        made = make_report(
            report,
            open_model(model, tell),
            InspectionInput(
                prompt=prompt,
                files=[MEDIA_PARTS[kind](path=path) for path, kind in kinds],
                answer=answer,
                to=to,
                texts={path.name: read_text(path) for path in texts or []},
                num_tokens=tokens,
                seed=seed,
                settings=changes,
            ),
            tell,
        )
        tell("writing")
        made.save(json, plot)
    print(made.format())


def read_settings(report: str, given: list[str]) -> dict[str, float | int]:
    """NAME=NUMBER for a report → its settings. Raises ValueError for other names and for what is no number."""
    known = SETTINGS.get(report, ())
    found: dict[str, float | int] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or name not in known:
            raise ValueError(f"--set {each}: {report} has {', '.join(known) or 'no settings'}; give NAME=NUMBER")
        try:
            found[name] = float(value) if name in FRACTIONS else int(value)
        except ValueError:
            kind = "number" if name in FRACTIONS else "whole number"
            raise ValueError(f"--set {each}: {value!r} is no {kind}") from None
        if not math.isfinite(found[name]):
            raise ValueError(f"--set {each}: {value!r} is no number to count with")
    return found
