"""An attention function registered with transformers that shows each call to the executor, which calls the kernel.

The model's config names it only while the executor runs the layers.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, W head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

NAME = "unimodal_compression"
#: kernels that take a dense additive mask, or None for plain causal attention
KERNELS = ("sdpa", "eager", "xformers", "varlen")

#: a kernel's output: the attended values [B, Q, H, W], and the attention weights if it keeps them
AttentionOutput = tuple[Tensor, Tensor | None]
Kernel = Callable[..., AttentionOutput]


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """A call of the model's own kernel in one layer, before it is made."""

    module: nn.Module
    kernel: Kernel
    query: Tensor  # [B, H, Q, W]
    key: Tensor  # [B, K, L, W]
    value: Tensor  # [B, K, L, W]
    mask: Tensor | None  # added to the logits, [B or 1, H or 1, Q, L]
    settings: dict[str, object]  # of the kernel: dropout, scaling, …

    def compute(self) -> AttentionOutput:
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, **self.settings)

    def compute_with(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> AttentionOutput:
        """The same kernel over other tensors."""
        return replace(self, query=query, key=key, value=value, mask=mask).compute()


class AttentionHook(Protocol):
    """Takes the attention calls of a running forward; passed through the layers as the keyword `compression`."""

    kernel: str

    def attend(self, attention: LayerAttention) -> AttentionOutput: ...


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    compression: AttentionHook,
    **settings: object,
) -> AttentionOutput:
    kernel = find_kernel(module, compression.kernel)
    return compression.attend(LayerAttention(module, kernel, query, key, value, attention_mask, settings))


def find_kernel(module: nn.Module, name: str) -> Kernel:
    """The attention function that a layer has under a name."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[name]


@contextmanager
def intercept_attention(config: PretrainedConfig, listens: bool) -> Iterator[str]:
    """A context in which, if `listens`, the attention of this config goes through `AttentionHook`.

    Yields the name of the config's kernel. Raises ValueError for a kernel that takes no dense mask.
    """
    own = config._attn_implementation
    if own not in KERNELS:
        raise ValueError(f"compression does not work with attention {own!r}; use one of {', '.join(KERNELS)}")
    if not listens:
        yield own
        return
    AttentionInterface.register(NAME, _attend)
    config._attn_implementation = NAME
    try:
        yield own
    finally:
        config._attn_implementation = own
