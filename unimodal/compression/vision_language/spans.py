"""Where pictures and clips lie in the ids of a vision-language model: runs of its own placeholder ids.

A run is one picture or clip, or several without a word between them; the model's sizes tell them apart.

Shapes: B rows, N tokens of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from unimodal.compression.running.reading import list_runs
from unimodal.compression.running.spans import LocatedSpan, TurnState

#: the sizes of a medium: the lengths of its frames, one for a picture
Frames = tuple[int, ...]


def list_frames(grids: Tensor | None, merge: int) -> list[Frames]:
    """Grids int64 [media, 3] of (time, height, width) in patches → frames of tokens, of merge × merge patches each."""
    if grids is None:
        return []
    return [(height * width // merge**2,) * time for time, height, width in grids.tolist()]


def split_run(length: int, sizes: list[Frames], fixed: int | None) -> list[Frames]:
    """The media of a run. sizes: of the media that are not yet found, from which those of this run are taken.

    fixed: how many tokens every picture has, where it is known. A run that fits neither is one medium.
    """
    totals = list(accumulate(sum(frames) for frames in sizes))
    if length in totals:
        count = totals.index(length) + 1
        taken, sizes[:] = sizes[:count], sizes[count:]
        return taken
    if fixed and length % fixed == 0:
        return [(fixed,)] * (length // fixed)
    return [(length,)]


def find_media(
    ids: Tensor,
    valid: Tensor,
    kinds: Mapping[int, str],
    sizes: Mapping[str, Sequence[Frames]],
    fixed: int | None,
    before: TurnState | None,
) -> tuple[list[LocatedSpan], TurnState]:
    """The media in ids int64 [B, N]; valid [B, N]: False for padding. kinds: placeholder id → medium. sizes: of the
    media of the call, in order.

    The token behind a medium is its end. Where that belongs to the next medium, or is not there, its own last token is,
    and stays. Raises ValueError for a medium of which an earlier call has read a part.
    """
    found: list[LocatedSpan] = []
    left = {name: list(each) for name, each in sizes.items()}
    after = TurnState.begin(len(ids))
    for row, runs in enumerate(list_runs(ids, valid)):
        if before is not None and before.is_open[row] and runs and runs[0][0] in kinds:
            raise ValueError(
                "a picture is read in pieces, which compression cannot shorten; read the prompt in one call"
            )
        for number, (token, first, behind) in enumerate(runs):
            if token not in kinds:
                continue
            media = split_run(behind - first, left.get(kinds[token], []), fixed if kinds[token] == "image" else None)
            is_followed = number + 1 < len(runs) and runs[number + 1][0] not in kinds
            for place, frames in enumerate(media):
                last = first + sum(frames)
                ends_behind = place == len(media) - 1 and is_followed
                columns = tuple(range(first, last if ends_behind else last - 1))
                segments = frames if ends_behind else (*frames[:-1], frames[-1] - 1)
                segments = tuple(length for length in segments if length)
                if columns:
                    found.append(LocatedSpan(row, kinds[token], columns, last if ends_behind else last - 1, segments))
                first = last
        after.is_open[row] = bool(runs) and runs[-1][0] in kinds and runs[-1][2] == ids.shape[1]
    return found, after
