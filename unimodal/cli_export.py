"""`unimodal export` and `unimodal push`: a model as a stock folder, and that folder as a Hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unimodal.cli_progress import Reporter


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model or fine-tuned folder, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="D", help="float32, bfloat16 or float16; by default as it is stored.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The largest weight file.")] = "5GB",
    base: Annotated[
        str | None, typer.Option(metavar="B", help="Where the base of a fine-tuned model lies now.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an exported model that is there.")] = False,
) -> None:
    """Write a model as a stock Hugging Face folder, adapter and new rows merged, that any library loads."""
    from unimodal.export.new_folder import check_target
    from unimodal.pipeline_folder import find_model

    check_target(out, force)  # a mistake is told before seconds of imports
    source = find_model(model)
    with Reporter() as report:
        report("starting")
        from unimodal.export.stock import export_model

        export_model(source, out, dtype, max_shard_size, force, base, report)
    print(out)


def register(app: typer.Typer) -> None:
    app.command()(export)
