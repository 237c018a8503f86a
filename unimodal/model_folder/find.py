"""Names → model folders, and the models on this machine. Imports no torch.

A model is named by its folder, by the name of a folder of `$UNIMODAL_MODEL` or of a checkout's `model_cards`, or by a
hub id `owner/name`. Without a name it is `$UNIMODAL_MODEL`, or the `nano` that comes with the checkout.
`$UNIMODAL_MODEL` is a model folder, a folder of model folders, or a hub id. The wheel brings no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, Field

from unimodal.files import download_folder, is_hub_id, read_json, read_json_as
from unimodal.model.adapter_files import BASE_FILE, is_adapter, read_adapter_record
from unimodal.model.weight_files import check_weight_files, list_weight_files
from unimodal.model_folder.layout import CONFIG_FILE, VOCABULARY_FILE, find_missing
from unimodal.released import find_release

MODEL_VARIABLE = "UNIMODAL_MODEL"
DEFAULT_NAME = "nano"
CARDS = "model_cards"
#: where a model may come from, for messages
WAYS = (
    f"give --model a folder or a hub id owner/name, set {MODEL_VARIABLE} to a model folder or a folder of models, "
    f"or work in a checkout, whose {CARDS}/ has {DEFAULT_NAME}"
)


@dataclass(frozen=True)
class ModelInfo:
    """A model folder at a glance. origin: how it was found, e.g. "checkout"."""

    folder: Path
    architecture: str
    modalities: tuple[str, ...]
    num_rows: int
    num_bytes: int
    origin: str = ""


def find_model(name: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a model given by folder, name, hub id or nothing.

    Raises ValueError, in one line, if there is none.
    """
    if name is None:
        return _find_default()
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.exists():
        return _check_folder(folder, text)
    for found in _list_named():
        if found.name == text:
            return _check_folder(found, text)
    for cards in _list_card_folders():
        if _is_model(cards / text):
            return _check_folder(cards / text, text)
    if is_hub_id(text):
        return _fetch(text)
    raise ValueError(f"model {text!r}: no such folder; {WAYS}")


def _find_default() -> Path:
    named = os.environ.get(MODEL_VARIABLE)
    if named:
        label, folder, found = f"{MODEL_VARIABLE}={named}", Path(named).expanduser(), _list_named()
        if not folder.exists() and is_hub_id(named):
            return _fetch(named)
        by_name = {one.name: one for one in found}
        if len(found) > 1 and DEFAULT_NAME not in by_name:
            raise ValueError(f"{label} holds several models ({', '.join(by_name)}); choose one with --model")
        return _check_folder(by_name.get(DEFAULT_NAME, found[0]) if found else folder, label)
    for folder in list_default_folders():
        if folder.is_dir():
            return _check_folder(folder, str(folder))
    raise ValueError(f"there is no default model here; {WAYS}")


def _fetch(hub_id: str) -> Path:
    release = find_release(hub_id)
    if release is not None:  # before its many gigabytes are downloaded
        raise ValueError(f"model {hub_id!r}: {release.describe_next_step(hub_id)}")
    return _check_folder(download_folder(hub_id, what="model "), hub_id)


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (CONFIG_FILE, BASE_FILE))


def _list_named() -> list[Path]:
    """The model folders that `$UNIMODAL_MODEL` names: itself, or those in it."""
    named = os.environ.get(MODEL_VARIABLE)
    folder = Path(named).expanduser() if named else None
    if folder is None or not folder.is_dir():
        return []
    return [folder] if _is_model(folder) else sorted(filter(_is_model, folder.iterdir()))


def find_coder(name: str | os.PathLike[str] | None = None) -> Path:
    """The folder whose tokenizers encode media: of one tokenizer, of tokenizers with their vocabulary, or of a model.

    Raises ValueError as `find_model` does.
    """
    folder = None if name is None else Path(name).expanduser()
    if folder is not None and folder.is_dir() and not is_adapter(folder):
        config = folder / CONFIG_FILE
        if "family" in read_json(config) if config.is_file() else (folder / VOCABULARY_FILE).is_file():
            return folder
    return find_model(name)


def list_default_folders() -> list[Path]:
    """The folders in which the default model is looked for."""
    return [cards / DEFAULT_NAME for cards in _list_card_folders()]


def _list_card_folders() -> list[Path]:
    """`model_cards` of the checkout that this file is part of, and of the current folder."""
    here = [Path(__file__).resolve().parents[2] / CARDS, Path.cwd() / CARDS]
    return list(dict.fromkeys(here))


def _check_folder(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"model {name!r} is not a folder; give the folder that holds its config.json")
    missing = find_missing(folder)
    if missing:
        fix = "copy or download it again"
        release = find_release(folder) if VOCABULARY_FILE in missing else None
        if release is not None:
            raise ValueError(f"model {name!r}: {release.describe_next_step(name)}")
        check_weight_files(list_weight_files(folder))
        raise ValueError(f"model {name!r} is incomplete: {', '.join(missing)} missing; {fix}")
    check_weight_files(list_weight_files(folder))
    return folder


def list_models() -> list[ModelInfo]:
    """The whole model folders of the checkout, of `$UNIMODAL_MODEL` and of the hub's cache."""
    found: dict[Path, ModelInfo] = {}
    for origin, folder in _list_candidates():
        real = folder.resolve()
        try:
            if real not in found and not find_missing(folder):
                found[real] = replace(describe_model(folder), origin=origin)
        except ValueError:
            continue  # some other project's folder
    return list(found.values())


def _list_candidates() -> Iterator[tuple[str, Path]]:
    """(how it was found, a folder that may be a model) for each."""
    yield from ((MODEL_VARIABLE, folder) for folder in _list_named())
    for cards in _list_card_folders():
        if cards.is_dir():
            yield from (("checkout", path) for path in sorted(cards.iterdir()) if path.is_dir())
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    yield from (("hub cache", path) for path in sorted(Path(hub).expanduser().glob("models--*/snapshots/*")))


def describe_model(folder: Path) -> ModelInfo:
    """Reads a model folder's own files. Raises ValueError if they are not those of a model of ours."""
    if is_adapter(folder):
        architecture = f"adapter on {read_adapter_record(folder).base}"
    else:
        architecture = read_json_as(_Decoder, folder / CONFIG_FILE).architectures[0]
    try:
        vocabulary = read_json_as(_Rows, folder / VOCABULARY_FILE)
    except ValueError as error:
        raise ValueError(f"{folder} is not a model folder ({error})") from None
    return ModelInfo(
        folder,
        architecture,
        ("text", *(layout.modality for layout in vocabulary.layouts)),
        vocabulary.size,
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


class _Decoder(BaseModel):
    """The part of config.json that is read here."""

    architectures: list[str] = Field(default=["?"], min_length=1)


class _Span(BaseModel):
    modality: str


class _Rows(BaseModel):
    """The part of vocabulary.json that is read here."""

    size: int
    layouts: list[_Span]
