"""Brings a model folder of an older format up to this program's: writes all files that change, or none.

Weights, hashes and answers stay: what the older format left out is written down as it was meant (`formats.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from unimodal.files import describe_error, open_atomic_path, read_json, write_bytes_atomically
from unimodal.model_folder.formats import FORMAT, read_format, upgrade_settings
from unimodal.model_folder.layout import PROCESSOR_FILE, VOCABULARY_FILE
from unimodal.model_folder.settings import ProcessorConfig


@dataclass(frozen=True)
class Change:
    """A file that is to be written anew."""

    path: Path
    fields: Mapping[str, object]
    why: str  # in words: "format 1 → 2; says now limits, wording"

    @property
    def text(self) -> str:
        return json.dumps(self.fields, indent=2, ensure_ascii=False) + "\n"


def plan_upgrade(folder: Path) -> list[Change]:
    """The files that an upgrade of a model folder would write; [] for a folder of the newest format.

    Raises ValueError, in one line, for a folder that holds no model, that a newer program wrote, that is damaged, or
    whose files are links to outside, as in the Hub's cache.
    """
    if not (folder / VOCABULARY_FILE).is_file():
        raise ValueError(f"{folder} is not a model folder: {VOCABULARY_FILE} is missing; name the folder that holds it")
    changes = [change for change in (_plan_settings(folder),) if change is not None]
    for change in changes:
        if not change.path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{change.path} is a link out of the folder, which an upgrade would not change for this folder alone; "
                f"copy it first: cp -rL {folder} DIR"
            )
    return changes


def apply_upgrade(changes: list[Change]) -> None:
    """Writes the changes of `plan_upgrade`. If one file cannot be written, all keep their content."""
    before = {change.path: change.path.read_bytes() if change.path.is_file() else None for change in changes}
    try:
        with ExitStack() as stack:  # every file is whole beside its place before the first takes it
            for change in changes:
                stack.enter_context(open_atomic_path(change.path)).write_text(change.text, encoding="utf-8")
    except BaseException:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                write_bytes_atomically(path, content)
        raise


def _plan_settings(folder: Path) -> Change | None:
    path = folder / PROCESSOR_FILE
    values = read_json(path) if path.is_file() else {}
    number = read_format(values, path)
    if number == FORMAT:
        return None
    theirs = {name: values[name] for name in ("auto_map",) if name in values}  # transformers' own
    ours = {name: value for name, value in values.items() if name not in theirs}
    try:
        settings = ProcessorConfig.model_validate(upgrade_settings(ours, path)).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error)}") from None
    said = [name for name, value in settings.items() if name != "format" and values.get(name) != value]
    return Change(path, {**settings, **theirs}, f"format {number} → {FORMAT}; now says {', '.join(said)}")
