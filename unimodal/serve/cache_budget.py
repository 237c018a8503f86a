"""Who may join the batch by the memory that its keys and values may take.

A request is let in when what it may need at most fits beside what the rows take; else it waits until enough of them
have ended. One that needs more than there is in all is refused at once, in one line. Those behind a large request that
waits may pass it, but not for ever.

The worker's thread alone uses `fits` and `begin_turn`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.engine import Engine
from unimodal.generation.kinds import is_memory_short
from unimodal.generation.request import GenerationRequest
from unimodal.generation.run import PreparedBatch
from unimodal.pipeline.requests import UnfitRequestError
from unimodal.serve.tickets import MemoryShort, Ticket

MIB = 2**20
#: requests that may pass one that waits for memory
MOST_PASSING = 16


class CacheBudget:
    """``most``: bytes for the keys and values of all rows; None is no limit."""

    def __init__(self, engine: Engine, most: int | None) -> None:
        self.engine, self.most = engine, most
        self._room = 0
        self._batch: ContinuousBatch | None = None

    def check(self, prepared: PreparedBatch, compressed: bool) -> int:
        """The bytes that requests may need at most. Raises UnfitRequestError for more than there is."""
        need = self.engine.count_cache_bytes(prepared, compressed)
        if self.most is not None and need > self.most:
            longest = max(prepared.capacities)
            raise UnfitRequestError(
                f"the request may need {need / MIB:.1f} MiB of keys and values for {longest} tokens, and this server "
                f"has {self.most / MIB:.1f} (--cache); ask for fewer tokens or shorten the prompt",
                "max_tokens",
            )
        return need

    def measure(self, ticket: Ticket) -> int:
        """What a request may need at most. Raises ValueError as `check` and `ContinuousBatch.admit` do."""
        if ticket.num_bytes is None:
            request: GenerationRequest = ticket.request
            compressed = bool(request.methods)
            ticket.num_bytes = self.check(
                self.engine.prepare([request.prompt], [request.config], compressed), compressed
            )
        return ticket.num_bytes

    def begin_turn(self, batch: ContinuousBatch, coming: Sequence[Ticket]) -> None:
        """Look at what the rows take; coming: requests that are to join soon, whatever else does."""
        self._batch = batch
        if self.most is not None:
            self._room = self.most - batch.num_bytes - sum(ticket.num_bytes or 0 for ticket in coming)

    def fits(self, ticket: Ticket) -> bool:
        """Whether there is room for a request now; a mistake in it is found by who lets it in."""
        if self.most is None or self._batch is None:
            return True
        try:
            need = self.measure(ticket)
            if need > self._room and len(self._batch):
                need = min(need, self._batch.count_needed(ticket.request))
        except ValueError:
            return True
        return need <= self._room

    def take(self, ticket: Ticket) -> None:
        """Keep room for a request that joins in this turn."""
        if self.most is not None and self._batch is not None:
            need = self.measure(ticket)
            if need > self._room:
                need = min(need, self._batch.count_needed(ticket.request))
            self._room -= need


def find_default_budget(device: torch.device) -> int:
    """Half of the memory that is free now: the rest is for what a step computes and for media."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return read_free_memory() // 2


def read_free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that programs can still have: of the machine, and of the container that this one runs in.

    cgroup: the folder where the system says what the container may have.
    """
    return min([read_free_machine_memory(), *list_container_rooms(cgroup)])


def read_free_machine_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return 4 * 2**30


def list_container_rooms(cgroup: Path) -> Iterator[int]:
    """What a limit of the container leaves, as both versions of Linux's control groups tell it; nothing without one.

    Pages of files that were read count as used, and are given back when they are wanted: those are free.
    """
    version_2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    version_1 = ("limit_in_bytes", "usage_in_bytes", "stat", "total_inactive_file")
    for most, used, stat, name in (version_2, tuple(f"memory/memory.{file}" for file in version_1[:3]) + version_1[3:]):
        try:
            limit, taken = ((cgroup / file).read_text(encoding="ascii").strip() for file in (most, used))
            lines = dict(line.split(maxsplit=1) for line in (cgroup / stat).read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and taken.isdigit():  # "max" is none
            yield max(0, int(limit) - int(taken) + int(lines.get(name, 0)))


def explain_shortage(error: Exception, budget: int | None) -> Exception:
    """For an error that says that memory is short one whose line says what helps; any other as it is."""
    if not is_memory_short(error):
        return error
    now = "" if budget is None else f" (now {budget / MIB:.0f} MiB)"
    return MemoryShort(
        f"the server is out of memory; give it a smaller --cache{now}, --kv int8 or a smaller --max-batch"
    )
