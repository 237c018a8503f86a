"""Build a small decoder from scratch: a stock ``LlamaForCausalLM``, never a fork, so that what is trained here loads
anywhere Llama loads.

Llama: RMSNorm, rotary positions, SwiGLU (arXiv:2302.13971). The projections that write into the residual stream start
smaller by sqrt(2 * num_layers), as in GPT-2, so that the stream's variance does not grow with depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator

from unimodal.config import Config

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class NanoConfig(Config):
    """Sizes of a decoder trained from scratch; the defaults give about 7.4 M parameters beside the embedding rows."""

    hidden_size: int = Field(default=320, gt=0)
    num_layers: int = Field(default=6, gt=0)
    num_heads: int = Field(default=5, gt=0)
    num_kv_heads: int = Field(default=5, gt=0)
    intermediate_size: int = Field(default=864, gt=0)
    max_positions: int = Field(default=1024, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = True
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    init_std: float = Field(default=0.02, gt=0)
    scale_residual_init: bool = True

    @model_validator(mode="after")
    def _check_heads(self) -> NanoConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size / num_heads = {self.hidden_size // self.num_heads} is odd: rotary positions need pairs"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        return self


def build_nano(
    vocab_size: int, cfg: NanoConfig, *, pad_id: int, bos_id: int, eos_id: int, seed: int | None = None
) -> LlamaForCausalLM:
    """Return a randomly initialised fp32 Llama with ``vocab_size`` rows and no cache (the engine keeps its own).

    ``seed`` fixes the initial weights without touching the global random state. Raises ValueError when a special id is
    not a row of the table.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, token in (("pad_id", pad_id), ("bos_id", bos_id), ("eos_id", eos_id)):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} {token} is not one of the {vocab_size} rows of the vocabulary")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        max_position_embeddings=cfg.max_positions,
        initializer_range=cfg.init_std,
        rms_norm_eps=cfg.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        attention_dropout=cfg.attention_dropout,
        tie_word_embeddings=cfg.tie_embeddings,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        use_cache=False,  # a cache, even in training, makes packed documents leak into each other
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if cfg.scale_residual_init:
        scale = (2 * cfg.num_layers) ** -0.5
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(scale)
                layer.mlp.down_proj.weight.mul_(scale)
    return model


def num_parameters(model: torch.nn.Module) -> int:
    """Parameters, tied tables counted once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
