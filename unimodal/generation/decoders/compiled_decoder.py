"""The lean step with fixed shapes, compiled: for GPUs, on which a small step is mostly kernel launches.

The prompt is read eagerly, since its length always differs. A step of one token then has fixed shapes: it attends over
the whole capacity, with unused slots masked, and the slot that it writes is a tensor on the device. So `torch.compile`
compiles it once for a number of streams and a capacity (rounded up to ``GRAIN``), and its mode ``reduce-overhead``
replays it as a CUDA graph. On a processor, compiling takes half a minute and gains nothing, so it must be asked for
there.

Shapes: S streams, C capacity of the cache, H query heads, K key/value heads, D head width, E width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAIN = 64


class CompiledDecoder(LeanDecoder):
    """A `LeanDecoder` whose steps of one token run a compiled function of fixed shapes.

    backend, mode: arguments of `torch.compile`; backend None runs the same function uncompiled.
    """

    _mask: Tensor | None = None  # [S, 1, 1, C] added to attention scores; None while a prompt is read
    _slot: Tensor  # int64 [1], the slot that the next token takes

    def __init__(
        self, model: PreTrainedModel, backend: str | Callable | None = "inductor", mode: str | None = None
    ) -> None:
        super().__init__(model)
        if mode is None and backend == "inductor" and self.layers.device.type == "cuda":
            mode = "reduce-overhead"
        self.compiled = backend is not None
        self._step: Callable[..., Tensor] = self._step_once
        if backend is not None:
            self._step = torch.compile(self._step_once, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self._mask = None
        hidden = super().prefill(prompts, pad_id, -(-capacity // GRAIN) * GRAIN, prefixes)
        self._fix_shapes()
        return hidden

    def keep(self, streams: Sequence[int]) -> None:
        super().keep(streams)
        self._fix_shapes()

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        super().commit(kept, num_new)
        self._fix_shapes()

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        full = self.length + ids.shape[1] > self.cache.shape[4]
        if ids.shape[1] != 1 or offsets is not None or visible is not None or self._mask is None or full:
            hidden = super().step(ids, offsets, visible, every)
            if self._mask is not None:
                self._mask[..., self.length - ids.shape[1] : self.length] = 0
                self._slot += ids.shape[1]
            return hidden
        hidden = self._step(ids, self._slot, self.pads, self._mask, self.rotary.cos, self.rotary.sin, self.cache)
        self._slot = self._slot + 1
        self.length += 1
        if self.compiled and hidden.is_cuda:
            hidden = hidden.clone()  # the graph's own buffer is written again by the next step
        return hidden[:, None] if every else hidden

    def _grow(self, capacity: int) -> None:
        super()._grow(-(-capacity // GRAIN) * GRAIN)
        if self._mask is not None:
            self._fix_shapes()

    def _fix_shapes(self) -> None:
        """Zero unwritten slots (masked ones must be finite too) and make the mask and the slot anew."""
        self.cache[..., self.length :, :] = 0
        if self.cache.is_cuda:
            torch._dynamo.mark_static_address(self.cache)  # a graph may write what it was given
        slots = torch.arange(self.cache.shape[4], device=self.cache.device)
        hidden = (slots < self.pads[:, None]) | (slots >= self.length)
        mask = torch.zeros(hidden.shape, device=self.cache.device, dtype=self.cache.dtype)
        self._mask = mask.masked_fill_(hidden, -torch.inf)[:, None, None]  # [S, 1, 1, C]
        self._slot = torch.tensor([self.length], device=self.cache.device)

    def _step_once(
        self, ids: Tensor, slot: Tensor, pads: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, cache: Tensor
    ) -> Tensor:
        """ids [S, 1] at slot [1] -> hidden [S, E]; writes cache [L, 2, S, K, C, D] and mask [S, 1, 1, C]."""
        num_streams, own = ids.shape[0], self.layers
        mask.index_fill_(3, slot, 0.0)
        positions = slot - pads  # [S]
        turn_cos, turn_sin = cos[positions][:, None, None], sin[positions][:, None, None]  # [S, 1, 1, D]
        x = own.embed(ids)  # [S, 1, E]
        for number, layer in enumerate(own.layers):
            attention, mlp = layer.self_attn, layer.mlp
            h = layer.input_layernorm(x)
            q, k, v = (
                project(h).view(num_streams, 1, -1, own.width).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )  # [S, H or K, 1, D]
            q, k = (y * turn_cos + y.roll(own.width // 2, -1) * turn_sin for y in (q, k))
            cache[number, 0].index_copy_(2, slot, k)
            cache[number, 1].index_copy_(2, slot, v)
            q = q.reshape(num_streams, own.num_kv_heads, -1, own.width)
            out = F.scaled_dot_product_attention(
                q, cache[number, 0], cache[number, 1], attn_mask=mask, scale=attention.scaling
            )
            x = x + attention.o_proj(out.reshape(num_streams, 1, -1))
            h = layer.post_attention_layernorm(x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        return own.backbone.norm(x[:, -1])
