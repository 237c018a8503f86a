"""Mimi's weights under the names of its authors' code (kyutai-labs/moshi) ⇄ those of transformers' `MimiModel`.

moshi keeps queries, keys and values in one matrix, and turns pairs (2i, 2i + 1) by rotary positions where transformers
turns (i, i + d/2): the rows of queries and keys are in another order.

Shapes: D width, H heads, d width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.key_map import KeyMap, fill_strictly, rename_to_authors

if TYPE_CHECKING:
    from transformers import MimiModel

_FUSED, _PARTS = "self_attn.in_projs.0.weight", ("q_proj", "k_proj", "v_proj")
#: other names that the authors' code reads → the names that it writes
_OLDER = (
    (r"(.*)self_attn\.in_proj_weight", r"\1self_attn.in_projs.0.weight"),
    (r"(.*)self_attn\.out_proj\.weight", r"\1self_attn.out_projs.0.weight"),
    (r"(.*_codebook\.)inited", r"\1_initialized"),
    (r"(.*_codebook\.)cluster_size", r"\1cluster_usage"),
    (r"(.*_codebook\.)embed(?:_avg|_sum)", r"\1embedding_sum"),
)


def read_mimi_config(fields: Mapping[str, object]) -> dict[str, object]:
    """The settings of moshi's loader (`seanet`, `quantizer`, `transformer`) → those of transformers' `MimiConfig`."""
    own = AuthorsFields(fields)
    seanet, quantizer, transformer = (own.open(part) for part in ("seanet", "quantizer", "transformer"))
    width, heads = seanet.take_integer("dimension", 512), transformer.take_integer("num_heads", 8)
    return {
        "sampling_rate": own.take_integer("sample_rate", 24000),
        "hidden_size": width,
        "num_filters": seanet.take_integer("n_filters", 64),
        "num_residual_layers": seanet.take_integer("n_residual_layers", 1),
        "upsampling_ratios": list(seanet.take_integers("ratios", (8, 6, 5, 4))),
        "kernel_size": seanet.take_integer("kernel_size", 7),
        "last_kernel_size": seanet.take_integer("last_kernel_size", 3),
        "residual_kernel_size": seanet.take_integer("residual_kernel_size", 3),
        "dilation_growth_rate": seanet.take_integer("dilation_base", 2),
        "compress": seanet.take_integer("compress", 2),
        "pad_mode": seanet.take_text("pad_mode", "constant"),
        "codebook_size": quantizer.take_integer("bins", 2048),
        "codebook_dim": quantizer.take_integer("dimension", 256),
        "vector_quantization_hidden_dimension": quantizer.take_integer("dimension", 256),
        "num_quantizers": quantizer.take_integer("n_q", 32),
        "upsample_groups": width,
        "num_hidden_layers": transformer.take_integer("num_layers", 8),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": transformer.take_integer("dim_feedforward", 2048),
        "layer_scale_initial_scale": transformer.take_number("layer_scale", 0.01),
        "sliding_window": transformer.take_integer("context", 250),
    }


def fill_from_authors(network: MimiModel, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads moshi's weights. MisfitError, in one line that source begins, for what is missing, left over or of another
    shape."""
    heads = network.config.num_attention_heads
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = rename_to_authors(name, KeyMap(_OLDER))
        if not name.endswith(_FUSED):
            split[name] = tensor
            continue
        for part, matrix in zip(_PARTS, tensor.chunk(3), strict=True):
            whole = part == "v_proj" or matrix.shape[0] % (2 * heads)
            split[_name_part(name, part)] = matrix if whole else _split_pairs(matrix, heads)
    fill_strictly(network, split, _make_key_map(network), source)


def collect_for_authors(network: MimiModel) -> dict[str, Tensor]:
    """The weights under moshi's names: what its code loads."""
    heads, key_map = network.config.num_attention_heads, _make_key_map(network)
    named = {rename_to_authors(name, key_map): tensor for name, tensor in network.state_dict().items()}
    fused: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if not name.endswith(tuple(f"self_attn.{part}.weight" for part in _PARTS)):
            fused[name] = tensor.contiguous()
        elif name.endswith("q_proj.weight"):
            layer = name.removesuffix("self_attn.q_proj.weight")
            queries, keys, values = (named[_name_part(layer + _FUSED, part)] for part in _PARTS)
            fused[layer + _FUSED] = torch.cat([_join_pairs(queries, heads), _join_pairs(keys, heads), values])
    return fused


def _name_part(name: str, part: str) -> str:
    return name.removesuffix(_FUSED) + f"self_attn.{part}.weight"


def _split_pairs(matrix: Tensor, heads: int) -> Tensor:
    """Rows of each head from 0 1 2 3 … to 0 2 … 1 3 …"""
    return matrix.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _join_pairs(matrix: Tensor, heads: int) -> Tensor:
    """The inverse of `_split_pairs`."""
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _make_key_map(network: MimiModel) -> KeyMap:
    """Transformers' names → moshi's, but for queries, keys and values, which keep their own."""
    from transformers.models.mimi.modeling_mimi import MimiConvTranspose1d

    transposed = "|".join(
        re.escape(str(number))
        for number, layer in enumerate(network.decoder.decoder_seanet.layers)
        if isinstance(layer, MimiConvTranspose1d)
    )
    layer = r"(?:en|de)coder\.((?:en|de)coder_transformer)\.layers\.(\d+)\."
    to = r"\1.transformer.layers.\2."
    return KeyMap(
        (
            (rf"decoder\.decoder_seanet\.layers\.({transposed})\.conv\.(.*)", r"decoder.model.\1.convtr.convtr.\2"),
            (r"(en|de)coder\.\1coder_seanet\.layers\.(.*)\.conv\.(.*)", r"\1coder.model.\2.conv.conv.\3"),
            (layer + r"mlp\.fc(.*)", to + r"linear\3"),
            (layer + r"input_layernorm\.(.*)", to + r"norm1.\3"),
            (layer + r"post_attention_layernorm\.(.*)", to + r"norm2.\3"),
            (layer + r"self_attn_layer_scale\.(.*)", to + r"layer_scale_1.\3"),
            (layer + r"mlp_layer_scale\.(.*)", to + r"layer_scale_2.\3"),
            (layer + r"self_attn\.o_proj\.(.*)", to + r"self_attn.out_projs.0.\3"),
            (layer + r"(.*)", to + r"\3"),
            (r"encoder\.downsample\.conv\.(.*)", r"downsample.conv.conv.conv.\1"),
            (r"decoder\.upsample\.conv\.(.*)", r"upsample.convtr.convtr.convtr.\1"),
            *_name_books("semantic", "first"),
            *_name_books("acoustic", "rest"),
        )
    )


def _name_books(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    start, to = rf"quantizer\.{ours}_residual_vector_quantizer\.", f"quantizer.rvq_{theirs}."
    return (
        (start + r"layers\.(\d+)\.codebook\.embed_sum", to + r"vq.layers.\1._codebook.embedding_sum"),
        (start + r"layers\.(\d+)\.codebook\.initialized", to + r"vq.layers.\1._codebook._initialized"),
        (start + r"layers\.(\d+)\.codebook\.(.*)", to + r"vq.layers.\1._codebook.\2"),
        (start + r"(.*)", to + r"\1"),
    )
