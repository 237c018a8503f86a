"""The model's attention seen by the executor: one function registered with transformers that hands on to the kernel.

The name of the attention in the model's config is ours only while the executor runs its layers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NAME = "unimodal_compression"
#: kernels that take a dense additive mask, or None for plain causal attention
KERNELS = ("sdpa", "eager", "xformers", "varlen")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    compression: Any = None,
    **kwargs: Any,
) -> Any:
    executor = compression.executor
    kernel = kernel_of(module, compression.attention)
    return executor.attend(compression, module, kernel, query, key, value, attention_mask, kwargs)


def kernel_of(module: nn.Module, name: str) -> Any:
    """The attention function that a layer has under a name."""
    from transformers import AttentionInterface

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[name]


@contextmanager
def intercepted(config: Any, listening: bool) -> Iterator[str]:
    """Attention of this config goes through the executor; yields the name of the kernel it had.

    Raises ValueError for a kernel that takes no dense mask.
    """
    own = config._attn_implementation
    if own not in KERNELS:
        raise ValueError(f"compression does not work with attention {own!r}; use one of {', '.join(KERNELS)}")
    if not listening:
        yield own
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config._attn_implementation = NAME
    try:
        yield own
    finally:
        config._attn_implementation = own
