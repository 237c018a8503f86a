"""`unimodal export` and `unimodal push`: a model as a stock folder, and that folder as a Hub repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unimodal.cli.progress import Reporter


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
    from unimodal.model_folder.find import find_model

    check_target(out, force)  # a mistake is told before seconds of imports
    source = find_model(model)
    with Reporter() as report:
        report("starting")
        from unimodal.export.stock import export_model
        from unimodal.model.prompt_files import has_soft_prompt

        export_model(source, out, dtype, max_shard_size, force, base, report)
    if has_soft_prompt(out):
        print(
            f"the soft prompt is no weight of a stock class; peft opens it from {out}/soft_prompt, and a server that "
            "does not runs the model without",
            file=sys.stderr,
        )
    print(out)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `unimodal export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository, owner/name.")],
    license: Annotated[str | None, typer.Option(metavar="ID", help="Its licence, such as apache-2.0.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A hub dataset it was trained on; may be repeated.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="WORDS", help="What it was trained on, in words.")] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(metavar="ID", help="The hub dataset that its reports are about; by default REPO.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you and whom you let see it.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Another branch than main.")] = None,
    token: Annotated[
        str | None, typer.Option(metavar="T", help="A Hub token; better in HF_TOKEN or by `hf auth login`.")
    ] = None,
    accept_licence: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Publish weights under this licence, which forbids commercial use."),
    ] = None,
    check_hidden_text: Annotated[
        bool,
        typer.Option("--check-hidden-text", help="Look first for text that is hidden in the model; refuse if any."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent.")] = False,
) -> None:
    """Publish an exported folder on the Hugging Face Hub, with a card; the same command goes on after a break."""
    from unimodal.model_folder.find import find_model

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; write one with `unimodal export MODEL --out {folder}`")
    find_model(folder)  # complete, and without pickles
    with Reporter() as report:
        report("starting")
        from unimodal.export import hub
        from unimodal.export.card import Statement

        planned = hub.plan_push(
            folder, repo, Statement(license, dataset or (), data), eval_dataset, accept_licence or ()
        )
        if check_hidden_text:
            from unimodal.evaluation.inspection.hidden import refuse_hidden_text
            from unimodal.evaluation.inspection.opened import open_model

            refuse_hidden_text(open_model(str(folder), report), report)
        if dry_run:
            report.clear()
            for item in planned:
                print(f"{item.num_bytes:>14,}  {item.name}{'' if item.source else '  (made)'}")
            print(f"{sum(item.num_bytes for item in planned):>14,}  in {len(planned)} files would go to {repo}")
            return
        url = hub.push(planned, repo, private, revision, token, report)
    print(url)
