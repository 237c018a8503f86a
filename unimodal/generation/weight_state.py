"""The state of weights, by which a copy knows that they have changed: their addresses and counts of writes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

#: address and version of each parameter
WeightState = tuple[tuple[int, int], ...]


def read_weight_state(parameters: Iterable[nn.Parameter]) -> WeightState:
    """A state that stays equal until one of the parameters is written to; writes to inference tensors are not seen."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
