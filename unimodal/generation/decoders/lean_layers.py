"""The layers of a stock base without the overhead of its general forward.

Hugging Face's step on a small model is mostly overhead: mask building, cache bookkeeping, kwargs, a rotary table per
call. Here a layer is about twenty operations. The caller says where new tokens go in its cache and what they see
(`StepView`). The linear modules are called as they are, so LoRA keeps working. `PackedLayers` do the same over copies
of the weights. How bases differ is in `base_table.py`.

Shapes: S streams, P tokens of a step, N tokens held, C positions, H query heads, K key/value heads, D head width, R
rotated part of it, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.decoders.base_table import LayerParts, read_base
from unimodal.generation.decoders.kv_cache import KeyValueCache
from unimodal.generation.decoders.step_view import StepView
from unimodal.model.depth_decoder import embed_positions
from unimodal.model.soft_prompt import find_prompted_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Up to so many new tokens, repeating the mask for each head of a group is cheaper than repeating keys and values.
_FEW = 128


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """cos and sin [C, R] of every position. sin's first half is negated: x * cos + roll(x, R / 2) * sin rotates x."""

    cos: Tensor
    sin: Tensor

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor]:
        """cos and sin of the pairs, float32 [C, R / 2]."""
        half = self.cos.shape[1] // 2
        return self.cos[:, :half].float().contiguous(), self.sin[:, half:].float().contiguous()

    @cached_property
    def turns(self) -> Tensor:
        """The same as complex numbers [C, 1, R / 2], for heads whose halves are interleaved."""
        return torch.complex(*self.halves)[:, None]


#: a table for each kind of rotation of a base
RotaryTables = Sequence[RotaryTable]


