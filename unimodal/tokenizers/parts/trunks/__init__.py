"""Trunks of encoders and decoders, one idea a file."""

from unimodal.tokenizers.parts.trunks.blocks import ResidualConv, TransformerBlock

__all__ = ["ResidualConv", "TransformerBlock"]
