"""The meaning of a model's rows: text, controls, and a block of codes for every group of a medium."""

from unimodal.vocabulary.layout import (
    CONTROLS,
    ROLES,
    Block,
    Control,
    Segment,
    SpanLayout,
    make_standard_layouts,
)
from unimodal.vocabulary.media_blocks import MediaCoding, lay_out_media, make_media_vocabulary
from unimodal.vocabulary.read import parse_vocabulary, read_vocabulary
from unimodal.vocabulary.vocabulary import Vocabulary

__all__ = [
    "CONTROLS",
    "ROLES",
    "Block",
    "Control",
    "MediaCoding",
    "Segment",
    "SpanLayout",
    "Vocabulary",
    "lay_out_media",
    "make_media_vocabulary",
    "parse_vocabulary",
    "read_vocabulary",
    "make_standard_layouts",
]
