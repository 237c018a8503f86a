"""Progress on stderr: a moving bar on a terminal, plain lines elsewhere. stdout is left to results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 5.0
Item = TypeVar("Item")


class Reporter:
    """Shows progress: call it with what is being done and, if known, how much of it is done. Leaving `with` removes the
    bar.

        with Reporter() as report:
            report("loading the model")
            report("writing", 12, 64)
    """

    def __init__(self) -> None:
        self._text = ""
        self._bar: tuple[Progress, TaskID] | None = None  # with the one task in it
        self._last_line_s = 0.0

    def __call__(self, text: str, done: int = 0, total: int | None = None) -> None:
        if sys.stderr.isatty():
            self._move_bar(text, done, total)
        else:
            self._write_line(text, done, total)

    def track(self, items: Iterable[Item], text: str, total: int) -> Iterator[Item]:
        """The items, one by one, with a report of how many are done."""
        self(text, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            self(text, done, total)

    def clear(self) -> None:
        """Removes the bar from the terminal, so that something else can be written there."""
        if self._bar is not None:
            self._bar[0].stop()
        self._bar, self._text = None, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def _move_bar(self, text: str, done: int, total: int | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            bar.start()
            self._bar = bar, bar.add_task(text, total=total)
        bar, task = self._bar
        if text != self._text:
            bar.reset(task, description=text, total=total)
        self._text = text
        bar.update(task, completed=done, total=total)

    def _write_line(self, text: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if text == self._text and (total is None or (now_s - self._last_line_s < LINE_EVERY_S and done < total)):
            return
        self._text, self._last_line_s = text, now_s
        print(text if not total else f"{text}: {done}/{total}", file=sys.stderr, flush=True)
