"""Find the spans that may be compressed: complete media spans in the turns that the model reads.

A span in an assistant's turn, or an open one, is written by the model and will be decoded to media: it is never
compressed. Start, end and frame marks stay; only codes are compressed. A span without codes is none.

Shapes: B rows, N tokens of a call.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True)
class LocatedSpan:
    """One span of a call: its row, the columns of its codes and of its end token, and the lengths of its code runs."""

    row: int
    modality: str
    columns: tuple[int, ...]
    end: int
    segments: tuple[int, ...]


#: the modality of a run of words, which only methods of the scope "prompt" shorten
WORDS = "text"


def find_word_spans(words: Tensor, valid: Tensor) -> list[LocatedSpan]:
    """The runs of words, bool [B, N], of a call; valid bool [B, N]. The last token of a row is in none.

    The token behind a run is its end.
    """
    found: list[LocatedSpan] = []
    for row, (marks, real) in enumerate(zip(words.tolist(), valid.tolist(), strict=True)):
        last = max((column for column, one in enumerate(real) if one), default=0)
        run: list[int] = []
        for column in range(last + 1):
            if real[column] and marks[column] and column < last:
                run.append(column)
            elif run and real[column]:
                found.append(LocatedSpan(row, WORDS, tuple(run), column, (len(run),)))
                run = []
    return found


@dataclass(frozen=True, eq=False)
class TurnState:
    """What is known of every row where a call ended.

    reads: bool [B], the turn is one that the model reads. is_open: bool [B], a span of such a turn was cut off.
    """

    reads: Tensor
    is_open: Tensor

    @classmethod
    def begin(cls, num_rows: int) -> TurnState:
        """Before the first token: a row without turn marks is all input."""
        return cls(torch.ones(num_rows, dtype=torch.bool), torch.zeros(num_rows, dtype=torch.bool))

    def select_rows(self, rows: Tensor) -> TurnState:
        rows = rows.cpu()
        return TurnState(self.reads[rows], self.is_open[rows])

    def step(self) -> TurnState:
        """After single tokens, which nobody looks at: an open span may have been closed."""
        return TurnState(self.reads, torch.zeros_like(self.is_open))


def find_input_spans(
    ids: Tensor, valid: Tensor, vocabulary: Vocabulary, modalities: Collection[str], before: TurnState | None
) -> tuple[list[LocatedSpan], TurnState]:
    """The spans in ids int64 [B, N] that the model reads, and the state behind them; valid [B, N]: False for padding.

    before: the state that the last call left; None if it is unknown. Then tokens before the first turn mark are not
    compressed. Raises ValueError for a span of which an earlier call has read a part.
    """
    names = [name for name in ("system", "user", "assistant") if vocabulary.has_control(f"<|{name}|>")]
    is_read = {vocabulary.get_control_id(f"<|{name}|>"): name != "assistant" for name in names}
    starts = {vocabulary.get_start_id(name): name for name in vocabulary.media}
    ends = {vocabulary.get_end_id(name) for name in vocabulary.media}
    found: list[LocatedSpan] = []
    after = TurnState.begin(len(ids))
    for row, (tokens, real) in enumerate(zip(ids.tolist(), valid.tolist(), strict=True)):
        if before is not None and before.is_open[row] and not ends.isdisjoint(tokens):
            raise ValueError(
                "a span is read in pieces, which compression cannot shorten; read the prompt in one call, without "
                "prefill_chunk_size"
            )
        reads = before is not None and bool(before.reads[row])
        is_open, column = before is not None and bool(before.is_open[row]), 0
        while column < len(tokens):
            token = tokens[column]
            if not real[column]:
                column += 1
                continue
            reads = is_read.get(token, reads)
            name = starts.get(token)
            if name is None:
                column += 1
                continue
            try:
                end = tokens.index(vocabulary.get_end_id(name), column)
            except ValueError:  # still being written, or cut off
                is_open = reads
                break
            has_features = tokens[column + 1] >= vocabulary.size  # a medium read as features stays whole
            if reads and name in modalities and not has_features:
                span = _locate(row, name, tokens, column, end, vocabulary)
                found += [span] if span.columns else []
            column = end + 1
        after.reads[row], after.is_open[row] = reads, is_open
    return found, after


def _locate(row: int, name: str, tokens: list[int], start: int, end: int, vocabulary: Vocabulary) -> LocatedSpan:
    columns, segments, block = [], [], None
    for column in range(start + 1, end):
        here = vocabulary.find_block(tokens[column])
        if here is None:  # a frame mark
            block = None
            continue
        if here.name != block:
            segments.append(0)
            block = here.name
        segments[-1] += 1
        columns.append(column)
    return LocatedSpan(row, name, tuple(columns), end, tuple(segments))
