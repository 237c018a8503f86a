"""The causal layers of transformers' EnCodec and Mimi as stages that run piece by piece.

Shapes: B batch, C channels, n steps of a piece, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from unimodal.tokenizers.parts.streaming import (
    ChainStage,
    ConvStage,
    KeyWindow,
    LstmStage,
    PointwiseStage,
    Stage,
    SumStage,
    TransposedStage,
)

if TYPE_CHECKING:
    from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d
    from transformers.models.mimi.modeling_mimi import (
        MimiConv1d,
        MimiConvTranspose1d,
        MimiTransformerLayer,
        MimiTransformerModel,
    )


def chain_layers(layers: Iterable[nn.Module]) -> ChainStage:
    """The stages of layers that follow each other."""
    return ChainStage([open_layer(layer) for layer in layers])


def open_layer(layer: nn.Module) -> Stage:
    """The stage of one layer. TypeError for one that is not known here."""
    from transformers.models.encodec import modeling_encodec as encodec
    from transformers.models.mimi import modeling_mimi as mimi

    if isinstance(layer, (encodec.EncodecConv1d, mimi.MimiConv1d)):
        return _open_conv(layer)
    if isinstance(layer, (encodec.EncodecConvTranspose1d, mimi.MimiConvTranspose1d)):
        return _open_transposed(layer)
    if isinstance(layer, (encodec.EncodecResnetBlock, mimi.MimiResnetBlock)):
        return SumStage(chain_layers(layer.block), open_layer(layer.shortcut))
    if isinstance(layer, encodec.EncodecLSTM):
        return LstmStage(layer.lstm)
    if isinstance(layer, (nn.ELU, nn.Identity)):
        return PointwiseStage(layer)
    raise TypeError(f"{type(layer).__name__} is no causal layer of EnCodec or Mimi")


def _open_conv(layer: EncodecConv1d | MimiConv1d) -> Stage:
    conv = layer.conv
    reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
    return ConvStage(conv, left=reach - conv.stride[0], pad_mode=layer.pad_mode)


def _open_transposed(layer: EncodecConvTranspose1d | MimiConvTranspose1d) -> Stage:
    conv = layer.conv
    surplus = conv.kernel_size[0] - conv.stride[0]
    right = -int(-surplus * layer.trim_right_ratio // 1)  # rounded up
    return TransposedStage(conv, surplus - right, right)


class MimiTransformerStage(Stage):
    """Mimi's transformer over steps [B, C, n]; ring: see `KeyWindow`."""

    def __init__(self, network: MimiTransformerModel, ring: bool):
        self.network = network
        self.windows = [KeyWindow(network.config.sliding_window, ring) for _ in network.layers]

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        if not x.shape[-1]:
            return x
        steps = x.transpose(1, 2)  # [B, n, C]
        places = self.windows[0].position + steps.new_ones(1, steps.shape[1]).cumsum(1).long() - 1
        rotary = self.network.rotary_emb(steps, places)
        for layer, window in zip(self.network.layers, self.windows, strict=True):
            steps = _run_layer(layer, steps, rotary, window)
        return steps.transpose(1, 2)


def _run_layer(layer: MimiTransformerLayer, x: Tensor, rotary: tuple[Tensor, Tensor], window: KeyWindow) -> Tensor:
    """One layer over steps [B, n, C] behind those in the window."""
    from transformers.models.mimi.modeling_mimi import apply_rotary_pos_emb, repeat_kv

    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    queries, keys, values = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # [B, H, n, d]
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
    keys, values, mask = window.extend(keys, values)
    groups = attention.num_key_value_groups
    mixed = scaled_dot_product_attention(queries, repeat_kv(keys, groups), repeat_kv(values, groups), mask)
    x = x + layer.self_attn_layer_scale(attention.o_proj(mixed.transpose(1, 2).flatten(2)))
    added: Tensor = x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
    return added
