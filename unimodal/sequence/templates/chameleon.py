"""Chameleon's format (arXiv 2405.09818): words and pictures in any order, and one mark between a prompt and its answer.

    <s> What is this? <racm3:break> 1,024 codes <eoss> <reserved08706> An apple </s> And this? … <reserved08706>

There are no role words: turns alternate, the user's first. There is no system turn. The unconditional prompt of
guidance holds the pictures of the prompt alone, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.sequence.templates.own import Rendered
from unimodal.sequence.templates.runs import ParsedItem, Run, RunTemplate
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary


class ChameleonTemplate(RunTemplate):
    """Turns alternate, the user's first, with a mark behind each."""

    def __init__(self, vocabulary: Vocabulary, text: TextTokenizer) -> None:
        super().__init__(vocabulary, text)
        self._answer = vocabulary.get_control_id("<|assistant|>")

    def write_runs(self, document: Document, prompt: bool, to: str | None) -> Iterator[Run]:
        for number, turn in enumerate(document.turns):
            wanted = ("user", "assistant")[number % 2]
            if turn.role != wanted:
                raise ValueError(
                    f"turn {number + 1} is the {turn.role}'s; Chameleon's turns alternate, the user's first"
                )
            answer = turn.role == "assistant"
            for part in turn.parts:
                if isinstance(part, Text):
                    yield Run(part.text, answer, learn=turn.learn)
                else:
                    yield self.make_media_run(part, answer, turn.learn)
            yield Run([self._end_of_turn if answer else self._answer], answer, learn=turn.learn)
        if prompt and len(document.turns) % 2 == 0:
            raise ValueError("there is no user's turn to answer; give one")

    def render_unconditional(self, document: Document, negative: Document | None, to: str | None) -> Rendered:
        """The negative prompt; by default the prompt without words and marks, as Chameleon was sampled."""
        if negative is not None:
            return super().render_unconditional(document, negative, to)
        prompt = self.render(document, add_generation_prompt=True, to=to)
        kept = (prompt.modality > 0) | (prompt.ids == self._bos)
        return Rendered(prompt.ids[kept], prompt.labels[kept], prompt.modality[kept])

    def read_document(self, items: Sequence[ParsedItem]) -> Document:
        turns: list[Turn] = []
        parts: list[Part] = []
        open_turn = False
        for item in items:
            role = ("user", "assistant")[len(turns) % 2]
            if isinstance(item, int):
                if item != (self._answer if role == "user" else self._end_of_turn):
                    raise ValueError(f"row {item} stands where Chameleon's format has none")
                turns.append(Turn(role, parts))
                parts, open_turn = [], False
            else:
                parts.append(Text(item) if isinstance(item, str) else item)
                open_turn = True
        if open_turn:
            turns.append(Turn(("user", "assistant")[len(turns) % 2], parts))
        return Document(turns)
