"""A lean decoder over packed weights, by the fastest layers that this machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.native.native_layers import NativeLayers, find_native_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_packed_layers(model: PreTrainedModel, weights: str = "float32", kv: str = "model") -> PackedLayers:
    """`NativeLayers` where they fit, else `PackedLayers`. Raises ValueError as these do."""
    if find_native_problem(model, kv) is None:
        return NativeLayers(model, weights, kv)
    return PackedLayers(model, weights, kv)


class PackedDecoder(LeanDecoder):
    """A `LeanDecoder` over `make_packed_layers`."""

    def __init__(self, model: PreTrainedModel, weights: str = "float32", kv: str = "model") -> None:
        super().__init__(make_packed_layers(model, weights, kv))
        self.weights = weights
