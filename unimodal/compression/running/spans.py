"""Find the spans that may be compressed: complete media spans in the turns that the model reads.

A span in an assistant's turn, or an open one, is written by the model and will be decoded to media: it is never
compressed. Start, end and frame marks stay; only codes are compressed.

Shapes: B rows, N tokens of a call.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

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


def find_input_spans(
    ids: Tensor, valid: Tensor, vocabulary: Vocabulary, modalities: Collection[str], is_first: bool
) -> list[LocatedSpan]:
    """The spans in ids int64 [B, N] that the model reads; valid bool [B, N] is False for padding.

    is_first: nothing was read before this call, so a row without turn marks is all input. Otherwise tokens before the
    first turn mark belong to an unknown turn and are not compressed.
    """
    names = [name for name in ("system", "user", "assistant") if vocabulary.has_control(f"<|{name}|>")]
    is_read = {vocabulary.get_control_id(f"<|{name}|>"): name != "assistant" for name in names}
    starts = {vocabulary.get_start_id(name): name for name in vocabulary.media}
    found = []
    for row, (tokens, real) in enumerate(zip(ids.tolist(), valid.tolist(), strict=True)):
        reads, column = is_first, 0
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
            except ValueError:  # still being written
                break
            has_features = tokens[column + 1] >= vocabulary.size  # a medium read as features stays whole
            if reads and name in modalities and not has_features:
                found.append(_locate(row, name, tokens, column, end, vocabulary))
            column = end + 1
    return found


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
