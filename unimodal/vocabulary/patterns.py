"""In which order the codes [N, G] of a span are written: step by step, delayed, or coarse ones first.

    flat          a0 b0 c0  a1 b1 c1  a2 b2 c2                       no pattern: the default
    delay 0 1 2   a0  a1 b0  a2 b1 c0  | b2 c1  c2                   as in MusicGen (arXiv 2306.05284) and Moshi
    coarse 1      a0 a1 a2 | b0 c0 b1 c1 b2 c2                       as in AudioLM (arXiv 2209.03143) and VALL-E

(a, b, c are the groups, a0 the code of group a at step 0.) Where a span may have any number of steps, a mark | stands
in the place of the first group's code behind the last step: from there on the number of steps is known, and with it
every group that must still come. SNAC's codes at several rates, as Orpheus writes them, are flat: seven groups a frame
(`unimodal.tokenizers.streams`).

`delay_codes` gives the published form of delayed codes, one row a time with a code of its own where a group has none.

Legend: N steps, G groups, D the longest delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

#: of MusicGen's four books, and of Moshi's text and 2 × 8 books (kyutai-labs/moshi, loaders.py)
MUSICGEN_DELAYS = (0, 1, 2, 3)
MOSHI_DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
#: the code that stands where a book of 2048 has none, in both
PUBLISHED_NOTHING = 2048


@dataclass(frozen=True, kw_only=True)
class CodePattern:
    """kind: "delay", group g of step n at time n + delays[g], the groups of one time in their order; "coarse_first",
    the first `coarse` groups of every step before the others of every step. delays: one a group, one of them 0."""

    kind: Literal["delay", "coarse_first"]
    delays: tuple[int, ...] = ()
    coarse: int = 1
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        object.__setattr__(self, "delays", tuple(self.delays))

    def check(self, num_groups: int) -> None:
        """ValueError unless the pattern fits so many groups."""
        if self.kind == "delay" and (len(self.delays) != num_groups or min(self.delays) != 0):
            raise ValueError(
                f"delays are one for each of {num_groups} groups, and one of them 0; got {list(self.delays)}"
            )
        if self.kind == "coarse_first" and not 1 <= self.coarse < num_groups:
            raise ValueError(f"coarse is from 1 to {num_groups - 1} of {num_groups} groups; got {self.coarse}")

    @property
    def leader(self) -> int:
        """The group whose codes say how many steps there are."""
        return self.delays.index(0) if self.kind == "delay" else 0

    def list_places(self, num_steps: int, num_groups: int) -> np.ndarray:
        """(step, group) of each code in the order of writing, int64 [N · G, 2]."""
        return _list_places(self, num_steps, num_groups)

    def count_before_mark(self, num_steps: int, num_groups: int) -> int:
        """How many codes are written before the mark behind so many steps."""
        if self.kind == "coarse_first":
            return num_steps * self.coarse
        delays = np.array(self.delays)
        earlier = np.minimum(num_steps, np.maximum(0, num_steps - delays)).sum()  # at times before num_steps
        same_time = (delays[: self.leader] > 0) & (delays[: self.leader] <= num_steps)
        return int(earlier + same_time.sum())

    def find_place(self, index: int, num_groups: int, num_steps: int | None = None) -> tuple[int, int]:
        """(step, group) of a code by its number in the order of writing. num_steps: None before the mark."""
        if num_steps is None:  # the beginning is the same for all longer spans
            num_steps = 1 << (index + 1).bit_length()
        step, group = self.list_places(num_steps, num_groups)[index].tolist()
        return step, group

    def write(self, rows: np.ndarray, mark: int | None) -> list[int]:
        """Rows of the vocabulary int64 [N, G] → the same in the order of writing. mark: what says how many steps there
        are; None where that is fixed."""
        places = self.list_places(*rows.shape)
        written: list[int] = rows[places[:, 0], places[:, 1]].tolist()
        if mark is not None:
            written.insert(self.count_before_mark(*rows.shape), mark)
        return written

    def read(self, written: np.ndarray, num_groups: int, mark: int | None) -> np.ndarray:
        """The inverse of `write`: rows step by step, int64 [N · G]. ValueError for a mark that is not at its place."""
        num_steps, left_over = divmod(len(written) - (mark is not None), num_groups)
        if left_over or num_steps < 1:
            raise ValueError(
                f"{len(written)} tokens are no steps of {num_groups} codes; they are cut off or badly formed"
            )
        if mark is not None:
            place = self.count_before_mark(num_steps, num_groups)
            if written[place] != mark:
                raise ValueError(f"token {place} should be <|frame|>, behind the last of {num_steps} steps")
            written = np.delete(written, place)
        rows = np.empty((num_steps, num_groups), dtype=np.int64)
        places = self.list_places(num_steps, num_groups)
        rows[places[:, 0], places[:, 1]] = written
        return rows.reshape(-1)


@lru_cache(maxsize=256)
def _list_places(pattern: CodePattern, num_steps: int, num_groups: int) -> np.ndarray:
    steps, groups = (part.reshape(-1) for part in np.mgrid[:num_steps, :num_groups])
    if pattern.kind == "delay":
        order = np.lexsort((groups, steps + np.array(pattern.delays)[groups]))
    else:
        order = np.lexsort((groups, steps, groups >= pattern.coarse))
    places = np.stack([steps[order], groups[order]], axis=1)
    places.setflags(write=False)
    return places


def make_pattern(text: str, num_groups: int) -> CodePattern | None:
    """A pattern from a setting: "flat", "delay" (MusicGen's: each group a step later), "delay 0 1 1 …", "coarse_first"
    or "coarse_first 2". None for flat. Raises ValueError for others, and for one that does not fit."""
    name, *numbers = text.replace("-", "_").split() or [""]
    most = {"flat": 0, "delay": len(numbers), "coarse_first": 1}  # numbers behind the name
    if not all(number.isdecimal() for number in numbers) or len(numbers) > most.get(name, -1):
        raise ValueError(
            f"{text!r} is no order of codes; write flat, delay, delay 0 1 1, coarse_first or coarse_first 2"
        )
    values = tuple(map(int, numbers))
    if name == "flat" or num_groups == 1:
        return None
    if name == "delay":
        pattern = CodePattern(kind="delay", delays=values or tuple(range(num_groups)))
    else:
        pattern = CodePattern(kind="coarse_first", coarse=values[0] if values else 1)
    pattern.check(num_groups)
    return pattern


# ---- the published form


def delay_codes(
    codes: np.ndarray, delays: Sequence[int], nothing: int | Sequence[int] = PUBLISHED_NOTHING
) -> np.ndarray:
    """Codes int64 [N, G] → [N + D, G], group g delayed by delays[g] times; `nothing`, of all groups or of each, where a
    group has no code."""
    delayed = np.tile(np.broadcast_to(nothing, len(delays)), (len(codes) + max(delays), 1)).astype(np.int64)
    for group, delay in enumerate(delays):
        delayed[delay : delay + len(codes), group] = codes[:, group]
    return delayed


def undo_delay(
    delayed: np.ndarray, delays: Sequence[int], nothing: int | Sequence[int] = PUBLISHED_NOTHING
) -> np.ndarray:
    """The inverse of `delay_codes`: the steps that are whole, int64 [N, G]. What is cut off in their midst is left
    out."""
    steps = max(0, len(delayed) - max(delays))
    codes = np.stack([delayed[delay : delay + steps, group] for group, delay in enumerate(delays)], axis=1)
    whole = (codes != np.asarray(nothing)).all(1)
    return codes[: len(whole) if whole.all() else int(whole.argmin())]
