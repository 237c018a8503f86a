"""Where models lie on disk: names → folders, and what a folder holds. Imports no torch.

A model is named by its folder, by a hub id `owner/name`, or not at all: then it is `$UNIMODAL_MODEL`, or the `nano`
that comes with the checkout. A folder is laid out as its Hub repository:

    config.json generation_config.json model.safetensors            the decoder, any Hugging Face causal LM; a large one
                                                                     is in shards, with model.safetensors.index.json
    tokenizer.json tokenizer_config.json chat_template.jinja         text, with one token per control and media row
    vocabulary.json processor_config.json                            rows ⇄ codes; how files are read and words put
    image_tokenizer/ audio_tokenizer/ video_tokenizer/               config.json and model.safetensors each
    image_reader/                                                    the same, of a model that reads features, no codes
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimodal.config import Config
from unimodal.files import describe_error
from unimodal.model.weight_files import check_weight_files, list_weight_files
from unimodal.model_folder.wording import Wording

MODEL_VARIABLE = "UNIMODAL_MODEL"
DEFAULT_NAME = "nano"
CARDS = "model_cards"
PROCESSOR_FILE = "processor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
REQUIRED = ("config.json", WEIGHTS, "tokenizer.json", "vocabulary.json")
BASE_FILE = "base.json"  # of an adapter, which names its base instead of holding the decoder
ADAPTER_REQUIRED = (BASE_FILE, "tokenizer.json", "vocabulary.json")
CONVERTIBLE = ("chameleon", "emu3", "janus")  # model types that tools/convert_checkpoint.py takes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CtcReading(Config):
    """How a model that was trained with a CTC loss at the codes of a medium writes down what is said in it: `weight` is
    that reading's share in the score, `blank` the control token that was CTC's blank. Where it shall say something, it
    writes `sayings` utterances and gives the one that it reads best."""

    modality: str = "audio"
    blank: str = "<|pad|>"
    weight: float = Field(default=0.3, gt=0, lt=1)
    beams: int = Field(default=8, ge=1)
    sayings: int = Field(default=1, ge=1, le=64)


class ProcessorConfig(Config):
    """`processor_config.json`: how files become codes and words become a request. Everything has nano's default."""

    processor_class: str = "UnimodalProcessor"
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    #: the longest sound that the model was trained to hear, and in codes to make
    max_audio_s: float = Field(default=8.0, gt=0)
    max_audio_codes: int = Field(default=250, gt=0)
    #: how many earlier exchanges a chat shows to the model; None is all that fit, 0 each question by itself
    history_turns: int | None = Field(default=None, ge=0)
    #: the sequence format (`unimodal.sequence.templates.open`), and what a chat begins with where nobody says it
    template: str = "unimodal"
    system: str = ""
    wording: Wording = Wording()
    #: None: transcripts are written as any other answer
    reading: CtcReading | None = None


class MediumSettings(BaseModel):
    """How the tokens of one modality are chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    guidance: float = Field(default=1.0, ge=0)


@dataclass(frozen=True)
class ModelInfo:
    """A model folder at a glance."""

    folder: Path
    architecture: str
    modalities: tuple[str, ...]
    num_rows: int
    num_bytes: int


def find_model(name: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a model given by folder, hub id or nothing. Raises ValueError, in one line, if there is none."""
    if name is None:
        named = os.environ.get(MODEL_VARIABLE)
        if named:
            return _check_folder(Path(named).expanduser(), f"{MODEL_VARIABLE}={named}")
        for folder in default_folders():
            if folder.is_dir():
                return _check_folder(folder, str(folder))
        raise ValueError(f"there is no default model here; name a folder or hub id with --model or in {MODEL_VARIABLE}")
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.exists():
        return _check_folder(folder, text)
    for cards in _card_folders():
        if any((cards / text / file).is_file() for file in ("config.json", BASE_FILE)):
            return _check_folder(cards / text, text)
    if _HUB_ID.fullmatch(text):
        return _check_folder(_download(text), text)
    raise ValueError(f"model {text!r}: no such folder, and not a hub id of the form owner/name")


def default_folders() -> list[Path]:
    return [cards / DEFAULT_NAME for cards in _card_folders()]


def _card_folders() -> list[Path]:
    """`model_cards` of the checkout that this file is part of, and of the folder one stands in."""
    here = [Path(__file__).resolve().parents[2] / CARDS, Path.cwd() / CARDS]
    return list(dict.fromkeys(here))


