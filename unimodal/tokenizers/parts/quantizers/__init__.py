"""Quantizers: vectors ⇄ integers, one idea a file. What vector-quantize-pytorch has is used from there."""

from collections.abc import Mapping

from unimodal.tokenizers.parts.quantizers.finite_scalar import FiniteScalarQuantizer, list_levels
from unimodal.tokenizers.parts.quantizers.interface import Quantized, Quantizer
from unimodal.tokenizers.parts.quantizers.lookup_free import LookupFreeQuantizer
from unimodal.tokenizers.parts.quantizers.multi_scale import MultiScaleQuantizer
from unimodal.tokenizers.parts.quantizers.shared_index import SharedIndexQuantizer
from unimodal.tokenizers.parts.quantizers.specification import build_quantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer

__all__ = [
    "QUANTIZERS",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "Quantized",
    "Quantizer",
    "SharedIndexQuantizer",
    "VectorQuantizer",
    "list_levels",
    "make_quantizer",
]


def make_quantizer(spec: Mapping[str, object]) -> Quantizer:
    """A quantizer from settings: a kind of `QUANTIZERS` and the arguments of its class, such as ``{"kind":
    "multi_scale", "scales": [1, 2, 4], "book": {"kind": "vector", "codebook_size": 4096, "num_dims": 32}}``.

    Raises ValueError that names the setting that does not fit.
    """
    return build_quantizer(spec, QUANTIZERS)


QUANTIZERS: dict[str, type[Quantizer]] = {
    "finite_scalar": FiniteScalarQuantizer,
    "lookup_free": LookupFreeQuantizer,
    "multi_scale": MultiScaleQuantizer,
    "shared_index": SharedIndexQuantizer,
    "vector": VectorQuantizer,
}
