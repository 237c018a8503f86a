"""What a trainer takes: batches that resume, and a loss of them.

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
    """A source that also goes on where another number of ranks stood, whose states these are."""

    def load_other_ranks(self, states: Sequence[State]) -> None: ...


@dataclass
class WeightedLoss:
    """A loss that is a sum: ``total`` is differentiated and divided by the ``weight`` of the whole step.

    ``sums`` are (sum, count) pairs to log as means, ``num_tokens`` what the batch held.
    """

    total: Tensor
    weight: float
    sums: Sums = field(default_factory=dict)
    num_tokens: int = 0


LossFunction = Callable[[BatchT, int], WeightedLoss | tuple[Tensor, dict[str, float]]]
