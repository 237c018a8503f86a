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
    config_of,
    continued_medium,
    families,
    family_class,
    family_of,
    is_tokenizer,
    load_latent_tokenizer,
    load_reader,
    load_tokenizer,
    register,
)
from unimodal.tokenizers.stored import TokenizerConfig, stored_sha256, upgrade_config
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
    "config_of",
    "continued_medium",
    "families",
    "family_class",
    "family_of",
    "is_tokenizer",
    "load_latent_tokenizer",
    "load_reader",
    "load_tokenizer",
    "register",
    "stored_sha256",
    "upgrade_config",
]
