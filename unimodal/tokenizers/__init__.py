"""Media tokenizers: one file per family behind the contract of `interface.py`; `load_tokenizer` reads a folder."""

from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import (
    CodingOptions,
    Condition,
    LatentTokenizer,
    MediaReader,
    MediaTokenizer,
)
from unimodal.tokenizers.registry import (
    FAMILIES,
    find_continued_medium,
    find_family_class,
    is_tokenizer,
    list_families,
    load_latent_tokenizer,
    load_reader,
    load_tokenizer,
    read_family,
    read_tokenizer_config,
    register,
)
from unimodal.tokenizers.stored import TokenizerConfig, hash_stored, upgrade_config
from unimodal.tokenizers.streams import ConcatenatedStreams, InterleavedStreams

__all__ = [
    "FAMILIES",
    "Codes",
    "CodingOptions",
    "ConcatenatedStreams",
    "Condition",
    "InterleavedStreams",
    "LatentTokenizer",
    "Latents",
    "MediaReader",
    "MediaTokenizer",
    "TokenizerConfig",
    "read_tokenizer_config",
    "find_continued_medium",
    "list_families",
    "find_family_class",
    "read_family",
    "is_tokenizer",
    "load_latent_tokenizer",
    "load_reader",
    "load_tokenizer",
    "register",
    "hash_stored",
    "upgrade_config",
]
