"""Pack rendered documents into rows of one length without leakage.

Best-fit decreasing: the longest document goes first, each into the fullest row that still holds it. Documents are
never split, and those of a group (`Rendered.starts`) share a row. Every document of a row has its own segment id
(1, 2, …; padding is 0) and positions that restart at 0, so that an attention mask made from either keeps documents
apart. The label of a document's first token is -100: nothing is ever predicted from the end of the document before.

Labels are not shifted: `labels[i]` is `ids[i]` or -100, as Hugging Face models expect.

Legend: B rows, N tokens of a row, G the most codes of a summed position (`vocabulary/positions.py`), K values a token.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.vocabulary.positions import NOTHING

PADDING_PIECE = 64  # padding attends to padding: in pieces, or its cost would grow with its square


@dataclass(frozen=True)
class PackedRow:
    """One row of N tokens."""

    ids: np.ndarray  # int64 [N]
    labels: np.ndarray  # int64 [N], -100 where nothing is learnt
    modality: np.ndarray  # uint8 [N]
    position_ids: np.ndarray  # int64 [N], 0 at the start of every document and of every piece of the padding
    segment_ids: np.ndarray  # int64 [N], 1, 2, … in order, 0 for padding
    further: np.ndarray  # int64 [N, G - 1], the codes behind the first of a summed position, -1 for none
    values: np.ndarray  # float32 [N, K], what the objective is told of each token; 0 for padding
    documents: tuple[int, ...]  # the index in the given list of segment 1, 2, …


@dataclass(frozen=True)
class PackedBatch:
    """Rows stacked: every array is `[B, N]`, `further` is `[B, N, G - 1]` and `values` `[B, N, K]`."""

    ids: np.ndarray
    labels: np.ndarray
    modality: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    further: np.ndarray
    values: np.ndarray

    def make_attention_mask(self) -> np.ndarray:
        """bool [B, 1, N, N], True where a query (third axis) may see a key: the past of its own document.

        Padding sees the padding before it, so that no query is left without a key.
        """
        length = self.ids.shape[1]
        same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]  # [B, N, N]
        past = np.tril(np.ones((length, length), dtype=bool))
        return (same & past)[:, None]


def pack(
    rendered: Sequence[Rendered],
    length: int,
    pad_id: int,
    too_long: Literal["error", "truncate", "drop"] = "error",
) -> list[PackedRow]:
    """Rows of `length` tokens that hold every document once.

    too_long: a document longer than a row raises ValueError (`error`), is cut at the end (`truncate`) or left out
    (`drop`).
    """
    if length < 1:
        raise ValueError(f"length is {length}; a row holds at least one token")
    if too_long not in ("error", "truncate", "drop"):
        raise ValueError(f"too_long is {too_long!r}; use error, truncate or drop")
    items: list[tuple[int, Rendered]] = []
    for index, item in enumerate(rendered):
        if len(item.ids) > length:
            if too_long == "error":
                raise ValueError(
                    f"document {index} has {len(item.ids)} tokens but a row holds {length}; "
                    f"raise the length, or choose truncate or drop"
                )
            if too_long == "drop":
                continue
            item = item[:length]
        if len(item.ids):
            items.append((index, item))
    items.sort(key=lambda pair: -len(pair[1].ids))  # stable: equal lengths keep their order
    bins: list[list[tuple[int, Rendered]]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index, item in items:
        at = bisect.bisect_left(free, (len(item.ids), -1))
        if at == len(free):
            bins.append([(index, item)])
            room = length - len(item.ids)
            bisect.insort(free, (room, len(bins) - 1))
        else:
            room, row = free.pop(at)
            bins[row].append((index, item))
            bisect.insort(free, (room - len(item.ids), row))
    return [_make_row(contents, length, pad_id) for contents in bins]


def pad(rendered: Sequence[Rendered], pad_id: int, length: int | None = None) -> PackedBatch:
    """A batch with one document in each row, padded on the right to the longest, or to `length`."""
    longest = max((len(item.ids) for item in rendered), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a document has {longest} tokens but a row holds {length}; raise the length or pack")
    length = longest if length is None else length
    return stack([_make_row([(index, item)], length, pad_id) for index, item in enumerate(rendered)])


def stack(rows: Sequence[PackedRow]) -> PackedBatch:
    """Stack rows of one length into arrays `[B, N]`."""
    if not rows:
        raise ValueError("no rows to stack; pack at least one document")
    return PackedBatch(*(np.stack([getattr(row, field.name) for row in rows]) for field in fields(PackedBatch)))


def _make_row(contents: Sequence[tuple[int, Rendered]], length: int, pad_id: int) -> PackedRow:
    ids = np.full(length, pad_id, dtype=np.int64)
    labels = np.full(length, IGNORE, dtype=np.int64)
    modality = np.zeros(length, dtype=np.uint8)
    positions = np.zeros(length, dtype=np.int64)
    segments = np.zeros(length, dtype=np.int64)
    widths = {0 if item.further is None else item.further.shape[1] for _, item in contents}
    assert len(widths) <= 1, "documents of one row have the positions of one vocabulary"
    further = np.full((length, *widths), NOTHING, dtype=np.int64) if widths else np.zeros((length, 0), dtype=np.int64)
    told = {0 if item.values is None else item.values.shape[1] for _, item in contents}
    assert len(told) <= 1, "the documents of one row have the values of one objective"
    values = np.zeros((length, *(told or {0})), dtype=np.float32)
    at = 0
    apart = [(index, one) for index, item in contents for one in item.split_group()]
    for segment, (_, item) in enumerate(apart, start=1):
        part = slice(at, at + len(item.ids))
        ids[part], labels[part], modality[part] = item.ids, item.labels, item.modality
        labels[at] = IGNORE
        if item.further is not None:
            further[part] = item.further
        if item.values is not None:
            values[part] = item.values
        positions[part] = np.arange(len(item.ids))
        segments[part] = segment
        at += len(item.ids)
    positions[at:] = np.arange(length - at) % PADDING_PIECE
    return PackedRow(ids, labels, modality, positions, segments, further, values, tuple(index for index, _ in apart))
