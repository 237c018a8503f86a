"""Emu3's format (arXiv 2409.18869). A chat, and a picture drawn for a prompt:

    <bos> You are a helpful assistant. USER: <picture>Describe it. ASSISTANT: An apple <eos>
    <bos> a red apple <picture> <eos>

Roles are plain words, so a text with `USER: ` or `ASSISTANT:` is refused: it would begin a turn. Every answer ends with
`<eos>`, as the model writes it; transformers' chat template leaves it out before a further turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from unimodal.sequence.document import Document, Image, Media, Part, Text, Turn
from unimodal.sequence.templates.runs import ParsedItem, Run, RunTemplate

USER, ASSISTANT = "USER: ", "ASSISTANT:"
_MARKS = re.compile(f"({USER}|{ASSISTANT})")


class Emu3Template(RunTemplate):
    """A chat whose roles are words, or one prompt and its picture."""

    answer_prefix = " "

    def write_runs(self, document: Document, prompt: bool, to: str | None) -> Iterator[Run]:
        turns = document.turns
        answer = turns[-1].parts if turns and turns[-1].role == "assistant" and not prompt else ()
        if (prompt and to == "image") or any(isinstance(part, Image) for part in answer):
            yield from self._write_drawing(turns, answer)
            return
        if not any(turn.role == "user" for turn in turns):
            raise ValueError("a chat with Emu3 has a user's turn; give one")
        for number, turn in enumerate(turns):
            if turn.role == "system" and number:
                raise ValueError("Emu3's system turn is the first; put it there")
            if turn.role == "assistant":
                yield Run(ASSISTANT)
                for part in turn.parts:
                    if isinstance(part, Media):
                        raise ValueError("Emu3 answers in words or draws a picture alone; leave one of them out")
                    yield Run(f" {_check_plain(part)}", answer=True, learn=turn.learn)
                yield Run([self._end_of_turn], answer=True, learn=turn.learn)
                continue
            yield Run(USER if turn.role == "user" else "")
            for part in turn.parts:
                yield Run(f"{_check_plain(part)} ") if isinstance(part, Text) else self.make_media_run(part)
        if prompt:
            yield Run(ASSISTANT)

    def _write_drawing(self, turns: Sequence[Turn], answer: Sequence[Part]) -> Iterator[Run]:
        asked = turns[: len(turns) - bool(answer)]
        if len(asked) != 1 or asked[0].role != "user" or any(isinstance(part, Media) for part in asked[0].parts):
            raise ValueError("Emu3 draws for one prompt of words; leave other turns and media out")
        if len(answer) > 1:
            raise ValueError("Emu3 draws one picture and no words beside it; give the assistant's turn that alone")
        for part in asked[0].parts:
            yield Run(_check_plain(part))
        for part in answer:
            assert isinstance(part, Media)
            yield self.make_media_run(part, answer=True, learn=turns[-1].learn)
            yield Run([self._end_of_turn], answer=True, learn=turns[-1].learn)

    def read_document(self, items: Sequence[ParsedItem]) -> Document:
        texts = [item for item in items if isinstance(item, str)]
        if not any(_MARKS.search(text) for text in texts):
            return self._read_drawing(items)
        turns: list[tuple[str, list[Part]]] = [("system", [])]
        closed = False  # behind an <eos>
        for item in items:
            if isinstance(item, int):
                if item != self._end_of_turn or turns[-1][0] != "assistant" or closed:
                    raise ValueError(f"row {item} stands where Emu3's format has none")
                closed = True
                continue
            for piece in _MARKS.split(item) if isinstance(item, str) else [item]:
                role, parts = turns[-1]
                if piece in (USER, ASSISTANT):
                    turns.append(("user" if piece == USER else "assistant", []))
                    closed = False
                elif closed and piece:
                    raise ValueError("something stands between <eos> and the next turn")
                elif isinstance(piece, str) and piece:
                    parts.append(Text(piece.removeprefix(" ") if role == "assistant" else piece.removesuffix(" ")))
                elif not isinstance(piece, str):
                    parts.append(piece)
        return Document(Turn(role, parts) for role, parts in turns if role != "system" or parts)

    def _read_drawing(self, items: Sequence[ParsedItem]) -> Document:
        asked = [Text(item) for item in items[:1] if isinstance(item, str)]
        turns, rest = [Turn("user", asked)], items[len(asked) :]
        if rest:
            if not isinstance(rest[0], Image) or list(rest[1:]) not in ([], [self._end_of_turn]):
                raise ValueError("this is neither a chat with Emu3 nor a prompt and its picture")
            turns.append(Turn("assistant", [rest[0]]))
        return Document(turns)


def _check_plain(part: Part) -> str:
    """The words of a text part. Raises ValueError if they could be read as the beginning of a turn."""
    assert isinstance(part, Text)
    found = _MARKS.search(f"{part.text} ")
    if found:
        raise ValueError(
            f"the text holds {found[0].strip()!r}, which begins a turn in Emu3's format; write it otherwise"
        )
    return part.text
