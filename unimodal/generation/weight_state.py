"""Whether weights have changed since they were copied: where they lie, and how often they were written in place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

#: address and version of each parameter
WeightState = tuple[tuple[int, int], ...]


def read_weight_state(parameters: Iterable[nn.Parameter]) -> WeightState:
    """Equal for the same parameters as long as nobody has written to them; inference tensors count as unchanged."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
