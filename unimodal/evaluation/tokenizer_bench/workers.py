"""Processes that judge side by side, each with judges of its own on one thread.

A task is called with the judge. What goes to a process and comes back is pickled: arrays and not tensors.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext, SpawnContext
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import torch

JudgeT = TypeVar("JudgeT")
ItemT = TypeVar("ItemT")
T = TypeVar("T")

SHARED = 4  # items of one task at most

_judge: object = None  # of this process, where it is a worker


class Workers(Generic[JudgeT]):
    """So many processes, which begin at the first task; 1 works in this process. make: the judge, picklable."""

    def __init__(self, make: Callable[[], JudgeT], count: int) -> None:
        self.count = count
        self._make = make
        self._own: JudgeT | None = None
        self._pool: ProcessPoolExecutor | None = None

    @property
    def judge(self) -> JudgeT:
        """The judge of this process."""
        if self._own is None:
            self._own = self._make()
        return self._own

    def run(self, tasks: Sequence[Callable[[JudgeT], T]]) -> list[T]:
        """What tasks give, in their order."""
        if self.count == 1:
            return [task(self.judge) for task in tasks]
        if self._pool is None:
            context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
            if "forkserver" in multiprocessing.get_all_start_methods():
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([__name__])
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._make,))
        return [each.result() for each in [self._pool.submit(_work, task) for task in tasks]]

    def run_shared(self, items: Sequence[ItemT], work: Callable[[Sequence[ItemT], JudgeT], Sequence[T]]) -> list[T]:
        """What `work` gives for each of the items, in their order. A task takes every so-and-so-many-th item, so that
        all processes have as much to do, and a few items at once, which share what a judge does for many."""
        if not items:
            return []
        tasks = min(self.count * -(-len(items) // (self.count * SHARED)), len(items))
        dealt = [items[first::tasks] for first in range(tasks)]
        found: list[T | None] = [None] * len(items)
        for first, part in enumerate(self.run([partial(work, each) for each in dealt])):
            found[first::tasks] = part
        return cast(list[T], found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _begin(make: Callable[[], object]) -> None:
    global _judge
    torch.set_num_threads(1)
    _judge = make()


def _work(task: Callable[[JudgeT], T]) -> T:
    return task(cast(JudgeT, _judge))
