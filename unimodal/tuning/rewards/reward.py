"""What a reward is: a number for each answer that the model wrote itself; higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.sequence.document import Document, Media, Part, Text
from unimodal.sequence.templates.own import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Attempt:
    """An answer of the model's own. question: without the answer. answer: its parts, media with codes.

    reference: the parts of the row's own answer; empty for a row without one.
    """

    question: Document
    answer: tuple[Part, ...]
    reference: tuple[Part, ...] = ()

    @property
    def words(self) -> str:
        """The texts of the last question."""
        return self.question.turns[-1].text

    @property
    def medium(self) -> Media | None:
        """The first medium of the answer."""
        return find_medium_part(self.answer)


def find_medium_part(parts: Sequence[Part]) -> Media | None:
    """The first medium among parts."""
    return next((part for part in parts if not isinstance(part, Text)), None)


@dataclass
class RewardContext:
    """What rewards work with: the model of the start, its template, and the media tokenizers."""

    model: PreTrainedModel
    template: Template
    media: MediaCoder | None
    #: medium → what to ask about one, in the words of the model's training
    questions: dict[str, str] = field(default_factory=dict)

    def decode(self, part: Media) -> tuple[Tensor, float | None]:
        """The medium of codes as `MediaCoder.decode` gives it, and its rate."""
        assert self.media is not None
        output = self.media.decode_part(part)
        assert isinstance(output.media, Tensor)
        return output.media, output.rate


class Reward(Protocol):
    """Scores attempts, which may be of several questions. An answer that cannot be scored gets the least there is."""

    def __call__(self, attempts: Sequence[Attempt], context: RewardContext) -> list[float]: ...
