"""Numbers of several training processes, as one: what codebooks without gradients learn from all of them."""

from __future__ import annotations

import torch.distributed as distributed
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum over the processes, in place; the values themselves where there is one process."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def copy_from_first(values: Tensor) -> Tensor:
    """What the first process has."""
    if is_distributed():
        values = values.contiguous()
        distributed.broadcast(values, 0)
    return values
