"""Quantizers: vectors ⇄ integers, one idea a file. What vector-quantize-pytorch has is used from there."""

from unimodal.tokenizers.parts.quantizers.finite_scalar import FiniteScalarQuantizer, list_levels
from unimodal.tokenizers.parts.quantizers.interface import Quantized, Quantizer
from unimodal.tokenizers.parts.quantizers.lookup_free import LookupFreeQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer

__all__ = [
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "VectorQuantizer",
    "list_levels",
]
