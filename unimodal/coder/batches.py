"""Media as their files give them ⇄ the batches that tokenizers take, by the `axes` of the medium's record.

Shapes: B batch, C channels, T the padded axis, N positions of the codes; "…" stands for the axes of the medium without
its channels, in order. A picture is [C, H, W] in both forms, a sound [T] becomes [C, T], a clip [T, C, H, W] becomes
[C, T, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unimodal.media.access import load_medium
from unimodal.media.files import MediaSource
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits
from unimodal.media.registry import Medium, ignore_note
from unimodal.tokenizers.interface import FitMode, MediaModule


def read_medium(
    source: MediaSource,
    tokenizer: MediaModule,
    limits: MediaLimits = DEFAULT_LIMITS,
    mode: FitMode = "pad",
    start_s: float = 0.0,
    seconds: float | None = None,
    tell: Callable[[str], None] = ignore_note,
) -> Tensor:
    """Reads a file, or its bytes, as the medium that the tokenizer sees.

    mode: how it is fitted, if the family of the tokenizer leaves that open. start_s, seconds: the part of a sound or
    film to take. tell: called with a sentence for everything that is left out. Raises ValueError for an unusable file.
    """
    target = replace(tokenizer.file_target, start_s=start_s, seconds=seconds, tell=tell)
    return tokenizer.fit(load_medium(tokenizer.modality, source, target, limits), mode)


def group_by_size(medium: Medium, items: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the items that can share a batch: those of one size, not counting the padded axis."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        sizes = zip(medium.axes, item.shape, strict=True)
        key = tuple(size for axis, size in sizes if not (medium.padded and axis == "t"))
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def stack_media(medium: Medium, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stacks items of one group: [B, C, …], and int64 [B] the real lengths of the padded axis; None if there is
    none.
    """
    moved = [item.movedim(medium.axes.index("c"), 0) if "c" in medium.axes else item[None] for item in items]
    if not medium.padded:
        return torch.stack(moved).contiguous(), None
    axis = _find_padded_axis(medium)
    lengths = [item.shape[axis] for item in moved]
    shape = list(moved[0].shape)
    shape[axis] = max(lengths)
    batch = moved[0].new_zeros(len(moved), *shape)
    for into, item, length in zip(batch, moved, lengths, strict=True):
        into.narrow(axis, 0, length).copy_(item)
    return batch, torch.tensor(lengths)


def split_batch(medium: Medium, decoded: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Splits what codes decode to, [B, C, …]: the inverse of `stack_media`. counts: positions of each item."""
    items = list(decoded)
    if medium.padded:
        axis = _find_padded_axis(medium)
        per_code = decoded.shape[1 + axis] // max(counts)
        items = [item.narrow(axis, 0, count * per_code) for item, count in zip(items, counts, strict=True)]
    return [item.movedim(0, medium.axes.index("c")) if "c" in medium.axes else item[0] for item in items]


def count_frames(medium: Medium, item: Tensor) -> int:
    """The length of an item along its time axis, in samples or frames. Its medium must have one."""
    return item.shape[medium.axes.index("t")]


def _find_padded_axis(medium: Medium) -> int:
    """The place of the time axis in [C, …]."""
    return 1 + medium.axes.replace("c", "").index("t")
