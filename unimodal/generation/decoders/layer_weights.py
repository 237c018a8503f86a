"""The weights of one layer of a stock base as plain matrices, from which packed copies are made.

Shapes: H query heads, K key/value heads, D head width, E width, F width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.generation.decoders.base_table import LayerParts, find_lean_problem, read_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: classes of activations of transformers → their names here
ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu",
}


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """qkv [(H + 2K) * D, E], out [E, H * D], gate and up [F, E], down [E, F], each with its bias or None."""

    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    activation: str


def _list_linears(layer: LayerParts) -> list[nn.Module]:
    attention, mlp = layer.attention, layer.mlp
    first = [attention.qkv_proj] if hasattr(attention, "qkv_proj") else [
        attention.q_proj, attention.k_proj, attention.v_proj
    ]  # fmt: skip
    middle = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
    return [*first, attention.o_proj, *middle, mlp.down_proj]


def find_packed_problem(model: PreTrainedModel) -> str | None:
    """Why the layers of a stock base cannot be packed (one line), or None."""
    problem = find_lean_problem(model)
    if problem is not None:
        return problem
    for layer in read_base(model).layers:
        if any(type(linear) is not nn.Linear for linear in _list_linears(layer)):
            return "a projection is not a plain Linear; merge adapters first"
        if type(layer.act).__name__ not in ACTIVATIONS:
            return f"its activation is {type(layer.act).__name__}, none of {', '.join(ACTIVATIONS)}"
    return None


def read_layer(layer: LayerParts) -> LayerWeights:
    """The weights of a layer in float32, detached."""
    linears = _list_linears(layer)
    fused = hasattr(layer.attention, "qkv_proj")
    first, rest = (linears[:1], linears[1:]) if fused else (linears[:3], linears[3:])
    gate_up = _join(rest[1:-1])
    half = len(gate_up[0]) // 2
    bias = gate_up[1]
    return LayerWeights(
        _join(first),
        _join(rest[:1]),
        (gate_up[0][:half], None if bias is None else bias[:half]),
        (gate_up[0][half:], None if bias is None else bias[half:]),
        _join(rest[-1:]),
        ACTIVATIONS[type(layer.act).__name__],
    )


def _join(linears: list[nn.Module]) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([linear.weight.detach().float() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = [
        weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        for linear in linears
    ]
    return weight, torch.cat(biases)
