"""Networks of transformers behind the tokenizer contract, and key maps of released weights; `load` reads one."""

from unimodal.tokenizers.pretrained.checkpoint import SOURCES, find, load, load_latents

__all__ = ["SOURCES", "find", "load", "load_latents"]