class LeanLayers:
    """The decoder layers of a stock base with their embedding and last norm. Raises ValueError for another model.

    kv: the kind of its caches, of `CACHES`. rings: whether layers with windows have a cache of their own, which holds
    no more than these see.
    """

    def __init__(self, model: PreTrainedModel, kv: str = "model", rings: bool = True) -> None:
        self.base = read_base(model)
        self.table: nn.Module = model.get_input_embeddings()
        self.prompted = find_prompted_table(model)
        self.backbone: nn.Module = model.get_decoder()
        self.num_heads, self.num_kv_heads = self.base.num_heads, self.base.num_kv_heads
        self.width = self.base.head_width
        self.kv = kv
        self.windows = [layer.window if rings else None for layer in self.base.layers]
        #: for each layer its cache (of those that see all, or of those with windows), and its number in it
        self.homes: list[tuple[int, int]] = []
        kinds = [window is not None for window in self.windows]
        for number, near in enumerate(kinds):
            self.homes.append((int(near and not all(kinds)), kinds[:number].count(near)))
        KeyValueCache((0, 2, 0, 0, 0), kv, torch.float32, torch.device("cpu"))  # refuses an unknown kind

    @property
    def device(self) -> torch.device:
        return self.backbone.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the keys and values that attention reads."""
        return self.backbone.norm.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Embed rows [S, P] or positions [S, P, G] as [S, P, E]."""
        x = embed_positions(self.table, ids)
        return x if self.base.embedding_factor == 1.0 else x * self.base.embedding_factor

    def refresh(self) -> bool:
        """Take over weights that have changed since the last call; return whether copies were made again."""
        return False

    def list_caches(self) -> list[tuple[Callable[[int], KeyValueCache], int | None]]:
        """For each of the caches of ``homes`` what makes one [L, 2, K, T, D] of T slots, and its longest window."""
        wide, near = self.windows.count(None), [window for window in self.windows if window is not None]
        found: list[tuple[Callable[[int], KeyValueCache], int | None]] = []
        if wide or not near:
            found.append((partial(self._make_cache, wide), None))
        if near:
            found.append((partial(self._make_cache, len(near)), max(near)))
        return found

    def _make_cache(self, num_layers: int, num_slots: int) -> KeyValueCache:
        shape = (num_layers, 2, self.num_kv_heads, num_slots, self.width)
        return KeyValueCache(shape, self.kv, self.dtype, self.device)

    def make_rotary(self, num_positions: int) -> RotaryTables:
        every = torch.arange(num_positions, device=self.device)[None]
        tables = []
        for kind in self.base.rotary_kinds:
            cos, sin = self.backbone.rotary_emb(self.backbone.norm.weight, every, *([] if kind is None else [kind]))
            half = cos.shape[-1] // 2  # rotate_half(x) * sin == roll(x, R / 2) * (sin with its first half negated)
            tables.append(RotaryTable(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)))
        return tables

    def run(self, x: Tensor, rotary: RotaryTables, view: StepView) -> Tensor:
        """Run x [S, P, E] through all layers, without the last norm."""
        turns = [(table.cos[view.positions], table.sin[view.positions]) for table in rotary]  # [P, R] or [S, P, R]
        turns = [(cos[:, None], sin[:, None]) if cos.dim() == 3 else (cos, sin) for cos, sin in turns]
        for number, layer in enumerate(self.base.layers):
            h = self._apply(layer.attention_norm, x)
            h = self.project_out(number, self._attend(number, layer, h, turns, view))
            x = self._add(x, h, layer.attention_end_norm, layer.residual)
            h = self.run_mlp(number, self._apply(layer.mlp_norm, x))
            x = self._add(x, h, layer.mlp_end_norm, layer.residual)
        return x

    def apply_norm(self, x: Tensor) -> Tensor:
        """Apply the model's last norm, [S, P, E]."""
        return self._apply(self.backbone.norm, x)

    # ---- the products of a layer, which copies of the weights do in their own way

    def project(self, number: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of h [S, P, E], each [S, P, heads * D]."""
        attention = self.base.layers[number].attention
        if hasattr(attention, "qkv_proj"):
            return self.split_heads(attention.qkv_proj(h))
        return attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)

    def project_out(self, number: int, h: Tensor) -> Tensor:
        """[S, P, H * D] → [S, P, E]."""
        return self.base.layers[number].attention.o_proj(h)

    def run_mlp(self, number: int, h: Tensor) -> Tensor:
        """[S, P, E] → [S, P, E]."""
        return self.base.layers[number].mlp(h)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[S, P, (H + 2K) * D] → queries, keys and values."""
        q, k, v = qkv.split([n * self.width for n in (self.num_heads, self.num_kv_heads, self.num_kv_heads)], -1)
        return q, k, v

    def _apply(self, norm: nn.Module | None, x: Tensor) -> Tensor:
        return x if norm is None else apply_rms_norm(norm, x, self.base.added)

    def _add(self, x: Tensor, h: Tensor, norm: nn.Module | None, factor: float) -> Tensor:
        h = self._apply(norm, h)
        return x + h if factor == 1.0 else torch.add(x, h, alpha=factor)

    def _attend(
        self, number: int, layer: LayerParts, h: Tensor, turns: list[tuple[Tensor, Tensor]], view: StepView
    ) -> Tensor:
        """The attention of h [S, P, E], whose keys and values are written to the cache: [S, P, H * D]."""
        num_streams, num_new, _ = h.shape
        q, k, v = self.project(number, h)
        if layer.whole_norms:
            q, k = self._apply(layer.query_norm, q), self._apply(layer.key_norm, k)
        queries_keys = torch.cat([q, k], -1).view(num_streams, num_new, -1, self.width).transpose(1, 2)
        if layer.query_norm is not None and not layer.whole_norms:
            q, k = queries_keys.split([self.num_heads, self.num_kv_heads], 1)
            queries_keys = torch.cat([self._apply(layer.query_norm, q), self._apply(layer.key_norm, k)], 1)
        if layer.rotary is not None:
            queries_keys = rotate(queries_keys, *turns[layer.rotary])  # [S, H + K, P, D]
        q, k = queries_keys[:, : self.num_heads], queries_keys[:, self.num_heads :]
        v = v.view(num_streams, num_new, self.num_kv_heads, self.width).transpose(1, 2)
        keys, values = view.write(number, k, v)
        out = attend(q.to(keys.dtype), keys, values, view.make_bias(number, layer.window), layer.scaling, layer.cap)
        return out.to(h.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [S, heads, P, D] turned by cos and sin [P, R] or [S, 1, P, R]; beyond R they stay."""
    turned = cos.shape[-1]
    if turned == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(turned // 2, -1), sin)
    part = x[..., :turned]
    return torch.cat([torch.addcmul(part * cos, part.roll(turned // 2, -1), sin), x[..., turned:]], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, cap: float | None = None) -> Tensor:
    """Attention of q [S, H, P, D] over k and v [S, K, N, D] -> [S, P, H * D]; causal if bias is None.

    cap: bounds the scores as Gemma 2 does (arXiv:2408.00118).
    """
    num_streams, num_heads, num_new, width = q.shape
    repeats = num_heads // k.shape[1]
    if repeats > 1 and (num_new == 1 or (bias is not None and num_new <= _FEW)):
        q = q.reshape(num_streams, -1, repeats * num_new, width)  # a group's heads are queries of one key/value head
        bias = bias if bias is None or num_new == 1 else bias.repeat(1, 1, repeats, 1)
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    causal = bias is None and num_new > 1
    if cap is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale)
    else:
        scores = torch.tanh(q @ k.transpose(2, 3) * (scale / cap)) * cap
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu_(1), -torch.inf)
        out = (scores if bias is None else scores + bias).softmax(-1) @ v
    return out.reshape(num_streams, num_heads, num_new, width).transpose(1, 2).reshape(num_streams, num_new, -1)


def apply_rms_norm(module: nn.Module, x: Tensor, added: float = 0.0) -> Tensor:
    """A stock RMSNorm without its casts, whose weight counts with ``added`` more.

    F.rms_norm takes three times as long for a few tokens on a processor.
    """
    if x.dtype != torch.float32:
        return module(x)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    normed = x * scale
    return normed.mul_(module.weight) if not added else torch.addcmul(normed * added, normed, module.weight)
