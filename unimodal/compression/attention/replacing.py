"""What replaces full attention over a grid of tokens: a context in which torch's own attention is another.

Networks that call `scaled_dot_product_attention` need no change. Calls over as many tokens as the grid has, and those
around it, without a mask, are replaced; all others stay as they are. Entering does nothing to a network, and leaving
restores nothing.

Shapes: B items, H heads, N tokens, D width of a head.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class ReplacedAttention(TorchFunctionMode):
    """Within it, full attention over the tokens of a grid is `attend`.

    grid: tokens along each axis, the last one fastest, such as (frames, rows, columns). before, after: tokens of the
    sequence around those of the grid, such as a class token and a text. num_calls: how many calls were replaced so far.
    Raises ValueError for a grid without tokens, and on leaving when nothing was replaced.
    """

    def __init__(self, grid: Sequence[int], before: int = 0, after: int = 0):
        super().__init__()
        if not grid or min(grid) < 1 or before < 0 or after < 0:
            raise ValueError(f"a grid of {tuple(grid)} with {before} and {after} tokens around it has no attention")
        self.grid, self.before, self.after = tuple(grid), before, after
        self.num_calls = 0

    @property
    def num_tokens(self) -> int:
        """N, of the grid and around it."""
        return self.before + math.prod(self.grid) + self.after

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query, key, value [B, H, N, D] → [B, H, N, D]. scale: of the scores; None is 1 / sqrt(D)."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            call = {**dict(zip(names, args, strict=False)), **given}
            query, key, value, scale = call["query"], call["key"], call["value"], call.get("scale")
            if isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor) and self._fits(call):
                self.num_calls += 1
                repeats = query.shape[1] // key.shape[1]
                key, value = (each.repeat_interleave(repeats, 1) if repeats > 1 else each for each in (key, value))
                return self.attend(query, key, value, float(scale) if isinstance(scale, float | int) else None)
        return func(*args, **given)

    def _fits(self, call: Mapping[str, object]) -> bool:
        query, key = call["query"], call["key"]
        assert isinstance(query, Tensor) and isinstance(key, Tensor)
        is_full = call.get("attn_mask") is None and not call.get("dropout_p") and not call.get("is_causal")
        return is_full and query.dim() == 4 and query.shape[2] == key.shape[2] == self.num_tokens

    def __enter__(self) -> Self:
        super().__enter__()
        self.num_calls = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and not self.num_calls:
            raise ValueError(
                f"no full attention over {self.num_tokens} tokens was met; name the grid of the network's tokens and "
                "how many stand before and after it"
            )


#: whether a query sees a key: indices of item, head, query and key, which broadcast → bool
SeesPair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_pairs(
    query: Tensor, key: Tensor, value: Tensor, sees: SeesPair, scale: float | None, flex: bool | None = None
) -> Tensor:
    """Attention [B, H, N, D] of the pairs that are seen.

    flex: by FlexAttention and its block mask, for which blocks without a pair cost nothing; by default on a GPU, where
    it is compiled. Elsewhere a dense mask says the same, and nothing is saved.
    """
    on_gpu = query.device.type == "cuda"
    if flex if flex is not None else on_gpu:
        made = find_kernel(on_gpu)(query, key, value, block_mask=make_block_mask(sees, query.shape[:3]), scale=scale)
        assert isinstance(made, Tensor)
        return made
    batch, heads, num = query.shape[:3]
    index = [torch.arange(size, device=query.device) for size in (batch, heads, num, num)]
    shaped = (each.view([-1 if axis == at else 1 for at in range(4)]) for axis, each in enumerate(index))
    return scaled_dot_product_attention(query, key, value, attn_mask=sees(*shaped), scale=scale)


def make_block_mask(sees: SeesPair, shape: Sequence[int]) -> BlockMask:
    """FlexAttention's mask of queries and keys [B, H, N]."""
    batch, heads, num = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return create_block_mask(sees, batch, heads, num, num, device=device)


@cache
def find_kernel(compiles: bool) -> Callable[..., object]:
    """FlexAttention, compiled or as it is."""
    return torch.compile(flex_attention, dynamic=False) if compiles else flex_attention
