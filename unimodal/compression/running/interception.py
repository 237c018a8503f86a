"""Shows every attention call of a compressed layer to the executor, which calls the model's own kernel.

While a context is open anywhere, transformers' table of attention functions holds, under each kernel's name, a function
that asks whether the call belongs to a compressed layer. Any other call goes straight on to the kernel, so that other
models and threads notice nothing, and no config is changed. The last context to close puts the kernels back.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, W head width.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

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
    name: str  # of the kernel
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
    """Takes the attention calls of one layer of a running forward."""

    def attend(self, attention: LayerAttention) -> AttentionOutput: ...


#: the hook of the layer that runs here; layers that pass keywords on get it as `compression` too, so that a layer that
#: gradient checkpointing runs again, later or in another thread, still finds it
_HOOK: ContextVar[AttentionHook | None] = ContextVar("unimodal_compression_hook", default=None)


def find_hook() -> AttentionHook | None:
    """The hook of the layer that runs here."""
    return _HOOK.get()


@contextmanager
def hook_attention(hook: AttentionHook | None) -> Iterator[None]:
    """A context in which the attention calls made here go through the hook, or with None to the kernel."""
    token = _HOOK.set(hook)
    try:
        yield
    finally:
        _HOOK.reset(token)


class _Interception:
    """Counts who needs the attention functions replaced, and holds the kernels meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.kernels: dict[str, Kernel | None] = {}

    def install(self) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            table = AttentionInterface()
            for name in KERNELS:
                if name not in table and name != "eager":
                    continue
                self.kernels[name] = table.get(name)
                AttentionInterface.register(name, _make_attention(name, self.kernels[name]))

    def remove(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users:
                return
            for name, kernel in self.kernels.items():
                if kernel is None:
                    del AttentionInterface._global_mapping[name]
                else:
                    AttentionInterface.register(name, kernel)
            self.kernels = {}


INTERCEPTION = _Interception()


def _make_attention(name: str, kernel: Kernel | None) -> Kernel:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: object,
        compression: AttentionHook | None = None,
        **settings: object,
    ) -> AttentionOutput:
        own = kernel or sys.modules[type(module).__module__].eager_attention_forward
        hook = compression or _HOOK.get()
        if hook is None:
            return own(module, query, key, value, attention_mask, *args, **settings)
        assert not args, "attention settings are keywords"
        return hook.attend(LayerAttention(module, own, name, query, key, value, attention_mask, settings))

    return attend
