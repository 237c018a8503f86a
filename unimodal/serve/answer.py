"""The tokens of one answer, as they come → words, media and partial pictures.

The thread of the worker calls `AnswerReader` for every token, so it must be quick: it decodes words, cuts them at a
stop text, and gathers the codes of spans. It hands what it finds to `emit`.

Shapes: N codes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unimodal.coder.partial import SHOWN_AFTER
from unimodal.generation.request import CompressionEvent, TokenEvent
from unimodal.pipeline import Unimodal
from unimodal.text.tokenizer import TextStream


@dataclass(frozen=True)
class WordsPiece:
    """Some words of an answer."""

    text: str


@dataclass(frozen=True, eq=False)
class MediumPiece:
    """A finished medium of an answer: its codes int64 [N] or [N, G], and its number among the media of the answer."""

    modality: str
    codes: np.ndarray
    index: int


@dataclass(frozen=True, eq=False)
class PartialPiece:
    """The first codes, int64 [N], of a picture that is being written."""

    codes: np.ndarray
    index: int


Piece = WordsPiece | MediumPiece | PartialPiece


class AnswerReader:
    """The `on_token` of one request.

    stop: texts that end the answer; they are not part of it. partial: emit pictures while they are written. emit:
    called with every piece as soon as it is there. `pieces` are all pieces so far, except partial ones; `compressed`
    is what compression left of the prompt, once it was read under compression.
    """

    def __init__(
        self,
        model: Unimodal,
        stop: Sequence[str] = (),
        partial: bool = False,
        emit: Callable[[Piece], None] = lambda piece: None,
    ) -> None:
        self.model, self.stop, self.partial, self.emit = model, stop, partial, emit
        self.pieces: list[WordsPiece | MediumPiece] = []
        self.stopped = False
        self.compressed: CompressionEvent | None = None
        self._stream: TextStream | None = None  # of the run of words that is being written
        self._first = False  # whether nothing of that run has been given yet
        self._held = ""  # words that may be the beginning of a stop text
        self._span: list[int] = []
        self._num_media = 0

    def __call__(self, event: TokenEvent) -> bool:
        """Returns True once a stop text has come."""
        vocabulary = self.model.vocabulary
        if vocabulary.is_text(event.id):
            if self._stream is None:
                self._stream, self._first = self.model.template.text.stream(), True
            self._add_words(self._stream.push(event.id))
        elif event.modality == "text":  # the end of the turn
            self._end_words()
        else:
            if vocabulary.find_opened_medium(event.id):
                self._end_words()
                self._span = []
            if not self.stopped:
                self._add_code(event)
        return self.stopped

    def note_compression(self, event: CompressionEvent) -> None:
        """Called once the prompt was read under compression."""
        self.compressed = event

    def finish(self) -> None:
        """Ends the answer; to be called when the row is done, whatever ended it."""
        self._end_words()

    @property
    def text(self) -> str:
        """All words so far."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, WordsPiece))

    @property
    def media(self) -> list[MediumPiece]:
        """All finished media so far."""
        return [piece for piece in self.pieces if isinstance(piece, MediumPiece)]

    def _add_code(self, event: TokenEvent) -> None:
        self._span.append(event.id)
        vocabulary = self.model.vocabulary
        if event.id == vocabulary.get_end_id(event.modality):
            modality, codes = vocabulary.decode_span(self._span)
            self._give(MediumPiece(modality, codes, self._num_media))
            self._num_media += 1
        elif self.partial and event.modality == "image" and len(self._span) - 1 in SHOWN_AFTER:
            blocks = [vocabulary.find_block(row) for row in self._span[1:]]
            codes = np.array([row - block.start for row, block in zip(self._span[1:], blocks, strict=True) if block])
            self.emit(PartialPiece(codes, self._num_media))

    def _add_words(self, new: str) -> None:
        if not new or self.stopped:
            return
        if self._first:  # every run of words begins with a space, which the first run of an answer drops
            self._first, new = False, new.removeprefix(" ")
            if any(isinstance(piece, WordsPiece) for piece in self.pieces):
                new = " " + new
        text = self._held + new
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            text, self._held = text[: min(ends)], ""
        else:
            held = max((_count_overlap(text, stop) for stop in self.stop), default=0)
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        if text:
            self._give(WordsPiece(text))

    def _end_words(self) -> None:
        if self._stream is not None:
            self._add_words(self._stream.finish())
            self._stream = None
        if self._held and not self.stopped:
            self._give(WordsPiece(self._held))
        self._held = ""

    def _give(self, piece: WordsPiece | MediumPiece) -> None:
        self.pieces.append(piece)
        self.emit(piece)


def _count_overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
