"""Finding what may be compressed: complete media spans in the turns that the model reads.

A span in an assistant's turn, or one that is not closed, was or is being written by the model and will be decoded to
media: it is never touched. Start, end and frame marks stay; only codes are compressed.

Shapes: B rows, N tokens of a call.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True)
class Located:
    """One span of a call: its row, the columns of its codes and of its end token, and the lengths of its runs."""

    row: int
    modality: str
    columns: tuple[int, ...]
    end: int
    segments: tuple[int, ...]


def input_spans(
    ids: Tensor, valid: Tensor, vocabulary: Vocabulary, modalities: Collection[str], fresh: bool
) -> list[Located]:
    """The spans in ids [B, N] that the model reads.

    fresh: nothing was read before, so that a row without turn marks is all input; otherwise tokens before the first
    turn mark of a call belong to a turn that is not known, and are left alone.
    """
    names = [name for name in ("system", "user", "assistant") if vocabulary.has_control(f"<|{name}|>")]
    roles = {vocabulary.control_id(f"<|{name}|>"): name != "assistant" for name in names}
    starts = {vocabulary.start_id(name): name for name in vocabulary.media}
    found = []
    for row, (tokens, real) in enumerate(zip(ids.tolist(), valid.tolist(), strict=True)):
        reads, column = fresh, 0
        while column < len(tokens):
            token = tokens[column]
            if not real[column]:
                column += 1
                continue
            reads = roles.get(token, reads)
            name = starts.get(token)
            if name is None:
                column += 1
                continue
            try:
                end = tokens.index(vocabulary.end_id(name), column)
            except ValueError:  # still being written
                break
            features = tokens[column + 1] >= vocabulary.size  # of a medium that is not read through codes: left whole
            if reads and name in modalities and not features:
                found.append(_located(row, name, tokens, column, end, vocabulary))
            column = end + 1
    return found


def _located(row: int, name: str, tokens: list[int], start: int, end: int, vocabulary: Vocabulary) -> Located:
    columns, segments, block = [], [], None
    for column in range(start + 1, end):
        here = vocabulary.block_of(tokens[column])
        if here is None:  # a frame mark
            block = None
            continue
        if here.name != block:
            segments.append(0)
            block = here.name
        segments[-1] += 1
        columns.append(column)
    return Located(row, name, tuple(columns), end, tuple(segments))
