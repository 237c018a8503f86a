"""Search for the picture that its own model names best: `model.generate(prompt, to="image", search="beam")`.

The verifier shows a candidate to the model, asks the trained question, and scores the prompt's own words as the answer.
It prefers the picture in which the model most surely sees what was asked for. A partial answer is decoded to its coarse
picture and encoded again, so that it is read as any picture is.

Legend: N code steps, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from unimodal.generation.request import Composition
from unimodal.generation.search import make_search
from unimodal.generation.search.base import Search, Verifier, Writer
from unimodal.pipeline.composed import ComposedAnswer
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.requests import Prepared
from unimodal.sequence.document import Document, Media, Text, Turn


def phrase_caption(model: LoadedModel, prepared: Prepared) -> str:
    """What the model should call the answer to a request: the words of its last turn."""
    words = prepared.document.turns[-1].text
    return model.wording.extract_speech(words) or model.wording.phrase_caption(words, str(prepared.settings.to))


class CaptionVerifier:
    """Scores answers by the model's log-likelihood, per token, of ``caption`` as the answer to the trained question.

    It is asked of what was made, decoded and encoded anew, and not of the codes: of these it reads off what it meant.
    """

    def __init__(self, model: LoadedModel, modality: str, caption: str) -> None:
        self.model, self.modality, self.caption = model, modality, caption

    def __call__(self, answers: Sequence[list[int]]) -> list[float]:
        model = self.model
        question, prompts, captions = Text(model.wording.ask(self.modality)), [], []
        for part in self._look_at([self.read_codes(answer) for answer in answers]):
            shown = Document([Turn("user", [part, question])])
            prompt = model.read(model.template.render(shown, add_generation_prompt=True))
            named = Document([*shown.turns, Turn("assistant", self.caption)])
            prompts.append(prompt)
            captions.append(model.template.render(named).ids.tolist()[len(prompt) :])
        scores = model.engine.compute_log_likelihood(prompts, captions)
        return [score / len(caption) for score, caption in zip(scores, captions, strict=True)]

    def read_codes(self, answer: Sequence[int]) -> np.ndarray:
        """The codes of a whole or partial span, int64 [N], or [N, G] of whole steps if there are several groups."""
        by_group: dict[int, list[int]] = {}  # of each group the steps come in order, whatever the order of groups
        for row in answer:
            block = self.model.vocabulary.find_block(row)
            if block is not None:
                by_group.setdefault(block.group, []).append(row - block.start)
        steps = min(map(len, by_group.values()), default=0)
        codes = np.array([by_group[group][:steps] for group in sorted(by_group)], dtype=np.int64).T
        return codes.reshape(-1) if len(by_group) < 2 else codes

    def _look_at(self, drawn: list[np.ndarray]) -> list[Media]:
        """What whole or partial answers show, read anew: codes that were written may promise what no pixel keeps."""
        coder = self.model.coder
        return coder.encode_parts(self.modality, coder.decode(self.modality, drawn))


def make_search_answer(
    model: LoadedModel, prepared: Prepared, caption: str, judged_at_once: int | None = None
) -> ComposedAnswer:
    """The best answer that the search of a request's settings finds.

    caption: what the model should call it. judged_at_once: answers that are scored in one piece of work; None: all.
    Raises ValueError for settings that the search does not have, and for codes that do not suit it.
    """
    settings, modality = prepared.settings, prepared.settings.to
    assert settings.search is not None
    if modality in (None, "text"):
        raise ValueError("search chooses between media; leave it out for text, or say which medium: to='image'")
    if settings.decoder is not None:
        raise ValueError("search does not go with decoder; leave one of them out")
    method = make_search(settings.search, **(settings.search_settings or {}))
    if method.partial and not model.coder.get_tokenizer(modality).ordered:
        raise ValueError(
            f"{settings.search} judges partial answers, but the {modality} codes of this model are not ordered; "
            "use best-of-n or lookahead"
        )
    verifiers = [CaptionVerifier(model, modality, caption)]
    if prepared.utterances:
        verifiers = [CaptionVerifier(model, modality, phrase_caption(model, one)) for one in prepared.utterances]
    parts = [
        partial(find_best, model, method, one, verifier, judged_at_once)
        for one, verifier in zip(prepared.utterances or (prepared,), verifiers, strict=True)
    ]
    return ComposedAnswer(modality, parts, end=model.vocabulary.get_control_id("<|end_of_turn|>"))


def find_best(
    model: LoadedModel, method: Search, prepared: Prepared, verifier: Verifier, judged_at_once: int | None
) -> Composition[list[int]]:
    """The ids of the answer that a search finds best."""
    writer = Writer(model.engine, prepared.prompt, prepared.config, judged_at_once)
    found = yield from method.compose(writer, verifier)
    return found.answer
