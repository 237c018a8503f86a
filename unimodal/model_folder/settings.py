"""`processor_config.json` and the sampling settings of a model folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unimodal.config import Config
from unimodal.files import describe_error, read_json
from unimodal.model_folder.layout import GENERATION_FILE, PROCESSOR_FILE
from unimodal.model_folder.wording import Wording


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
        raise ValueError(f"{path}: {describe_error(error)}") from None


def read_sampling(folder: Path) -> dict[str, MediumSettings]:
    """The settings by modality under `unimodal` in `generation_config.json`; {} where there are none."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    section = read_json(path).get("unimodal") or {}
    try:
        return TypeAdapter(dict[str, MediumSettings]).validate_python(section)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error)}") from None
