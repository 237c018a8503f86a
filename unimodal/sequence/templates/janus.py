"""Janus's format (arXiv 2410.13848): a chat in words, and a picture drawn for a prompt.

    <bos> {system}\\n\\n <|User|>: <picture>\\nWhat is this?\\n\\n <|Assistant|>: An animal <eos>
    <bos> <|User|>: a red apple\\n\\n <|Assistant|>: <begin_of_image> 576 codes <end_of_image> <eos>

Janus reads pictures as continuous features of another network and not as codes: in a chat `<picture>` is
`<begin_of_image>`, 576 times `<image_placeholder>` and `<end_of_image>`, with a line break between it and the other
parts of its turn. A picture that Janus drew is read in the same way in later turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from unimodal.sequence.document import Document, Media, Part, Text, Turn
from unimodal.sequence.templates.own import Rendered
from unimodal.sequence.templates.runs import ParsedItem, Run, RunTemplate
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary

BREAK = "\n\n"


class JanusTemplate(RunTemplate):
    """A chat about pictures in words, or one prompt and its picture."""

    answer_prefix = " "

    def __init__(self, vocabulary: Vocabulary, text: TextTokenizer) -> None:
        super().__init__(vocabulary, text)
        self._marks = {role: vocabulary.get_control_id(f"<|{role}|>") for role in ("user", "assistant")}
        self._roles = {row: role for role, row in self._marks.items()}

    def write_runs(self, document: Document, prompt: bool, to: str | None) -> Iterator[Run]:
        turns = document.turns
        for number, turn in enumerate(turns):
            media = [part for part in turn.parts if isinstance(part, Media)]
            draws = turn.role == "assistant" and not prompt and number + 1 == len(turns)
            if media and not draws:
                self._check_readable(to)
            if draws and (len(media) > 1 or (media and len(turn.parts) > 1)):
                raise ValueError("Janus draws one picture and no words beside it; give the assistant's turn that alone")
            if turn.role == "system":
                if number or media:
                    raise ValueError("Janus's system turn is the first and is words; put it there")
                yield Run(f"{turn.text}{BREAK}")
                continue
            answer = turn.role == "assistant"
            yield Run([self._marks[turn.role]])
            yield Run(":")
            if draws and media:
                yield self.make_media_run(media[0], True, turn.learn)
            else:
                yield from self._write_parts(turn, answer)
            yield Run([self._end_of_turn], True, learn=turn.learn) if answer else Run(BREAK)
        if prompt:
            yield Run([self._marks["assistant"]])
            yield Run(":")

    def _write_parts(self, turn: Turn, answer: bool) -> Iterator[Run]:
        """The runs behind the colon of a turn; each picture has a line of its own."""
        yield Run(" ", answer, learn=turn.learn)
        for index, part in enumerate(turn.parts):
            if isinstance(part, Text):
                yield Run(part.text, answer, learn=turn.learn)
                continue
            if index:
                yield Run("\n", answer, learn=turn.learn)
            yield self.make_features_run(part)
            if index + 1 < len(turn.parts):
                yield Run("\n", answer, learn=turn.learn)

    def _check_readable(self, to: str | None) -> None:
        if self.vocabulary.get_layout("image").features is None:
            raise ValueError(
                "Janus understands pictures through continuous features, and this model was converted without their "
                "reader: convert the checkpoint again, or leave the picture out"
            )
        if to == "image":
            raise ValueError("Janus draws for words alone; leave the pictures out, or ask about them in words")

    def render_unconditional(self, document: Document, negative: Document | None, to: str | None) -> Rendered:
        """The negative prompt; by default the prompt with all tokens but the first as pads, as Janus was trained."""
        if negative is not None:
            return super().render_unconditional(document, negative, to)
        prompt = self.render(document, add_generation_prompt=True, to=to)
        return Rendered(np.where(prompt.ids == self._bos, prompt.ids, self._pad), prompt.labels, prompt.modality)

    def read_document(self, items: Sequence[ParsedItem]) -> Document:
        turns: list[Turn] = []
        if items and isinstance(items[0], str):
            if not items[0].endswith(BREAK):
                raise ValueError("Janus's system turn ends with an empty line")
            turns.append(Turn("system", items[0].removesuffix(BREAK)))
            items = items[1:]
        begins = [index for index, item in enumerate(items) if isinstance(item, int) and item in self._roles]
        if begins[:1] != [0] and items:
            raise ValueError("a turn must begin with a role")
        for begin, end in pairwise([*begins, len(items)]):
            role = self._roles[int(items[begin])]  # type: ignore[arg-type]
            turns.append(Turn(role, self._read_parts(role, list(items[begin + 1 : end]))))
        return Document(turns)

    def _read_parts(self, role: str, items: list[ParsedItem]) -> list[Part]:
        """The parts of a turn, from the items behind its mark."""
        head = items.pop(0) if items else ""
        if not isinstance(head, str) or not head.startswith(":"):
            raise ValueError(f"the {role}'s turn does not begin with a colon")
        text = head[1:].removeprefix(" ")
        if role == "user":
            if items or not text.endswith(BREAK):
                raise ValueError("the user's turn is words and an empty line")
            text = text.removesuffix(BREAK)
        elif items and items[-1] == self._end_of_turn:
            items.pop()
        if any(not isinstance(item, Media) for item in items) or len(items) > 1 or (items and text):
            raise ValueError("the assistant's turn is words or one picture")
        media = [item for item in items if isinstance(item, Media)]
        parts: list[Part] = [Text(text)] if text else []
        return [*parts, *media]  # type: ignore[list-item]
