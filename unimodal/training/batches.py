"""What a trainer takes: batches that resume, and a loss of them.

A batch source is any object with ``next_batch()``, ``state_dict()`` and ``load_state_dict(state)``; a loss function
takes ``(batch, step)`` and returns a ``WeightedLoss``, or a scalar loss and a dict of numbers to log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from unimodal.training.metrics import Sums


class BatchSource(Protocol):
    def next_batch(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class RankedSource(BatchSource, Protocol):
    """A source that also goes on where another number of ranks stood, whose states these are."""

    def load_other_ranks(self, states: Sequence[dict[str, Any]]) -> None: ...


@dataclass
class WeightedLoss:
    """A loss that is a sum: ``total`` is differentiated and divided by the ``weight`` of the whole step.

    ``sums`` are (sum, count) pairs to log as means, ``num_tokens`` what the batch held.
    """

    total: Tensor
    weight: float
    sums: Sums = field(default_factory=dict)
    num_tokens: int = 0


LossFunction = Callable[[Any, int], WeightedLoss | tuple[Tensor, dict[str, float]]]
