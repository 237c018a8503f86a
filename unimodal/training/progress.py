"""Progress on stderr: a bar with tokens a second and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

HIDDEN = ("step", "seconds_per_step", "tokens_per_second")


class Progress:
    """Shows the progress of a run of ``steps`` steps. shown: False shows nothing, for all ranks but the main one."""

    def __init__(self, steps: int, first_step: int = 0, shown: bool = True) -> None:
        self.steps, self.shown = steps, shown
        self._bar: Bar | None = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.add_task("", total=steps, completed=first_step)
            self._bar.start()

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def record(self, record: Mapping[str, float]) -> None:
        """Show a line of metrics: on the bar, or printed."""
        if not self.shown:
            return
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in HIDDEN)
        speed = f"{record['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in record else ""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="  ".join(filter(None, (numbers, speed))))
            return
        seconds = record["seconds_per_step"]
        left_min = (self.steps - record["step"]) * seconds / 60
        end = "  ".join(filter(None, (f"{seconds:.2f} s/step", speed, f"{left_min:.1f} min left")))
        print(f"step {record['step']}/{self.steps}  {numbers}  {end}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self.shown:
            (self._bar.console.print if self._bar is not None else _print_to_stderr)(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
