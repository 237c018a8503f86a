"""What a trainer takes: a source of batches that can resume, and a loss function.

A batch source is any object with ``next_batch()``, ``state_dict()`` and ``load_state_dict(state)``; a loss function
takes ``(batch, step)`` and returns a ``WeightedLoss``, or a scalar loss and a dict of numbers to log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from unimodal.training.checkpoint import State
from unimodal.training.metrics import Sums

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class BatchSource(Protocol[BatchT_co]):
    def next_batch(self) -> BatchT_co: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


@runtime_checkable
class RankedSource(Protocol):
    """A source that can also resume from the states of a run with another number of ranks."""

    def load_other_ranks(self, states: Sequence[State]) -> None: ...


@dataclass
class WeightedLoss:
    """A summed loss: ``total`` is differentiated, and divided by the summed ``weight`` of all batches of a step.

    sums: (sum, count) pairs to log as means. num_tokens: tokens of the batch.
    """

    total: Tensor
    weight: float
    sums: Sums = field(default_factory=dict)
    num_tokens: int = 0


LossFunction = Callable[[BatchT, int], WeightedLoss | tuple[Tensor, dict[str, float]]]
