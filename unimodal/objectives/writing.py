"""How the codes of a medium are written by a model that learnt them under another mask than the causal one.

An objective whose settings extend `SpanConfig` says so, the recipes write it into the model's folder
(`processor_config.json`), and whoever loads the folder decodes by it. Imports no torch.
"""

from __future__ import annotations

from pydantic import Field, JsonValue

from unimodal.config import Config


class SpanWriting(Config):
    """The decoders that ask a model what it has learnt.

    objective: the name of what it was trained with. decoders: name → its settings; the first is used where a request
    names none. token_by_token: whether the codes were learnt one after the other as well, so that every decoder for
    causal models, and a stock class, can write them too.
    """

    objective: str
    decoders: dict[str, dict[str, JsonValue]] = Field(min_length=1)
    token_by_token: bool = False

    @property
    def decoder(self) -> str:
        """The decoder that is used where a request names none."""
        return next(iter(self.decoders))

    @property
    def remedy(self) -> str:
        """What makes such a model one that writes token by token as well."""
        return f"train with objective.{self.objective}.share below 1"


class SpanConfig(Config):
    """The settings of an objective that trains spans of codes under a mask of its own.

    share: of the documents with codes to learn, those that are so trained; the others are learnt token by token.
    """

    share: float = Field(default=1.0, gt=0, le=1)

    def describe_writing(self) -> SpanWriting:
        """How a model so trained writes."""
        raise NotImplementedError
