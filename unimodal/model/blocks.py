"""The blocks of a decoder, wherever its class keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a decoder, in order. Raises ValueError if they are not in one list."""
    layers = getattr(model.get_decoder(), "layers", None) or getattr(model.get_decoder(), "h", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} does not keep its blocks in one list, so they cannot be watched")
    return list(layers)
