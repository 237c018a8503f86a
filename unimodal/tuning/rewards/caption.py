"""The model's own caption: how likely the model of the start is to say, of what was made, what was asked for.

The mean log-probability of the caption's tokens, in nats. A picture that its maker would describe by other words scores
low. `wish` says where the caption stands in the request: "draw {text}." of "draw a red apple." gives "a red apple".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import field_validator

from unimodal.config import Config
from unimodal.generation.engine import Engine
from unimodal.sequence.document import Document, Text, Turn
from unimodal.tuning.rewards.reward import Attempt, RewardContext

LEAST = -20.0  # nats a token: of an answer without a medium


class CaptionSettings(Config):
    wish: str = "{text}"
    question: str | None = None  # asked about the medium; None: as the model asks about such media
    #: ask about what the codes show, decoded and encoded anew; False: about the codes themselves, of which a model
    #: reads off what it meant to make, and learns to mean it rather than to make it
    look: bool = True

    @field_validator("wish")
    @classmethod
    def _check_wish(cls, wish: str) -> str:
        if wish.count("{text}") != 1:
            raise ValueError(f"wish is {wish!r}; it holds {{text}} once, where the caption stands")
        return wish


class CaptionReward:
    def __init__(self, cfg: CaptionSettings) -> None:
        self.cfg = cfg
        before, after = cfg.wish.split("{text}")
        self._wish = re.compile(rf"{re.escape(before)}(.+){re.escape(after)}", re.DOTALL)

    def read_caption(self, words: str) -> str:
        """The caption in a request. Raises ValueError for a request of another form."""
        found = self._wish.fullmatch(words)
        if found is None:
            raise ValueError(f"the request {words[:60]!r} is not of the form {self.cfg.wish!r}; set its wish")
        return found[1]

    def __call__(self, attempts: Sequence[Attempt], context: RewardContext) -> list[float]:
        prompts, answers, scores = [], [], [LEAST] * len(attempts)
        scored = []
        for number, attempt in enumerate(attempts):
            medium = attempt.medium
            if medium is None:
                continue
            if self.cfg.look and context.media is not None:
                [medium] = context.media.encode_parts(medium.modality, [context.decode(medium)[0]])
            question = self.cfg.question or context.questions.get(medium.modality, "")
            asked = Turn("user", [medium, Text(question)] if question else [medium])
            caption = Turn("assistant", self.read_caption(attempt.words))
            rendered = context.template.render(Document([asked, caption]))
            begin = int((rendered.labels >= 0).argmax())
            prompts.append(rendered.ids[:begin].tolist())
            answers.append(rendered.ids[begin:].tolist())
            scored.append(number)
        found = Engine(context.model, context.template.vocabulary, "reference").compute_log_likelihood(prompts, answers)
        for number, value, answer in zip(scored, found, answers, strict=True):
            scores[number] = value / len(answer)
        return scores
