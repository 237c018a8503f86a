"""The model's own reading of its speech by CTC: how probable the words are given the codes, in nats a token.

For a model that was trained with a CTC loss at its audio codes (`objectives/ctc.py`; `reading` in its
processor_config.json). `wish` says where the words stand in the request, as for `caption`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unimodal.generation.engine import Engine
from unimodal.generation.search.ctc_verifier import CtcVerifier
from unimodal.sequence.document import Document, Media, Text, Turn, make_part
from unimodal.tuning.rewards.caption import CaptionReward, CaptionSettings
from unimodal.tuning.rewards.reward import Attempt, RewardContext

LEAST = -20.0  # nats a token: of an answer without a sound, or with too few codes for the words


class CtcReward(CaptionReward):
    def __init__(self, cfg: CaptionSettings) -> None:
        super().__init__(cfg)

    def __call__(self, attempts: Sequence[Attempt], context: RewardContext) -> list[float]:
        return [max(LEAST, self._score(attempt, context)) for attempt in attempts]

    def _score(self, attempt: Attempt, context: RewardContext) -> float:
        reading = None if context.media is None else context.media.processor.reading
        if reading is None:
            raise ValueError("the reward ctc needs a model that reads its codes by CTC; this one has no `reading`")
        vocabulary, template = context.template.vocabulary, context.template
        medium = attempt.medium
        if medium is None or medium.modality != reading.modality:
            return LEAST
        layout = vocabulary.get_layout(reading.modality)
        codes = vocabulary.get_block_range(layout.segments[layout.open_segment or 0].block)
        question = Text(self.cfg.question or context.questions.get(reading.modality, ""))

        def ask_about(part: Media) -> Turn:
            return Turn("user", [part, question] if question.text else [part])

        def render_question(answer: list[int]) -> list[int]:
            part = make_part(reading.modality, [row - codes.start for row in answer])
            return template.render(Document([ask_about(part)]), add_generation_prompt=True).ids.tolist()

        answered = template.render(Document([ask_about(medium), Turn("assistant", self.read_caption(attempt.words))]))
        words = [label for label in answered.labels.tolist() if 0 <= label < vocabulary.text_size]
        rows = [row for row in vocabulary.encode_span(medium.modality, medium.require_codes(), None) if row in codes]
        engine = Engine(context.model, vocabulary, "reference")
        verifier = CtcVerifier(engine, render_question, words, codes, vocabulary.get_control_id(reading.blank))
        with torch.no_grad():
            return verifier([rows])[0] if rows else LEAST
