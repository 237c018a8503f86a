"""Search for the picture that its own model names best: `model.generate(prompt, to="image", search="beam")`.

The verifier shows a candidate to the model, asks the trained question, and scores the prompt's own words as the answer:
the picture in which the model is surest to see what was asked for. A partial answer is decoded to its coarse picture
and encoded again, so that it is read as any picture is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unimodal.generation.engine import GenerationConfig
from unimodal.generation.search import make_search
from unimodal.generation.search.base import Found, Verifier
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn

if TYPE_CHECKING:
    from unimodal.pipeline.unimodal import Unimodal


class CaptionVerifier:
    """Scores answers by the model's log-likelihood of ``caption`` as the answer to the trained question, a token."""

    def __init__(self, model: Unimodal, modality: str, caption: str) -> None:
        self.model, self.modality, self.caption = model, modality, caption

    def __call__(self, answers: Sequence[list[int]]) -> list[float]:
        model = self.model
        codes = [self._whole(self.codes(answer)) for answer in answers]
        question, prompts, captions = Text(model.wording.question(self.modality)), [], []
        for shown in codes:
            asked = Document([Turn("user", [MEDIA_PARTS[self.modality](codes=shown), question])])
            prompt = model.read(model.template.render(asked, add_generation_prompt=True))
            told = Document([*asked.turns, Turn("assistant", self.caption)])
            prompts.append(prompt)
            captions.append(model.template.render(told).ids.tolist()[len(prompt) :])
        scores = model.engine.log_likelihood(prompts, captions)
        return [score / len(caption) for score, caption in zip(scores, captions, strict=True)]

    def codes(self, answer: Sequence[int]) -> np.ndarray:
        """The codes of a whole or partial span, int64 [N], or [N, G] of whole steps where there are several groups."""
        blocks = [self.model.vocabulary.block_of(row) for row in answer]
        codes = [row - block.start for row, block in zip(answer, blocks, strict=True) if block is not None]
        groups = len({block.group for block in blocks if block is not None}) or 1
        flat = np.array(codes[: len(codes) // groups * groups], dtype=np.int64)
        return flat if groups == 1 else flat.reshape(-1, groups)

    def _whole(self, codes: np.ndarray) -> np.ndarray:
        layout = self.model.vocabulary.layout(self.modality)
        if layout.open_segment is not None or len(codes) == layout.fixed_steps:
            return codes
        coder = self.model.coder
        return coder.encode(self.modality, coder.decode(self.modality, [codes]))[0]


def search(
    model: Unimodal,
    prompt: list[int],
    config: GenerationConfig,
    method: str,
    verifier: Verifier,
    **settings: Any,
) -> Found:
    """The best answer that a search of that name finds. Raises ValueError where the codes do not suit it."""
    made = make_search(method, **settings)
    assert config.force is not None
    if made.partial and not model.coder.tokenizer(config.force).ordered:
        raise ValueError(
            f"{method} judges partial answers, but the {config.force} codes of this model are not ordered; "
            "use best-of-n or lookahead"
        )
    return made.run(model.engine, prompt, config, verifier)
