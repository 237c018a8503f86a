"""Which contexts are open here: in this thread, or in this task of an event loop, and in what it calls.

A context belongs to the run that opened it and not to the model: two threads may compress one model in different ways
at the same time, or one of them not at all. A thread that is started inside a context does not inherit it; run the call
by `contextvars.copy_context().run`, or open the context in the thread.
"""

from __future__ import annotations

from contextvars import ContextVar

from torch import nn

from unimodal.compression.running.contracts import OpenMethod

_OPEN: ContextVar[tuple[OpenMethod, ...]] = ContextVar("unimodal_compression", default=())


def find_open(backbone: nn.Module) -> list[OpenMethod]:
    """The methods that are open here for a decoder, the outermost first."""
    return [opened for opened in _OPEN.get() if opened.backbone is backbone and opened.users]


def is_compressing(backbone: nn.Module) -> bool:
    """Whether a call of this decoder, made here, is compressed."""
    return bool(find_open(backbone))


def enter(opened: OpenMethod) -> None:
    _OPEN.set((*(other for other in _OPEN.get() if other.users), opened))  # without those that others left


def leave(opened: OpenMethod) -> None:
    """Takes the innermost one away; one that was entered twice stays open once."""
    here = _OPEN.get()
    found = [number for number, other in enumerate(here) if other is opened]
    if found:  # not where it was opened elsewhere
        _OPEN.set((*here[: found[-1]], *here[found[-1] + 1 :]))
