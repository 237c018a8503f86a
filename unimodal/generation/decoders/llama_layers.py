"""The layers of a stock Llama without the overhead of its general forward.

Hugging Face's step on a small model is mostly overhead: mask building, cache bookkeeping, kwargs, a rotary table per
call. Here a layer is about twenty operations. Masks, positions and the cache are the caller's: it gives the rotary
positions of the new tokens, stores their keys and values, and returns all that the layer holds. The linear modules are
called as they are, so LoRA keeps working. `PackedLayers` do the same over copies of the weights.

Shapes: S streams, P tokens of a step, N tokens held, C positions, H query heads, K key/value heads, D head width, E
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.depth_decoder import embed_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

# Up to so many new tokens, repeating the mask for each head of a group is cheaper than repeating keys and values.
_FEW = 128
# Types of rotary tables that do not depend on the length of the sequence.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")

#: (number of the layer, new keys and values [S, K, P, D]) → all keys and values that the layer now holds, [S, K, N, D]
WriteCache = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def find_lean_problem(model: PreTrainedModel) -> str | None:
    """Why this model needs the reference decoder (one line), or None."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

    backbone = model.get_decoder()
    if type(backbone) is not LlamaModel:
        return f"{type(backbone).__name__} is not LlamaModel"
    if any(type(layer) is not LlamaDecoderLayer for layer in backbone.layers):
        return "a decoder layer has been replaced"
    if backbone.config.rope_parameters["rope_type"] not in _STATIC_ROPE:
        return f"rotary positions of type {backbone.config.rope_parameters['rope_type']!r} depend on the length"
    return None


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """cos and sin [C, D] of every position. sin's first half is negated: x * cos + roll(x, D / 2) * sin rotates x."""

    cos: Tensor
    sin: Tensor

    @cached_property
    def turns(self) -> Tensor:
        """The same as complex numbers [C, 1, D / 2], for heads whose halves are interleaved."""
        half = self.cos.shape[1] // 2
        sin = self.sin[:, half:].float().contiguous()
        return torch.complex(self.cos[:, :half].float().contiguous(), sin)[:, None]


class LlamaLayers:
    """The decoder layers of a Llama with their embedding and last norm. Raises ValueError for another model."""

    def __init__(self, model: PreTrainedModel) -> None:
        problem = find_lean_problem(model)
        if problem is not None:
            raise ValueError(f"the lean decoder does not fit this model ({problem}); use decoder='reference'")
        self.table: nn.Module = model.get_input_embeddings()
        self.backbone: LlamaModel = model.get_decoder()
        config = self.backbone.config
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = config.head_dim
        self.layers: list[LlamaDecoderLayer] = list(self.backbone.layers[: config.num_hidden_layers])

    @property
    def device(self) -> torch.device:
        return self.backbone.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the cached keys and values."""
        return self.backbone.norm.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Embed rows [S, P] or positions [S, P, G] as [S, P, E]."""
        return embed_positions(self.table, ids)

    def refresh(self) -> bool:
        """Take over weights that have changed since the last call; return whether copies were made again."""
        return False

    def make_cache(self, num_streams: int, capacity: int) -> Tensor:
        """An unfilled cache for keys and values of L layers, [L, 2, S, K, C, D]."""
        shape = (len(self.layers), 2, num_streams, self.num_kv_heads, capacity, self.width)
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def make_rotary(self, num_positions: int) -> RotaryTable:
        every = torch.arange(num_positions, device=self.device)[None]
        cos, sin = self.backbone.rotary_emb(self.backbone.norm.weight, every)  # [1, C, D]
        half = self.width // 2  # rotate_half(x) * sin == roll(x, D / 2) * (sin with its first half negated)
        return RotaryTable(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1))

    def run(
        self, x: Tensor, rotary: RotaryTable, positions: slice | Tensor, write: WriteCache, bias: Tensor | None
    ) -> Tensor:
        """Run x [S, P, E] through all layers, without the last norm.

        positions: a slice of the rotary table, or an index int64 [S, P] into it. write: stores the new keys and values
        of a layer and returns all. bias: [S or 1, 1, P or 1, N], added to the attention scores; None is causal over
        these P tokens, or all N for a single token.
        """
        cos, sin = rotary.cos[positions], rotary.sin[positions]  # [P, D] or [S, P, D]
        if cos.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]  # [S, 1, P, D]
        for number, layer in enumerate(self.layers):
            x = self._attend(number, layer, x, cos, sin, write, bias)
            mlp = layer.mlp
            h = apply_rms_norm(layer.post_attention_layernorm, x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        return x

    def apply_norm(self, x: Tensor) -> Tensor:
        """Apply the model's last norm, [S, P, E]."""
        return apply_rms_norm(self.backbone.norm, x)

    def _attend(
        self,
        number: int,
        layer: LlamaDecoderLayer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        write: WriteCache,
        bias: Tensor | None,
    ) -> Tensor:
        """x [S, P, E] plus its attention."""
        num_streams, num_new, _ = x.shape
        attention = layer.self_attn
        h = apply_rms_norm(layer.input_layernorm, x)
        queries_keys = torch.cat([attention.q_proj(h), attention.k_proj(h)], -1)
        queries_keys = queries_keys.view(num_streams, num_new, -1, self.width).transpose(1, 2)  # [S, H + K, P, D]
        rotated = torch.addcmul(queries_keys * cos, queries_keys.roll(self.width // 2, -1), sin)
        q, k = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        value = attention.v_proj(h).view(num_streams, num_new, self.num_kv_heads, self.width)
        keys, values = write(number, k, value.transpose(1, 2))
        return x + attention.o_proj(attend(q, keys, values, bias, attention.scaling))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attention of q [S, H, P, D] over k and v [S, K, N, D] -> [S, P, H * D]; causal if bias is None."""
    num_streams, num_heads, num_new, width = q.shape
    repeats = num_heads // k.shape[1]
    if repeats > 1 and (num_new == 1 or (bias is not None and num_new <= _FEW)):
        q = q.reshape(num_streams, -1, repeats * num_new, width)  # a group's heads are queries of one key/value head
        bias = bias if bias is None or num_new == 1 else bias.repeat(1, 1, repeats, 1)
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None and num_new > 1, scale=scale)
    return out.reshape(num_streams, num_heads, num_new, width).transpose(1, 2).reshape(num_streams, num_new, -1)


def apply_rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    """LlamaRMSNorm without its casts; F.rms_norm takes three times as long for a few tokens on a processor."""
    if x.dtype != torch.float32:
        return module(x)
    scale = x.square().mean(-1, keepdim=True).add_(module.variance_epsilon).rsqrt_()
    return (x * scale).mul_(module.weight)
