"""The lean step over rearranged copies of the weights: fewer and larger operations, and fewer bytes.

The time of a decoding step is spent on reading weights, so the copies may be narrower than the model: ``bfloat16``
halves the bytes (AVX-512 bf16 instructions), ``int8`` quarters them (VNNI; weights by output channel, activations by
row, as in arXiv:2208.07339 without its outliers). Both lose a little; `tools/bench_generation.py` measures how much.
``float32`` differs only in the order of rounding.

In the copies, query, key and value are one product, gate and up another; the norm's weight is folded into the product
behind it; the halves of a rotated head are interleaved, so that a rotation is one complex multiplication; float32
products read a transposed weight, which a processor does twice as fast for a few rows. int8 activations have one range
for all rows of a call, each scaled to the same size: a row's rounding, and so its answer, may depend on its neighbours.

Shapes: S streams, P tokens of a step, M = S * P, C capacity of the cache, H query heads, K key/value heads, D head
width, E width, F width of the MLP.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.llama_layers import LlamaLayers, RotaryTable, WriteCache, attend
from unimodal.generation.head import WeightState, read_weight_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

WEIGHTS = ("float32", "bfloat16", "int8")


def find_packed_problem(model: PreTrainedModel) -> str | None:
    """Why the layers of a lean model cannot be packed (one line), or None."""
    for layer in model.get_decoder().layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj,
                       mlp.up_proj, mlp.down_proj):  # fmt: skip
            if type(linear) is not nn.Linear or linear.bias is not None:
                return "a projection is not a plain Linear without bias; merge adapters first"
        if type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            return f"its activation is {type(mlp.act_fn).__name__}, not SiLU"
    return None


class _Product(Protocol):
    """x @ W.T [M, out] for float32 x [M, in], over a copy of W [out, in]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add_to(self, base: Tensor, x: Tensor) -> Tensor:
        """base [M, out] + the product."""


class _Float32:
    """The product over a transposed copy."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.float().t().contiguous()  # [in, out]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight)

    def add_to(self, base: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(base, x, self.weight)


class _BFloat16:
    """The product in bfloat16 with fp32 sums; fp32 in and out."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight).float()

    def add_to(self, base: Tensor, x: Tensor) -> Tensor:
        return base + F.linear(x.bfloat16(), self.weight)


class _Int8:
    """The product in 8 bits: symmetric weights by output channel, activations by row.

    torch uses one range for all rows of a call. Rows are scaled to the same size first, since the first token of a
    prompt may be a hundred times larger than the others (arXiv:2402.17762) and would leave them few steps of the range.

    Without VNNI a processor adds two products in 16 bits, which may overflow silently; activations get 7 bits then.
    """

    def __init__(self, weight: Tensor) -> None:
        self.in_seven_bits = not torch.cpu._is_vnni_supported()
        scale = weight.float().abs().amax(1).clamp_(min=1e-12) / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch moves its quantized tensors to another package
            packed = torch.quantize_per_channel(weight.float(), scale, torch.zeros(len(scale)).long(), 0, torch.qint8)
        self.weight = torch.ops.quantized.linear_prepack(packed, None)

    def __call__(self, x: Tensor) -> Tensor:
        size = x.abs().amax(1, keepdim=True).clamp_(min=1e-12)  # [M, 1]
        return torch.ops.quantized.linear_dynamic(x / size, self.weight, self.in_seven_bits).mul_(size)

    def add_to(self, base: Tensor, x: Tensor) -> Tensor:
        return self(x).add_(base)


_KINDS: dict[str, Callable[[Tensor], _Product]] = {"float32": _Float32, "bfloat16": _BFloat16, "int8": _Int8}


