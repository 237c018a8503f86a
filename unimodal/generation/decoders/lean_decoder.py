"""One decoding step over the weights of a stock Llama, without what a general forward spends around them.

Hugging Face's step on a small model is mostly overhead: mask building, cache bookkeeping, kwargs, a rotary table per
call. Here the cache is one preallocated tensor, the rotary table and the padding mask are made once, and a layer is
about twenty operations. The linear modules are called as they are, so LoRA and the like keep working; equality with the
stock forward is tested to 1e-5. `PackedDecoder` is the same over rearranged copies of the weights.

Shapes: S streams, P tokens of a step, V latest slots, C capacity of the cache, H query heads, K key/value heads, D head
width, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.decoders.reference_decoder import common_suffix, left_pad, places_after, visible_mask

# Up to so many new tokens a mask repeated for each head of a group is cheaper than repeated keys and values.
_FEW = 128
# Padded prompts are read in pieces of so many tokens: their mask, [S, P, N], would outgrow the cache.
_PIECE = 512
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

    def start(
        self, prompts: Sequence[Sequence[int]], pad_id: int, capacity: int, prefixes: Sequence[Any] | None = None
    ) -> Tensor:
        """Read the prompts and return the last hidden states [S, E]; ``capacity`` is the most a stream will hold.

        prefixes: for each prompt (what `export` gave for a text that begins with the same tokens, how many of them to
        take), or None.
        """
        norm = self.backbone.norm.weight
        device, dtype = norm.device, norm.dtype
        ids, self.pads = left_pad(prompts, pad_id, device)
        num_streams = len(prompts)
        shape = (len(self.layers), 2, num_streams, self.num_kv_heads, capacity, self.width)
        self.cache = torch.empty(shape, device=device, dtype=dtype)  # read only up to self.length
        self.length = 0
        self._set_padding()
        every = torch.arange(capacity, device=device)[None]
        cos, sin = self.backbone.rotary_emb(norm, every)  # [1, C, D]
        half = self.width // 2  # rotate_half(x) * sin == roll(x, D / 2) * (sin with its first half negated)
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        given = list(prefixes or [None] * num_streams)
        suffix = common_suffix(prompts, [0 if prefix is None else prefix[1] for prefix in given])
        first = ids.shape[1] - suffix
        for stream, prefix in enumerate(given):
            pad = ids.shape[1] - len(prompts[stream])
            if pad < first:  # then the prefix has at least these tokens
                self.cache[:, :, stream, :, pad:first] = prefix[0][:, :, :, : first - pad]
            self.cache[:, :, stream, :, : min(pad, first)] = 0  # what padding leaves unwritten must be finite
        self.length = first
        self.computed = suffix
        piece = _PIECE if self.padded else suffix
        for begin in range(first, ids.shape[1], piece):
            hidden = self.step(ids[:, begin : begin + piece])
        return hidden

    def _set_padding(self) -> None:
        """[S, 1, 1, C] added to attention scores: -inf on the left padding. None without padding."""
        self.padded = bool(self.pads.any())
        self.bias: Tensor | None = None
        if self.padded:
            padding = torch.arange(self.cache.shape[4], device=self.cache.device) < self.pads[:, None]
            bias = torch.zeros(padding.shape, device=self.cache.device, dtype=self.cache.dtype)
            self.bias = bias.masked_fill_(padding, -torch.inf)[:, None, None]

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only."""
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads = self.pads[index]
        kept = self.cache.new_empty((*self.cache.shape[:2], len(index), *self.cache.shape[3:]))
        kept[..., : self.length, :] = self.cache[..., : self.length, :].index_select(2, index)
        self.cache = kept
        self._set_padding()

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        """Of the last ``num_new`` tokens only those numbered ``kept``, ascending, by stream, stay.

        A stream that keeps fewer than another moves in the cache (see `places_after`); keys carry their own rotation,
        so nothing is recomputed.
        """
        before = self.pads.tolist()
        moves, self.length = places_after(before, kept, self.length, num_new)
        for stream, (start, slots) in enumerate(moves):
            if start == before[stream] and slots == list(range(start, start + len(slots))):
                continue
            held = self.cache[:, :, stream]  # [L, 2, K, C, D]
            fresh = len(slots) if start != before[stream] else len(kept[stream])  # those that stand elsewhere now
            index = torch.tensor(slots[len(slots) - fresh :], dtype=torch.int64, device=self.pads.device)
            held[:, :, :, self.length - fresh : self.length] = held.index_select(3, index)
            held[:, :, :, :start] = 0
        after = [start for start, _ in moves]
        if after != before:
            self.pads = torch.tensor(after, device=self.pads.device)
            self._set_padding()

    def export(self, stream: int) -> Tensor:
        """A copy of the keys and values of what this stream has read, [L, 2, K, n, D]."""
        return self.cache[:, :, stream, :, int(self.pads[stream]) : self.length].clone()

    def num_read(self, stream: int) -> int:
        """Tokens that this stream holds."""
        return self.length - int(self.pads[stream])

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        """Append ids [S, P] to every stream and return the last hidden state [S, E], or all [S, P, E] with ``every``.

        offsets [S, P]: positions from the next one on, in place of 0, 1, …; visible: see `visible_mask`.
        """
        num_new = ids.shape[1]
        begin, end = self.length, self.length + num_new
        assert end <= self.cache.shape[4], (end, self.cache.shape)
        if self.bias is None and offsets is None:
            positions: Any = slice(begin, end)
        else:
            if offsets is None:
                offsets = torch.arange(num_new, device=ids.device)[None]
            positions = (begin - self.pads[:, None] + offsets).clamp_(min=0)  # [S, P]
        x = self._layers(self.embed(ids), positions, begin, end, self._bias(begin, end, visible))  # [S, P, E]
        self.length = end
        return rms_norm(self.backbone.norm, x if every else x[:, -1])

    def _bias(self, begin: int, end: int, visible: Tensor | None) -> Tensor | None:
        """What is added to the scores of tokens begin..end over keys 0..end: [S or 1, 1, P or 1, end], or None."""
        if visible is None and end - begin == 1:
            return None if self.bias is None else self.bias[..., :end]
        if visible is None and self.bias is None and begin == 0:
            return None  # plain causal: the kernel's own triangle
        if visible is None and self.bias is None:
            keys = torch.arange(end, device=self.cache.device)
            seen = (keys <= keys[begin:, None])[None]
        else:
            seen = visible_mask(visible, self.pads, begin, end)
        bias = torch.zeros(seen.shape, device=self.cache.device, dtype=self.cache.dtype)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]

    def _layers(self, x: Tensor, positions: Any, begin: int, end: int, bias: Tensor | None) -> Tensor:
        """x [S, P, E] through all layers; ``positions`` a slice of the rotary table or an index [S, P] into it."""
        cos, sin = self.cos[positions], self.sin[positions]  # [P, D] or [S, P, D]
        if cos.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]  # [S, 1, P, D]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = self._attend(layer, x, cache, cos, sin, begin, end, bias)
            mlp = layer.mlp
            h = rms_norm(layer.post_attention_layernorm, x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        return x

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
        h = rms_norm(layer.input_layernorm, x)
        queries_keys = torch.cat([attention.q_proj(h), attention.k_proj(h)], -1)
        queries_keys = queries_keys.view(num_streams, num_new, -1, self.width).transpose(1, 2)  # [S, H + K, P, D]
        rotated = torch.addcmul(queries_keys * cos, queries_keys.roll(self.width // 2, -1), sin)
        q, k = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        value = attention.v_proj(h).view(num_streams, num_new, self.num_kv_heads, self.width)
        held = self._written(cache, k, value.transpose(1, 2), begin, end)
        return x + attention.o_proj(attend(q, held[0], held[1], bias, attention.scaling))

    def _written(self, cache: Tensor, k: Tensor, v: Tensor, begin: int, end: int) -> Tensor:
        """Take keys and values [S, K, P, D] of a layer into its cache [2, S, K, C, D]; all that it holds,
        [2, S, K, end, D]."""
        cache[0, :, :, begin:end] = k
        cache[1, :, :, begin:end] = v
        return cache[..., :end, :]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """q [S, H, P, D] over k and v [S, K, N, D], causal without a bias -> [S, P, H * D]."""
    num_streams, num_heads, num_new, width = q.shape
    repeats = num_heads // k.shape[1]
    if repeats > 1 and (num_new == 1 or (bias is not None and num_new <= _FEW)):
        q = q.reshape(num_streams, -1, repeats * num_new, width)  # a group's heads are queries of one key/value head
        bias = bias if bias is None or num_new == 1 else bias.repeat(1, 1, repeats, 1)
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None and num_new > 1, scale=scale)
    return out.reshape(num_streams, num_heads, num_new, width).transpose(1, 2).reshape(num_streams, num_new, -1)


def rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    """LlamaRMSNorm without its casts; on a processor F.rms_norm takes three times as long for a few tokens."""
    if x.dtype != torch.float32:
        return module(x)
    scale = x.square().mean(-1, keepdim=True).add_(module.variance_epsilon).rsqrt_()
    return (x * scale).mul_(module.weight)