def _check_folder(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"model {name!r} is not a folder; give the folder that holds its config.json")
    check_weight_files(list_weight_files(folder))
    missing = _missing(folder)
    if missing:
        fix = "copy or download it again"
        if "vocabulary.json" in missing and (folder / "config.json").is_file():
            kind = read_json(folder / "config.json").get("model_type")
            if kind in CONVERTIBLE:
                fix = f"it is transformers' own: `python tools/convert_checkpoint.py {kind} {name} DIR` first"
        raise ValueError(f"model {name!r} is incomplete: {', '.join(missing)} missing; {fix}")
    return folder


def _missing(folder: Path) -> list[str]:
    required = list(ADAPTER_REQUIRED if (folder / BASE_FILE).is_file() else REQUIRED)
    if WEIGHTS in required and not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        required.remove(WEIGHTS)
        required += shards(folder)
    return [file for file in required if not (folder / file).is_file()]


def shards(folder: Path) -> list[str]:
    """The weight files that `model.safetensors.index.json` names; ValueError for one outside the folder."""
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside or not names:
        raise ValueError(f"{path} names {outside[0] if outside else 'no file'}; it must name safetensors files here")
    return names


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repository))
    except Exception as error:  # the hub's errors have many bases: repository, network, offline mode, disk
        reason = describe_error(error)
        raise ValueError(f"model {repository!r} is no folder here and cannot be had from the hub: {reason}") from None
    if not folder.is_dir():
        raise ValueError(f"model {repository!r} is empty on the hub; push it first")
    return folder


def list_models() -> list[ModelInfo]:
    """The complete model folders of the checkout, of `$UNIMODAL_MODEL` and of the hub's cache."""
    found: dict[Path, ModelInfo] = {}
    for folder in _candidates():
        real = folder.resolve()
        try:
            if real not in found and not _missing(folder):
                found[real] = describe(folder)
        except ValueError:
            continue  # some other project's folder
    return list(found.values())


def _candidates() -> Iterator[Path]:
    named = os.environ.get(MODEL_VARIABLE)
    if named:
        yield Path(named).expanduser()
    for cards in _card_folders():
        if cards.is_dir():
            yield from sorted(path for path in cards.iterdir() if path.is_dir())
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    yield from sorted(Path(hub).expanduser().glob("models--*/snapshots/*"))


def describe(folder: Path) -> ModelInfo:
    """What the folder's own files say. Raises ValueError if they are not those of a model of ours."""
    adapter = (folder / BASE_FILE).is_file()
    config = read_json(folder / (BASE_FILE if adapter else "config.json"))
    vocabulary = read_json(folder / "vocabulary.json")
    try:
        return ModelInfo(
            folder,
            f"adapter on {config['base']}" if adapter else str((config.get("architectures") or ["?"])[0]),
            ("text", *(str(layout["modality"]) for layout in vocabulary["layouts"])),
            int(vocabulary["size"]),
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not a model folder ({type(error).__name__}: {error})") from None


def tokenizer_folder(folder: Path, modality: str) -> Path:
    return folder / f"{modality}_tokenizer"


def reader_folder(folder: Path, modality: str) -> Path:
    return folder / f"{modality}_reader"


def read_processor(folder: Path) -> ProcessorConfig:
    """`processor_config.json`, or the defaults where a model has none."""
    path = folder / PROCESSOR_FILE
    if not path.is_file():
        return ProcessorConfig()
    values = read_json(path)
    values.pop("auto_map", None)  # transformers' own: which file of an exported folder its AutoProcessor reads
    try:
        return ProcessorConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None


def read_sampling(folder: Path) -> dict[str, MediumSettings]:
    """The settings by modality under `unimodal` in `generation_config.json`; {} where there are none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    section = read_json(path).get("unimodal") or {}
    try:
        return {str(name): MediumSettings.model_validate(values) for name, values in section.items()}
    except (AttributeError, ValidationError) as error:
        raise ValueError(f"{path}: {_first(error)}") from None


def read_json(path: Path) -> dict:
    """A JSON object; ValueError in one line for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or describe_error(error)
        raise ValueError(f"{path} cannot be read as JSON ({reason}); take it from the model again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object; take it from the model again")
    return data


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        item = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
    return describe_error(error)
