"""A run's identity: every setting and input that decides what it learns, compared before the run is resumed.

An identity maps names to short texts, such as `lora.alpha → 16.0` and `base weights → 9f86d081884c7d65`. It lies in the
run's folder as `run.json`. Settings marked `MAY_CHANGE` are left out: they decide how long, where and how often a run
trains, not what it learns. Files count by their content, so their paths may change too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import nn

from unimodal.config import Config, MayChange
from unimodal.files import read_json_as, write_json
from unimodal.training.checkpoint import has_checkpoint

IDENTITY_FILE = "run.json"
MOST_NAMED = 5  # a message names at most so many differences

Identity = dict[str, str]


def describe_settings(cfg: Config, leave_out: Collection[str] = ()) -> Identity:
    """Dotted name → JSON of every setting, without those marked `MAY_CHANGE` and those below a name in `leave_out`."""
    found = _walk_fields(cfg, "")
    return {name: value for name, value in found if not any(_is_within(name, part) for part in leave_out)}


def list_free_settings(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of a class's settings that may change when a run is resumed."""
    names: list[str] = []
    for name, field in cls.model_fields.items():
        if any(isinstance(mark, MayChange) for mark in field.metadata):
            names.append(prefix + name)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += list_free_settings(field.annotation, f"{prefix}{name}.")
    return names


def hash_weights(module: nn.Module) -> str:
    """A short hash of every parameter and buffer of a module: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\0".encode())
        digest.update(memoryview(values.flatten().view(torch.uint8).numpy()) if values.numel() else b"")
    return _shorten(digest.hexdigest())


def hash_files(paths: Iterable[Path]) -> str:
    """A short hash of the content of files, in their order; a missing file has a mark of its own."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            digest.update(b"missing\0")
            continue
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return _shorten(digest.hexdigest())


def hash_json(value: object) -> str:
    """A short hash of a value that JSON can hold."""
    return _shorten(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest())


def read_identity(folder: Path) -> Identity | None:
    """The identity of the run in a folder; None if it has no `run.json`."""
    path = folder / IDENTITY_FILE
    return read_json_as(dict[str, str], path, "restore it, or begin anew with --restart") if path.is_file() else None


def write_identity(folder: Path, identity: Mapping[str, str]) -> None:
    """Write `run.json`, whole or not at all."""
    write_json(folder / IDENTITY_FILE, dict(identity))


def check_identity(folder: Path, identity: Mapping[str, str], saved: Mapping[str, str] | None = None) -> None:
    """Raises ValueError, in one line that names the differences, if the run in `folder` has another identity.

    saved: that run's identity, if it was read already.
    """
    saved = saved or read_identity(folder)
    if saved is None:
        raise ValueError(
            f"{folder} holds a checkpoint but no {IDENTITY_FILE} that says what it was made of; begin anew with "
            "--restart (what lies there is moved aside), or choose another run"
        )
    differences = list(_find_differences(saved, identity))
    if differences:
        named = "; ".join(differences[:MOST_NAMED])
        more = f"; and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
        raise ValueError(
            f"{folder} holds a run of something else: {named}{more}. Put that back, begin anew with --restart (the "
            "old run is moved aside), or choose another run"
        )


def describe_resume(
    folder: Path, identity: Mapping[str, str], restart: bool = False, unknown: Collection[str] = ()
) -> str:
    """What a run in `folder` would do about the checkpoint there, in one line, for a dry run.

    unknown: beginnings of names that were not computed, such as the hashes of a corpus; they are not compared.
    """
    if not has_checkpoint(folder):
        return f"{folder} holds no checkpoint: the run would begin anew"
    if restart:
        return f"{folder} holds a checkpoint: --restart would move it aside and begin anew"
    skipped = tuple(unknown)
    saved = {name: value for name, value in (read_identity(folder) or {}).items() if not name.startswith(skipped)}
    try:
        check_identity(folder, identity, saved)
    except ValueError as error:
        return f"would not resume: {error}"
    return f"would resume {folder}{', if its data are the same' if skipped else ''}"


def _find_differences(saved: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in [*saved, *(name for name in now if name not in saved)]:
        old, new = saved.get(name), now.get(name)
        if old != new:
            yield f"{name} {'(none)' if old is None else old} → {'(none)' if new is None else new}"


def _walk_fields(part: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    fields = type(part).model_fields
    for name, value in part:
        if not any(isinstance(mark, MayChange) for mark in fields[name].metadata):
            yield from _walk_value(value, prefix + name)


def _walk_value(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from _walk_fields(value, f"{name}.")
    elif isinstance(value, (list, tuple)) and any(isinstance(item, BaseModel) for item in value):
        for number, item in enumerate(value):
            yield from _walk_value(item, f"{name}.{number}")
    else:
        yield name, json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _shorten(digest: str) -> str:
    return digest[:16]
