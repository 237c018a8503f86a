"""`processor_config.json` and the sampling settings of a model folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unimodal.config import Config
from unimodal.files import describe_error, read_json
from unimodal.model_folder.formats import FORMAT, upgrade_settings
from unimodal.model_folder.layout import GENERATION_FILE, PROCESSOR_FILE
from unimodal.model_folder.wording import Wording
from unimodal.objectives.writing import SpanWriting


class CtcReading(Config):
    """How a model that was trained with a CTC loss at the codes of a medium writes down what is said in it.

    weight: that reading's share in the score. blank: the control token that was CTC's blank. sayings: utterances that
    are written for a request for speech; the one that the model reads best is given.
    """

    modality: str = "audio"
    blank: str = "<|pad|>"
    weight: float = Field(default=0.3, gt=0, lt=1)
    beams: int = Field(default=8, ge=1)
    sayings: int = Field(default=1, ge=1, le=64)


class MediumLimits(Config):
    """The longest file of a medium that a model was trained to read, and the longest span that it was trained to write.

    None: only the decoder's positions limit it.
    """

    seconds: float | None = Field(default=None, gt=0)
    codes: int | None = Field(default=None, gt=0)  # steps of a span, each of one code from every group


class ProcessorConfig(Config):
    """`processor_config.json`: how files become codes, and how words become a request.

    The defaults are neutral: no limit, no words. A model's own file says what it was trained to.
    """

    format: Literal[2] = FORMAT
    processor_class: str = "UnimodalProcessor"
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    limits: dict[str, MediumLimits] = {}
    #: how many earlier exchanges a chat shows to the model; None is all that fit, 0 each question by itself
    history_turns: int | None = Field(default=None, ge=0)
    #: the sequence format (`unimodal.sequence.templates.open`), and the system's words if a chat brings none
    template: str = "unimodal"
    system: str = ""
    wording: Wording = Wording()
    #: None: transcripts are written as any other answer
    reading: CtcReading | None = None
    #: None: codes are written token by token, as text is
    writing: SpanWriting | None = None

    def find_limits(self, modality: str) -> MediumLimits:
        """The limits of a medium."""
        return self.limits.get(modality, MediumLimits())

    @property
    def max_codes(self) -> dict[str, int]:
        """The longest span in code steps, by medium, for media with a limit."""
        return {name: limits.codes for name, limits in self.limits.items() if limits.codes is not None}


class MediumSettings(BaseModel):
    """How the tokens of one modality are chosen: the fields of `SamplingConfig`, and guidance."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    first_codes: int = Field(default=0, ge=0)
    first_temperature: float = Field(default=0.0, ge=0)
    guidance: float = Field(default=1.0, ge=0)


def read_processor(folder: Path) -> ProcessorConfig:
    """Reads `processor_config.json`; an older format, or a missing file, is read as that format meant it.

    Raises ValueError, in one line, for an invalid setting and for a format of a newer program.
    """
    path = folder / PROCESSOR_FILE
    values = read_json(path) if path.is_file() else {}
    values.pop("auto_map", None)  # transformers' own: which file of an exported folder its AutoProcessor reads
    try:
        return ProcessorConfig.model_validate(upgrade_settings(values, path))
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error)}") from None


def read_sampling(folder: Path) -> dict[str, MediumSettings]:
    """The settings by modality under `unimodal` in `generation_config.json`; {} if there are none."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    section = read_json(path).get("unimodal") or {}
    try:
        return TypeAdapter(dict[str, MediumSettings]).validate_python(section)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error)}") from None
