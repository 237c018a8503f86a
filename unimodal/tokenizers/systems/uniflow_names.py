"""What UniFlow's authors call its weights: one matrix for queries, keys and values of the encoder, three here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unimodal.tokenizers.systems.key_map import KeyMap

_LAYER, _THEIR_LAYER = r"encoder\.network\.encoder\.layer\.(\d+)\.", r"encoder.layers.\1."
KEY_MAP = KeyMap(
    rules=(
        (r"encoder\.network\.embeddings\.cls_token", "embeddings.class_embedding"),
        (r"encoder\.network\.embeddings\.position_embeddings", "embeddings.position_embedding"),
        (r"encoder\.network\.embeddings\.patch_embeddings\.projection\.(.*)", r"embeddings.patch_embedding.\1"),
        (_LAYER + r"attention\.projection_layer\.(.*)", _THEIR_LAYER + r"attn.proj.\2"),
        (_LAYER + r"attention\.([qkv])_proj\.(.*)", _THEIR_LAYER + r"attn.\2.\3"),
        (_LAYER + r"layernorm_before\.(.*)", _THEIR_LAYER + r"norm1.\2"),
        (_LAYER + r"layernorm_after\.(.*)", _THEIR_LAYER + r"norm2.\2"),
        (_LAYER + r"lambda_(\d)", _THEIR_LAYER + r"ls\2"),
        (_LAYER + r"mlp\.(.*)", _THEIR_LAYER + r"mlp.\2"),
        (r"squeeze\.0\.(.*)", r"chal_proj.c_fc.\1"),
        (r"squeeze\.2\.(.*)", r"chal_proj.c_proj.\1"),
        (r"widen\.0\.(.*)", r"chal_unproj.c_fc.\1"),
        (r"widen\.2\.(.*)", r"chal_unproj.c_proj.\1"),
        (r"global_positions", "global_block_pos_embed"),
        (r"flow_positions", "decoder_pos_embed"),
        (r"blocks\.(.*)", r"global_blocks.\1"),
        (r"flow\.time\.first\.(.*)", r"flow_head.net.time_embed.mlp.0.\1"),
        (r"flow\.time\.second\.(.*)", r"flow_head.net.time_embed.mlp.2.\1"),
        (r"flow\.condition\.(.*)", r"flow_head.net.cond_embed.\1"),
        (r"flow\.project\.(.*)", r"flow_head.net.input_proj.\1"),
        (r"flow\.blocks\.(\d+)\.norm\.(.*)", r"flow_head.net.res_blocks.\1.in_ln.\2"),
        (r"flow\.blocks\.(\d+)\.first\.(.*)", r"flow_head.net.res_blocks.\1.mlp.0.\2"),
        (r"flow\.blocks\.(\d+)\.second\.(.*)", r"flow_head.net.res_blocks.\1.mlp.2.\2"),
        (r"flow\.blocks\.(\d+)\.modulation\.(.*)", r"flow_head.net.res_blocks.\1.adaLN_modulation.1.\2"),
        (r"flow\.modulation\.(.*)", r"flow_head.net.final_layer.adaLN_modulation.1.\1"),
        (r"flow\.out\.(.*)", r"flow_head.net.final_layer.linear.\1"),
    )
)
_JOINED = re.compile(r"(encoder\.layers\.\d+\.attn)\.qkv\.(weight|bias)")
_APART = re.compile(r"(encoder\.layers\.\d+\.attn)\.q\.(weight|bias)")


def split_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors with queries, keys and values of the encoder apart: `attn.q`, `attn.k`, `attn.v`."""
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found = _JOINED.fullmatch(name)
        if found is None or len(tensor) % 3:
            made[name] = tensor
        else:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            made.update({f"{found[1]}.{letter}.{found[2]}": part for letter, part in parts})
    return made


def join_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_attention`."""
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found = _APART.fullmatch(name)
        if found is not None:
            rows = [weights[f"{found[1]}.{letter}.{found[2]}"] for letter in "qkv"]
            made[f"{found[1]}.qkv.{found[2]}"] = torch.cat(rows)
        elif not re.fullmatch(r"encoder\.layers\.\d+\.attn\.[kv]\.(weight|bias)", name):
            made[name] = tensor
    return made
