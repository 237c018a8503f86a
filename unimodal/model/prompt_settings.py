"""The settings of a soft prompt: what it is, and what it begins as."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from unimodal.config import Config
from unimodal.model.private_gradients import PrivacySettings


class ContextSettings(Config):
    """Examples to begin as. path: a dataset of any format that `corpus.datasets` takes."""

    path: Path
    format: str | None = None
    examples: int = Field(default=4, ge=1)  # the first of it
    epsilon: float = Field(default=0.1, gt=0)
    format_epsilon: float = Field(default=0.1, gt=0)


class PrefixSettings(Config):
    """States of the prompt's own in the layers from `first_layer` on, counted from 0 (`prefix.py`)."""

    first_layer: int = Field(default=0, ge=0)


class SpaceSettings(Config):
    """The same, as projections of one shared space of this width (`shared_space.py`)."""

    width: int = Field(default=512, ge=1)
    first_layer: int | None = Field(default=None, ge=1)  # null: half of the layers stay as they are


class PromptSettings(Config):
    """A soft prompt and what it begins as.

    One of `text`, `source` and `context`, or rows of the base's table.
    """

    length: int = Field(default=20, ge=1, le=4096)  # of a context: as many tokens as it has
    #: repeated or cut to `length`
    text: str | None = Field(default=None, min_length=1)
    #: a folder with a prompt of the same width: an adapter of ours, an export, or one that peft wrote
    source: Path | None = None
    #: examples, which stay near what they were (`context_prompt.py`)
    context: ContextSettings | None = None
    #: hide each document that it is tuned on (`private_gradients.py`)
    private: PrivacySettings | None = None
    #: prefix tuning, or MMRL; null: its vectors are inputs of the first layer alone
    prefix: PrefixSettings | None = None
    space: SpaceSettings | None = None

    @model_validator(mode="after")
    def _check_start(self) -> PromptSettings:
        given = [name for name in ("text", "source", "context") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"a prompt begins as one thing, and {' and '.join(given)} are given; leave one of them out"
            )
        if self.context is not None and "length" in self.model_fields_set:
            raise ValueError("a prompt of examples is as long as they are; leave length out")
        deep = [name for name in ("prefix", "space") if getattr(self, name) is not None]
        others = [name for name in ("source", "context", "private") if getattr(self, name) is not None]
        if len(deep) > 1 or (deep and others):
            raise ValueError(f"prompt.{deep[0]} and {(deep[1:] + others)[0]} exclude each other; leave one of them out")
        if self.space is not None and self.length % 2:
            raise ValueError(f"prompt.length is {self.length}, and half of prompt.space is for media; make it even")
        return self
