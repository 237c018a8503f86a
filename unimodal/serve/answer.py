"""The tokens of one answer, as they come, into words, media and partial pictures.

`AnswerReader` is called by the worker's thread for every token and must be quick: it decodes words, cuts them at a stop
text, and gathers the codes of spans. What it finds it hands to `emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unimodal.pipeline import Unimodal
from unimodal.pipeline.rows import STEPS, TokenEvent


@dataclass
class Piece:
    """Something new of an answer. kind: "text", "medium" or "partial"; index counts the media of the answer."""

    kind: str
    text: str = ""
    modality: str = ""
    codes: np.ndarray | None = None
    index: int = 0


@dataclass
class AnswerReader:
    """on_token of one request. ``pieces`` are all so far but partial ones; ``emit`` gets every piece at once."""

    model: Unimodal
    stop: Sequence[str] = ()
    partial: bool = False
    emit: Callable[[Piece], None] = lambda piece: None
    pieces: list[Piece] = field(default_factory=list)
    num_tokens: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self._stream: Any = None  # of the run of text that is being written
        self._held = ""  # text that may be the beginning of a stop text
        self._span: list[int] = []
        self._num_media = 0

    def __call__(self, event: TokenEvent) -> bool:
        """True once a stop text has come."""
        self.num_tokens += 1
        vocabulary = self.model.vocabulary
        if vocabulary.is_text(event.id):
            if self._stream is None:
                self._stream, self._first = self.model.template.text.stream(), True
            self._text(self._stream.push(event.id))
        elif event.modality == "text":  # the end of the turn
            self._end_text()
        else:
            if vocabulary.span_started_by(event.id):
                self._end_text()
                self._span = []
            if not self.stopped:
                self._media(event)
        return self.stopped

    def finish(self) -> None:
        """To be called when the row is done, whatever ended it."""
        self._end_text()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == "text")

    def _media(self, event: TokenEvent) -> None:
        self._span.append(event.id)
        vocabulary = self.model.vocabulary
        if event.id == vocabulary.end_id(event.modality):
            modality, codes = vocabulary.decode_span(self._span)
            self._give(Piece("medium", modality=modality, codes=codes, index=self._num_media))
            self._num_media += 1
        elif self.partial and event.modality == "image" and len(self._span) - 1 in STEPS:
            blocks = [vocabulary.block_of(row) for row in self._span[1:]]
            codes = np.array([row - block.start for row, block in zip(self._span[1:], blocks, strict=True) if block])
            self._give(Piece("partial", modality="image", codes=codes, index=self._num_media))

    def _text(self, new: str) -> None:
        if not new or self.stopped:
            return
        if self._first:  # every run of text is written with a space before it
            self._first, new = False, new.removeprefix(" ")
            if self.pieces and any(piece.kind == "text" for piece in self.pieces):
                new = " " + new
        text = self._held + new
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            text, self._held = text[: min(ends)], ""
        else:
            held = max((_overlap(text, stop) for stop in self.stop), default=0)
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        if text:
            self._give(Piece("text", text))

    def _end_text(self) -> None:
        if self._stream is not None:
            self._text(self._stream.finish())
            self._stream = None
        if self._held and not self.stopped:
            self._give(Piece("text", self._held))
        self._held = ""

    def _give(self, piece: Piece) -> None:
        if piece.kind != "partial":
            self.pieces.append(piece)
        self.emit(piece)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
