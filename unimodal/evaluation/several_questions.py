"""Several questions about one picture: what a compressed picture is worth to a question that came later.

A method that judges by the words keeps what the first question needs. So each question is asked in two ways:

- `with`: of a prompt of its own, with the picture, as if it were the only one;
- `after`: as a later turn, behind the picture, the first question and its right answer. The picture was read with the
  first question alone, and every later one finds what that left.

Pictures are prepared scenes, each with up to seven questions (what, how many, which colour, where, how big, before
what, whether). An answer is right if it has the words of the scene's own; a name, if it holds that of the thing. The
first question of a picture is not counted in either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unimodal.data.order import make_generator
from unimodal.data.scenes.scene import Kind
from unimodal.data.scenes.words import Question
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.cached_answers import continue_greedily, continue_rows
from unimodal.evaluation.prepared_scenes import PreparedScenes, ask, is_same_answer, is_thing_named
from unimodal.pipeline import Unimodal
from unimodal.pipeline.requests import count_answer_tokens
from unimodal.sequence.document import Document, Image, Text, Turn, Video

STILL: tuple[Kind, ...] = ("one", "count", "place", "pair")  # scenes that are pictures


@dataclass(frozen=True)
class SeveralQuestions:
    """Pictures with all questions of each, at least two, the first of which is only read. rows: of the scenes."""

    prepared: PreparedScenes
    rows: list[int]
    media: list[Image | Video]
    questions: list[list[Question]]

    @classmethod
    def load(cls, model: Unimodal, data: Path, number: int, seed: int) -> SeveralQuestions:
        """Scenes that were never trained on, until at least `number` questions count, or all. Raises ValueError for
        missing data."""
        prepared = PreparedScenes.load(data)
        rows: list[int] = []
        questions: list[list[Question]] = []
        for row in prepared.find_rows("combination", STILL, None, seed).tolist():
            asked = prepared.find_words(row).ask_all(make_generator("several", seed, row))
            if len(asked) > 1:
                rows.append(row)
                questions.append(asked)
            if sum(len(each) - 1 for each in questions) >= number:
                break
        if not rows:
            raise ValueError(f"{data / 'scenes'} has no scene with several questions; make them again")
        media = prepared.encode(model, torch.tensor(rows).numpy(), lambda *_: None)
        return cls(prepared, rows, media, questions)

    @property
    def groups(self) -> list[int]:
        """Of each question that counts, the number of its picture."""
        return [number for number, asked in enumerate(self.questions) for _ in asked[1:]]

    def judge(self, answers: Sequence[str]) -> list[float]:
        """1 for each right answer to the questions that count, and 0 for the others."""
        right = [question for asked in self.questions for question in asked[1:]]
        scores = []
        for answer, question, number in zip(answers, right, self.groups, strict=True):
            thing = self.prepared.things[self.prepared.scenes[self.rows[number]].things[0].thing]
            named = question.about == "what" and is_thing_named(answer, thing, self.prepared.things)
            scores.append(float(named or is_same_answer(answer, question.answer)))
        return scores

    def answer_alone(self, model: Unimodal, seed: int, blind: bool = False) -> list[str]:
        """The answers to each question in a prompt of its own, as long as those behind another question at most. blind:
        without the picture."""
        documents = [
            Document([Turn("user", [Text(question.text)])]) if blind else ask(self.media[number], question.text)
            for number, asked in enumerate(self.questions)
            for question in asked[1:]
        ]
        return answer_texts(model, documents, seed, lambda *_: None, "plain", count_answer_tokens(model, "text"))

    def answer_later(self, model: Unimodal) -> list[str]:
        """The answers to each question behind what reading the picture with its first question left, greedily."""
        return [
            answer
            for medium, asked in zip(self.media, self.questions, strict=True)
            for answer in answer_later(model, medium, asked)
        ]


@torch.inference_mode()
def answer_later(model: Unimodal, medium: Image | Video, asked: Sequence[Question]) -> list[str]:
    """The answers to all but the first question about a medium, each behind the first turn alone."""
    from transformers import DynamicCache

    own, first = model.engine.model, ask(medium, asked[0].text)
    prompt = model.read(model.template.render(first, add_generation_prompt=True))
    cache = DynamicCache(config=own.config)
    continue_greedily(own, prompt, cache, 1, ())
    end = model.vocabulary.get_control_id("<|end_of_turn|>")
    allowed = torch.zeros(int(own.config.vocab_size), dtype=torch.bool, device=own.device)
    for rows in model.vocabulary.text_ranges:
        allowed[rows.start : rows.stop] = True
    allowed[end] = True
    behind: list[list[int]] = []
    for question in asked[1:]:
        turns = [*first.turns, Turn("assistant", [Text(asked[0].answer)]), Turn("user", [Text(question.text)])]
        whole = model.read(model.template.render(Document(turns), add_generation_prompt=True))
        assert whole[: len(prompt)] == prompt, "a template writes what was said as it was said"
        behind.append(whole[len(prompt) :])
    answers = []
    for ids in continue_rows(own, behind, cache, count_answer_tokens(model, "text"), (end,), allowed):
        said = model.template.parse_answer([one for one in ids if one != end])
        answers.append(" ".join(part.text for part in said if isinstance(part, Text)).strip())
    return answers
