"""The codes of a bench's items, of any medium, as rows of integers: what the downstream measures see.

Shapes: N positions of an item, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.batches import group_by_size, stack_media
from unimodal.data.media_views import ViewOptions, read_view
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import BenchItems
from unimodal.evaluation.tokenizer_bench.pictures import make_condition
from unimodal.evaluation.tokenizer_bench.store import Arrays
from unimodal.media.registry import find_medium
from unimodal.tokenizers.interface import MediaTokenizer

BATCH = 16
MOST_SECONDS = 4.0  # of a sound
DEFAULT_SIDE = 128


@dataclass(frozen=True)
class CodedItems:
    """rows: each int64 [N, G]. groups: what each item is filed under: a label, where the data have folders of them."""

    rows: list[Tensor]
    groups: list[str]


def encode_items(entry: Entry, items: BenchItems, part: range) -> Arrays:
    """The codes of a part of the items, joined: "ids" int32 [ΣN, G], "counts" [M], "groups" [M]. Items that cannot be
    read are named in `items.left_out`."""
    tokenizer = entry.tokenizer
    media, texts, groups = [], [], []
    size = tokenizer.picture_size or (DEFAULT_SIDE, DEFAULT_SIDE)
    for item in items.items[part.start : part.stop]:
        try:
            options = ViewOptions(upscale=True, crop_s=MOST_SECONDS)
            media.append(read_view(tokenizer.modality, item.source, tokenizer.file_target, size, options, None))
        except (ValueError, OSError) as error:
            items.left_out[item.name] = " ".join(str(error).split())
            continue
        texts.append(item.text)
        groups.append(item.group)
    rows: dict[int, Tensor] = {}
    medium = find_medium(tokenizer.modality)
    for alike in group_by_size(medium, media):
        for start in range(0, len(alike), BATCH):
            numbers = alike[start : start + BATCH]
            batch, lengths = stack_media(medium, [media[number] for number in numbers])
            condition = make_condition(tokenizer, "encode", [texts[number] for number in numbers])
            codes = tokenizer.encode(batch, lengths, condition=condition)
            rows |= {number: codes.row(index) for index, number in enumerate(numbers)}
    ordered = [rows[number] for number in range(len(media))]
    ids = torch.cat(ordered).numpy().astype(np.int32) if ordered else np.zeros((0, 1), np.int32)
    return {"ids": ids, "counts": np.array([len(row) for row in ordered]), "groups": np.array(groups, dtype=str)}


def join_coded(parts: Sequence[Arrays]) -> CodedItems:
    """The parts of `encode_items` as one."""
    rows: list[Tensor] = []
    groups: list[str] = []
    for part in parts:
        rows += list(torch.from_numpy(part["ids"]).long().split(part["counts"].tolist()))
        groups += part["groups"].tolist()
    return CodedItems(rows, groups)


def flatten_codes(tokenizer: MediaTokenizer, row: Tensor) -> Tensor:
    """Codes [N, G] → ids of one vocabulary int64 [N · G], position by position: each group of a block has rows of its
    own, which begin at 1; 0 begins a sequence."""
    first = 1
    starts: dict[str, list[int]] = {}
    for block in dict.fromkeys(name for name, _ in tokenizer.segments):
        starts[block] = []
        for size in tokenizer.group_sizes(block):
            starts[block].append(first)
            first += size
    free = len(row) - sum(count or 0 for _, count in tokenizer.segments)
    shifts: list[Tensor] = []
    for block, count in tokenizer.segments:
        shift = torch.tensor(starts[block][: row.shape[1]])
        shifts += [shift] * (max(0, free) if count is None else count)
    return (row + torch.stack(shifts[: len(row)])).flatten()


def count_vocabulary(tokenizer: MediaTokenizer) -> int:
    """Rows of that vocabulary, with the one that begins a sequence."""
    blocks = dict.fromkeys(name for name, _ in tokenizer.segments)
    return 1 + sum(sum(tokenizer.group_sizes(block)) for block in blocks)


def list_sizes(tokenizer: MediaTokenizer, count: int, groups: int) -> list[int]:
    """Values of each of the N · G codes of an item, position by position."""
    free = max(0, count - sum(number or 0 for _, number in tokenizer.segments))
    sizes: list[int] = []
    for block, number in tokenizer.segments:
        sizes += list(tokenizer.group_sizes(block)[:groups]) * (free if number is None else number)
    return sizes[: count * groups]
