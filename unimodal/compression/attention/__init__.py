"""Attention over less than everything, or by several devices, without training: for long media and long texts.

    with GroupedAttention((32, 32), (8, 8)):
        tokenizer.encode(pictures)

`grat.py` and `svg2.py` take the place of full attention over a grid of tokens, in any network; `token_ring.py` reads a
text that several devices hold in parts.
"""

from unimodal.compression.attention.grat import GroupedAttention
from unimodal.compression.attention.svg2 import SemanticAttention
from unimodal.compression.attention.token_ring import SplitReading, read_split

__all__ = ["GroupedAttention", "SemanticAttention", "SplitReading", "read_split"]