class _PackedLayer:
    def __init__(self, layer: LlamaDecoderLayer, own: LlamaLayers, kind: Callable[[Tensor], _Product]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        half = own.width // 2
        pairs = torch.stack([torch.arange(half), torch.arange(half) + half], 1).flatten()  # i, i + D / 2, …

        def interleave(weight: Tensor, heads: int) -> Tensor:
            return weight.float().view(heads, own.width, -1)[:, pairs.to(weight.device)].reshape(heads * own.width, -1)

        root = attention.q_proj.in_features**0.5  # the norm below leaves out the root of the width
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        qkv = torch.cat(
            [
                interleave(attention.q_proj.weight, own.num_heads),
                interleave(attention.k_proj.weight, own.num_kv_heads),
                attention.v_proj.weight.float(),
            ]
        )
        self.qkv = kind(qkv * (before.weight.float() * root))  # [(H + 2K) * D, E]
        self.out = kind(attention.o_proj.weight)
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).float()
        self.gate_up = kind(gate_up * (after.weight.float() * root))  # [2F, E]
        self.down = kind(mlp.down_proj.weight)
        self.scaling = attention.scaling
        self.eps = before.variance_epsilon * root**2, after.variance_epsilon * root**2


class PackedLayers(LlamaLayers):
    """`LlamaLayers` over copies of the weights, which `refresh` makes, and makes again when the model has changed.

    weights: "float32", "bfloat16" or "int8". Raises ValueError for another name, and for weights that this model or
    this machine does not support.
    """

    def __init__(self, model: PreTrainedModel, weights: str = "float32") -> None:
        super().__init__(model)
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r} are unknown; use {', '.join(WEIGHTS)}")
        problem = find_packed_problem(model)
        if problem is not None:
            raise ValueError(f"weights {weights!r} need a packed copy, but {problem}")
        if weights == "int8" and "x86" not in torch.backends.quantized.supported_engines:
            raise ValueError("int8 weights need torch's x86 kernels; use bfloat16 or float32 on this machine")
        if weights == "int8" and self.backbone.norm.weight.is_cuda:
            raise ValueError("int8 weights are for the CPU; use bfloat16 on a GPU")
        self.weights = weights
        self.packed: list[_PackedLayer] = []
        self._packed_of: WeightState | None = None

    @torch.no_grad()
    def refresh(self) -> bool:
        now = read_weight_state(p for layer in self.layers for p in layer.parameters())
        if now == self._packed_of:
            return False
        self.packed = [_PackedLayer(layer, self, _KINDS[self.weights]) for layer in self.layers]
        self._packed_of = now
        return True

    def run(
        self, x: Tensor, rotary: RotaryTable, positions: slice | Tensor, write: WriteCache, bias: Tensor | None
    ) -> Tensor:
        num_streams, num_new, width = x.shape
        heads, kv_heads = self.num_heads, self.num_kv_heads
        turns = rotary.turns[positions]  # [P, 1, D / 2] or [S, P, 1, D / 2]
        dtype = self.dtype
        flat = x.reshape(-1, width).float()  # [M, E]
        for number, layer in enumerate(self.packed):
            qkv = layer.qkv(_normalise(flat, layer.eps[0])).view(num_streams, num_new, -1, self.width)
            turned = torch.view_as_complex(qkv[:, :, : heads + kv_heads].unflatten(3, (-1, 2)))
            turned.mul_(turns)
            qkv = qkv.transpose(1, 2)  # [S, H + 2K, P, D]
            k, v = qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
            keys, values = write(number, k.to(dtype), v.to(dtype))
            out = attend(qkv[:, :heads].to(dtype), keys, values, bias, layer.scaling)
            flat = layer.out.add_to(flat, out.reshape(len(flat), -1).float())
            gate, up = layer.gate_up(_normalise(flat, layer.eps[1])).chunk(2, 1)
            flat = layer.down.add_to(flat, F.silu(gate).mul_(up))
        return flat.to(x.dtype).view(num_streams, num_new, width)


class PackedDecoder(LeanDecoder):
    """A `LeanDecoder` over `PackedLayers`."""

    def __init__(self, model: PreTrainedModel, weights: str = "float32") -> None:
        super().__init__(PackedLayers(model, weights))
        self.weights = weights


def _normalise(x: Tensor, eps: float) -> Tensor:
    """RMSNorm of x [M, E] without its weight and the root of E, which are folded into the next product."""
    return x * torch.linalg.vecdot(x, x).add_(eps).rsqrt_()[:, None]
