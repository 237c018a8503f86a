"""Media tokenizers: one file per family behind the contract of `interface.py`; `load_tokenizer` reads a folder."""

from unimodal.tokenizers.registry import FAMILIES, family_of, load_tokenizer
from unimodal.tokenizers.stored import stored_sha256

__all__ = ["FAMILIES", "family_of", "load_tokenizer", "stored_sha256"]
