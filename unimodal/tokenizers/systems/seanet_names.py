"""What EnCodec's descendants call the weights of `parts/trunks/seanet.py`, of its residual books and of Vocos."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]


def list_seanet_rules(ours: str, theirs: str) -> Rules:
    """The rules of a `KeyMap` for one trunk, with `WEIGHT_NORM` as its endings."""
    return (
        (rf"{ours}\.layers\.(.*\.)transposed\.(.*)", rf"{theirs}.model.\1convtr.convtr.\2"),
        (rf"{ours}\.layers\.(.*\.)conv\.(.*)", rf"{theirs}.model.\1conv.conv.\2"),
        (rf"{ours}\.layers\.(.*)", rf"{theirs}.model.\1"),
    )


def list_book_rules(theirs: str) -> Rules:
    """The rules for the books of a residual quantizer `quantizer` that running averages teach."""
    book = rf"{theirs}.vq.layers.\1._codebook."
    return (
        (r"quantizer\.books\.(\d+)\.codebook", book + "embed"),
        (r"quantizer\.books\.(\d+)\.upkeep\.counts", book + "cluster_size"),
        (r"quantizer\.books\.(\d+)\.upkeep\.sums", book + "embed_avg"),
        (r"quantizer\.books\.(\d+)\.upkeep\.started", book + "inited"),
    )


def list_vocos_rules(ours: str) -> Rules:
    """The rules for a `VocosDecoder`."""
    return (
        (rf"{ours}\.backbone\.blocks\.(.*)", r"backbone.convnext.\1"),
        (rf"{ours}\.backbone\.front\.(.*)", r"backbone.pos_net.\1"),
        (rf"{ours}\.(.*)", r"\1"),
    )


def read_started(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors, with `inited`, float [1], as our scalar truth."""
    return {
        name: tensor.reshape(()).bool() if name.endswith("._codebook.inited") and tensor.numel() == 1 else tensor
        for name, tensor in weights.items()
    }


def write_started(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `read_started`."""
    return {
        name: tensor.reshape(1).to(torch.float32) if name.endswith("._codebook.inited") else tensor
        for name, tensor in state.items()
    }
