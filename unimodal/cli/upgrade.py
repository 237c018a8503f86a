"""`unimodal upgrade`: a model folder that an older unimodal wrote, in the format of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def upgrade(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder, or one of tokenizers alone.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
) -> None:
    """Bring a model folder of an older format up to date, in place; weights, hashes and answers stay."""
    from unimodal.model_folder.upgrade import apply_upgrade, plan_upgrade

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the folder of a model")
    changes = plan_upgrade(folder)
    if not dry_run:
        apply_upgrade(changes)
    for change in changes:
        print(f"{change.path.relative_to(folder)}: {change.why}")
    if not changes:
        print(f"{folder} is up to date; there is nothing to do")
