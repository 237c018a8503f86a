"""An endless stream of media to train on: random order and views, read ahead by workers, resumed exactly.

Batch number n is a function of (seed, n) alone: which items, which part of each, which size. So the state is one
number, whatever the workers have read ahead. An item that cannot be used (broken, too small, held out) is left out,
named once and counted, and another takes its place.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import Tensor

from unimodal.data.media_items import FileItems, MediaItem, MediaItems, is_held_out
from unimodal.data.media_views import Size, ViewOptions, read_view
from unimodal.data.order import Cursor, make_generator
from unimodal.media.registry import FileTarget

MOST_ATTEMPTS = 200  # items in a row that cannot be used
MOST_NAMED = 20  # that are named; all are counted


@dataclass(frozen=True)
class View:
    """A medium as it is trained on, and what is said of it."""

    medium: Tensor
    name: str
    text: str = ""


@dataclass(frozen=True)
class StreamPart:
    """What the stream gives from a step on, until the next part begins. sizes: of which each batch takes one; empty for
    media without one. sorted_batches: of so many batches in a row the items are put in order of length and shared out
    again, so that those of a batch are about equally long."""

    first_step: int
    items: MediaItems
    sizes: tuple[Size, ...]
    batch_size: int
    options: ViewOptions
    sorted_batches: int = 1


class LeftOut:
    """Items that could not be used: named once each, counted by the whole."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.reasons: dict[str, str] = {}
        self._tell, self._lock = tell or _print, threading.Lock()

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, place: str, reason: str) -> None:
        with self._lock:
            if place in self.reasons:
                return
            self.reasons[place] = reason
            if len(self.reasons) <= MOST_NAMED:
                said = reason if place in reason else f"{place}: {reason}"
                self._tell(f"left out ({len(self.reasons)} so far): {said}")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class MediaStream:
    """Batches of views of one rank. target: what the tokenizer takes of a file. accumulation: batches of a step.

    Raises ValueError where nothing can be used.
    """

    def __init__(
        self,
        parts: Sequence[StreamPart],
        target: FileTarget,
        one_held_out_of: int,
        seed: int = 0,
        workers: int = 2,
        accumulation: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        left_out: LeftOut | None = None,
    ) -> None:
        self.parts, self.target, self.one_held_out_of, self.seed = list(parts), target, one_held_out_of, seed
        self.workers, self.accumulation = workers, accumulation
        self.rank, self.num_ranks = rank, num_ranks
        self.left_out = LeftOut() if left_out is None else left_out
        self.number = 0  # of the next batch of this rank
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[list[View]]] = deque()
        self._groups: dict[int, list[list[View]]] = {}  # the last two groups of sorted batches
        self._sorting = threading.Lock()
        self._numbers = [_list_training(part.items, one_held_out_of) for part in self.parts]

    def next_views(self) -> list[View]:
        """The next batch, its items of one size where they have one."""
        if not self.workers:
            self.number += 1
            return self._read_batch(self.number - 1)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="media")
        while len(self._ahead) < 2 * self.workers:
            self._ahead.append(self._pool.submit(self._read_batch, self.number + len(self._ahead)))
        self.number += 1
        return self._ahead.popleft().result()

    def find_part(self, step: int) -> int:
        """The number of the part that a step belongs to."""
        return max(number for number, part in enumerate(self.parts) if part.first_step <= step)

    def _read_batch(self, number: int) -> list[View]:
        place = self.find_part(number // self.accumulation)
        count = self.parts[place].sorted_batches
        first = number - number % count
        numbers = range(first, first + count)
        if count == 1 or {self.find_part(other // self.accumulation) for other in numbers} != {place}:
            return self._read_unsorted(number)
        with self._sorting:  # a group is read once, by the worker that needs it first
            if first not in self._groups:
                self._groups = dict(list(self._groups.items())[-1:])
                self._groups[first] = self._sort_batches(numbers)
            return self._groups[first][number - first]

    def _sort_batches(self, numbers: Sequence[int]) -> list[list[View]]:
        views = [view for number in numbers for view in self._read_unsorted(number)]
        views.sort(key=lambda view: len(view.medium))
        size = len(views) // len(numbers)
        batches = [views[start : start + size] for start in range(0, len(views), size)]
        make_generator(self.seed, "order", numbers[0]).shuffle(batches)
        return batches

    def _read_unsorted(self, number: int) -> list[View]:
        place = self.find_part(number // self.accumulation)
        part = self.parts[place]
        draw = number * self.num_ranks + self.rank  # of all ranks
        sizes = part.sizes
        size = sizes[make_generator(self.seed, "size", number).randrange(len(sizes))] if sizes else None
        return [self._read_slot(place, draw * part.batch_size + slot, size) for slot in range(part.batch_size)]

    def _read_slot(self, place: int, slot: int, size: Size | None) -> View:
        part, numbers = self.parts[place], self._numbers[place]
        count = len(part.items) if numbers is None else len(numbers)
        reason = ""
        for attempt in range(MOST_ATTEMPTS):
            rng = make_generator(self.seed, place, slot, attempt)
            drawn = _permute(slot, count, self.seed) if attempt == 0 else rng.randrange(count)
            index = drawn if numbers is None else numbers[drawn]
            try:
                usable = [
                    item for item in part.items.read(index) if not is_held_out(item.group, self.one_held_out_of)
                ] if numbers is None else part.items.read(index)  # fmt: skip
                if not usable:
                    continue
                item = usable[rng.randrange(len(usable))]
                return self._view(item, part.items.modality, part.options, size, rng)
            except (ValueError, OSError) as error:
                reason = f"{part.items.describe_place(index)}: {error}"
                self.left_out.add(part.items.describe_place(index), str(error))
        raise ValueError(
            f"{MOST_ATTEMPTS} draws from {count} items gave none to train on; {reason or 'all are held out'}"
        )

    def _view(
        self, item: MediaItem, modality: str, options: ViewOptions, size: Size | None, rng: random.Random | None
    ) -> View:
        options = replace(options, whole=options.whole and bool(item.text))
        return View(read_view(modality, item.source, self.target, size, options, rng), item.name, item.text)

    def read_held_out(self, place: int, most: int, size: Size | None, others: MediaItems | None = None) -> list[View]:
        """Up to `most` held-out items of a part, their middles; of training items where none is held out. others: what
        is measured in their place, evenly chosen."""
        if others is not None:
            return self._read_evenly(others, most, size)
        part = self.parts[place]
        found: list[View] = []
        for held in (True, False):
            for index in range(len(part.items)):
                if len(found) >= (most if held else 1):
                    break
                if isinstance(part.items, FileItems) and self._is_held_out(part.items.find_group(index)) != held:
                    continue
                try:
                    for item in part.items.read(index):
                        if self._is_held_out(item.group) == held:
                            found.append(self._view(item, part.items.modality, part.options, size, None))
                except (ValueError, OSError) as error:
                    self.left_out.add(part.items.describe_place(index), str(error))
            if found:
                break
        return found[:most]

    def _read_evenly(self, items: MediaItems, most: int, size: Size | None) -> list[View]:
        options, found = self.parts[-1].options, []
        count = min(most, len(items))
        for index in (number * len(items) // count for number in range(count)):
            try:
                for item in items.read(index):
                    found.append(self._view(item, items.modality, options, size, None))
            except (ValueError, OSError) as error:
                self.left_out.add(items.describe_place(index), str(error))
        return found

    def _is_held_out(self, group: str) -> bool:
        return is_held_out(group, self.one_held_out_of)

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self.number = int(state["number"])

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._ahead.clear()


def _list_training(items: MediaItems, one_of: int) -> list[int] | None:
    """The numbers of files that are not held out; None for rows, of which that is known when they are read."""
    if not isinstance(items, FileItems):
        return None
    numbers = [index for index in range(len(items)) if not is_held_out(items.find_group(index), one_of)]
    if not numbers:
        raise ValueError(
            f"of {len(items)} files in {items.folder} none is left to train on; add files, or hold out fewer"
        )
    return numbers


def _permute(slot: int, count: int, seed: int) -> int:
    """The item of a slot: every run of `count` slots is another permutation."""
    cursor = Cursor(count, seed)
    cursor.load_state_dict({"epoch": slot // count, "position": slot % count, "num_documents": count, "seed": seed})
    return cursor.next()
