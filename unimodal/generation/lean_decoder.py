"""One decoding step over the weights of a stock Llama, without what a general forward spends around them.

Hugging Face's step on a small model is mostly overhead: mask building, cache bookkeeping, kwargs, a rotary table per
call. Here the cache is one preallocated tensor, the rotary table and the padding mask are made once, and a layer is
about twenty operations. The linear modules are called as they are, so LoRA and the like keep working; equality with the
stock forward is tested to 1e-5.

Shapes: S streams, P tokens of a step, C capacity of the cache, H query heads, K key/value heads, D head width, E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.reference_decoder import left_pad

# Rotary tables that are the same whatever the length of the sequence.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def lean_problem(model: nn.Module) -> str | None:
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


class LeanDecoder:
    """The same interface as ReferenceDecoder, for stock Llama models."""

    def __init__(self, model: nn.Module) -> None:
        problem = lean_problem(model)
        if problem is not None:
            raise ValueError(f"the lean decoder does not fit this model ({problem}); use decoder='reference'")
        self.embed = model.get_input_embeddings()
        self.backbone = model.get_decoder()
        config = self.backbone.config
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = config.head_dim
        self.layers = list(self.backbone.layers[: config.num_hidden_layers])

    def start(self, prompts: Sequence[Sequence[int]], pad_id: int, capacity: int) -> Tensor:
        """Read the prompts and return the last hidden states [S, E]; ``capacity`` is the most a stream will hold."""
        norm = self.backbone.norm.weight
        device, dtype = norm.device, norm.dtype
        ids, self.pads = left_pad(prompts, pad_id, device)
        num_streams = len(prompts)
        shape = (len(self.layers), 2, num_streams, self.num_kv_heads, capacity, self.width)
        self.cache = torch.empty(shape, device=device, dtype=dtype)  # read only up to self.length
        self.length = 0
        self.bias: Tensor | None = None
        if bool(self.pads.any()):  # [S, 1, 1, C] added to attention scores: -inf on the left padding
            padding = torch.arange(capacity, device=device) < self.pads[:, None]
            self.bias = torch.zeros(padding.shape, device=device, dtype=dtype).masked_fill_(padding, -torch.inf)
            self.bias = self.bias[:, None, None]
        every = torch.arange(capacity, device=device)[None]
        cos, sin = self.backbone.rotary_emb(norm, every)  # [1, C, D]
        half = self.width // 2  # rotate_half(x) * sin == roll(x, D / 2) * (sin with its first half negated)
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        return self.step(ids)

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only."""
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads = self.pads[index]
        if self.bias is not None:
            self.bias = self.bias[index]
        kept = self.cache.new_empty((*self.cache.shape[:2], len(index), *self.cache.shape[3:]))
        kept[..., : self.length, :] = self.cache[..., : self.length, :].index_select(2, index)
        self.cache = kept

    def step(self, ids: Tensor) -> Tensor:
        """Append ids [S, P] to every stream and return the last hidden state [S, E]."""
        num_streams, num_new = ids.shape
        begin, end = self.length, self.length + num_new
        assert end <= self.cache.shape[4], (end, self.cache.shape)
        if self.bias is None:
            cos, sin = self.cos[begin:end], self.sin[begin:end]  # [P, D]
        else:
            positions = (torch.arange(begin, end, device=ids.device) - self.pads[:, None]).clamp_(min=0)  # [S, P]
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # [S, 1, P, D]
        bias = self._bias(begin, end)
        x = self.embed(ids)  # [S, P, E]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = self._attend(layer, x, cache, cos, sin, begin, end, bias)
            mlp = layer.mlp
            h = _rms_norm(layer.post_attention_layernorm, x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        self.length = end
        return _rms_norm(self.backbone.norm, x[:, -1])

    def _bias(self, begin: int, end: int) -> Tensor | None:
        """What is added to the scores of tokens begin..end over keys 0..end: [S or 1, 1, P or 1, end], or None."""
        if end - begin == 1:
            return None if self.bias is None else self.bias[..., :end]
        if self.bias is None and begin == 0:
            return None  # plain causal: the kernel's own triangle
        keys = torch.arange(end, device=self.cache.device)
        queries = keys[begin:, None]
        bias = torch.zeros(end - begin, end, device=self.cache.device, dtype=self.cache.dtype)
        bias.masked_fill_(keys > queries, -torch.inf)  # aligned bottom-right: a new token sees itself and all before
        if self.bias is None:
            return bias[None, None]
        bias = bias + self.bias[..., :end]
        return bias.masked_fill(keys == queries, 0.0)  # a padding query sees itself, never nothing: no NaN

    def _attend(
        self,
        layer: nn.Module,
        x: Tensor,
        cache: Tensor,
        cos: Tensor,
        sin: Tensor,
        begin: int,
        end: int,
        bias: Tensor | None,
    ) -> Tensor:
        """x [S, P, E] plus its attention; writes the new keys and values into cache [2, S, K, C, D]."""
        num_streams, num_new, _ = x.shape
        attention = layer.self_attn
        h = _rms_norm(layer.input_layernorm, x)
        queries_keys = torch.cat([attention.q_proj(h), attention.k_proj(h)], -1)
        queries_keys = queries_keys.view(num_streams, num_new, -1, self.width).transpose(1, 2)  # [S, H + K, P, D]
        rotated = torch.addcmul(queries_keys * cos, queries_keys.roll(self.width // 2, -1), sin)
        q = rotated[:, : self.num_heads]
        cache[0, :, :, begin:end] = rotated[:, self.num_heads :]
        value = attention.v_proj(h).view(num_streams, num_new, self.num_kv_heads, self.width)
        cache[1, :, :, begin:end] = value.transpose(1, 2)
        k, v = cache[0, :, :, :end], cache[1, :, :, :end]
        repeats = self.num_heads // self.num_kv_heads
        if repeats > 1 and num_new == 1:  # the heads of a group become the queries of one key/value head
            q = q.view(num_streams, self.num_kv_heads, repeats, self.width)
        elif repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        causal = bias is None and num_new > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=attention.scaling)
        out = out.reshape(num_streams, self.num_heads, num_new, self.width).transpose(1, 2)
        return x + attention.o_proj(out.reshape(num_streams, num_new, -1))


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    """LlamaRMSNorm without its casts; on a processor F.rms_norm takes three times as long for a few tokens."""
    if x.dtype != torch.float32:
        return module(x)
    scale = x.square().mean(-1, keepdim=True).add_(module.variance_epsilon).rsqrt_()
    return (x * scale).mul_(module.weight)
