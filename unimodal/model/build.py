"""Decoders: a pretrained one with new rows and LoRA (``build_model``), or a small one from scratch (``build_nano``).

Both are stock Hugging Face classes, never forks, so that what is trained here loads anywhere its class loads.

Llama: RMSNorm, rotary positions, SwiGLU (arXiv:2302.13971). The projections that write into the residual stream start
smaller by sqrt(2 * num_layers), as in GPT-2, so that the stream's variance does not grow with depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unimodal.config import Config
from unimodal.model.attention import set_attention
from unimodal.model.base import LoadedBase, Precision, load_base
from unimodal.model.context_prompt import Context, make_context_prompt
from unimodal.model.depth_decoder import DEPTH_FILE, DepthSettings, add_depth_decoder, attach_depth_decoder
from unimodal.model.fourier_head import (
    FOURIER_FILE,
    FourierSettings,
    add_fourier_heads,
    attach_fourier_heads,
)
from unimodal.model.initialisers import Donor, RowRequest, initialise
from unimodal.model.lora import LoraSettings, add_lora, make_peft_config
from unimodal.model.prefix import make_prefix
from unimodal.model.private_gradients import PrivateGradients
from unimodal.model.prompt_files import has_soft_prompt, read_soft_prompt
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.rows import extend_rows, get_new_rows, share_rows
from unimodal.model.shared_space import make_space_prompt
from unimodal.model.soft_prompt import SoftPrompt, attach_soft_prompt, draw_prompt
from unimodal.model.weight_files import PROMPT_FOLDER
from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel


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


def count_parameters(model: torch.nn.Module) -> int:
    """The number of a model's weights; tied tables count once."""
    return sum(p.numel() for p in model.parameters())


def build_model(
    base: str | os.PathLike[str] | LoadedBase,
    vocabulary: Vocabulary,
    lora: LoraSettings | None = None,
    *,
    freeze_base: bool = True,
    initialiser: str = "description",
    features: Mapping[range, Tensor] | None = None,
    words: Mapping[int, Sequence[int]] | None = None,
    donor: Donor | Mapping[str, Donor] | None = None,
    shared: Mapping[range, Tensor] | None = None,
    seed: int = 0,
    attention: str = "auto",
    precision: Precision = "float32",
    eight_bit: bool = False,
    depth: DepthSettings | None = None,
    fourier: FourierSettings | None = None,
    prompt: PromptSettings | None = None,
    prompt_words: Sequence[int] | Context = (),
) -> PreTrainedModel:
    """A pretrained causal LM that reads and writes ``vocabulary``: the base's table, new rows behind it, and LoRA.

    base: hub id, folder, or a loaded base, which is changed in place. lora: without it the new rows alone are trained,
    or everything with ``freeze_base=False``. initialiser: a name of ``INITIALISERS``, which is given ``features``,
    ``words`` and ``donor`` (one for both sides, or one for each). shared: features [R, F] of blocks whose rows learn
    together (`rows.share_rows`). depth: the size of the depth decoder that a vocabulary with summed positions needs; a
    base of ours that has one keeps it. fourier: the blocks of ordered codes that Fourier heads score; a base of ours
    that has such heads keeps them. prompt: a soft prompt before every document, which begins as `prompt_words`, the ids
    of its text or its examples; a base of ours that has one keeps it, and it is trained further.
    New rows are always trained, on both sides, in float32; a base that has all rows of the vocabulary already (a model
    of ours) gets none. Raises ValueError for a vocabulary that was not laid out behind this base's rows, and for
    settings that contradict each other or would train nothing.
    """
    base = base if isinstance(base, LoadedBase) else load_base(base, precision, eight_bit)
    model, num_base = base.model, base.num_rows
    if not freeze_base and isinstance(vocabulary, AdoptedVocabulary):
        raise ValueError(f"{base.name} is a converted checkpoint; tune it by LoRA with recipes/finetune_lora.py")
    if lora is not None and not freeze_base:
        raise ValueError("lora and freeze_base=False exclude each other; train adapters or the whole model")
    num_new = vocabulary.size - num_base
    summed = not vocabulary.positions.is_flat
    kept = has_soft_prompt(Path(base.name))
    _check_prompt(base.name, prompt, kept, freeze_base)
    prompted = kept or prompt is not None
    if not num_new and lora is None and freeze_base and not summed and not prompted:
        raise ValueError(f"{base.name} has all rows of the vocabulary, so nothing would be trained; set lora or prompt")
    if num_new and vocabulary.text_size != num_base:
        raise ValueError(
            f"the vocabulary has {vocabulary.text_size} text rows but {base.name} has {num_base}, padded ones "
            "included; build the vocabulary for this base"
        )
    model.requires_grad_(not freeze_base)
    if num_new:
        sides = iter(("input", "output"))

        def draw_rows(table: Tensor, side_seed: int) -> Tensor:
            given = donor.get(next(sides)) if isinstance(donor, Mapping) else donor
            return initialise(initialiser, RowRequest(table, num_new, features or {}, words or {}, given, side_seed))

        extend_rows(model, num_new, seed, freeze_base, draw_rows)
    if lora is not None:
        add_lora(model, make_peft_config(model, lora, base.name), seed)
    for parameter in get_new_rows(model).values() if num_new else ():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)  # peft freezes everything that is not an adapter
    if shared and num_new:
        share_rows(model, shared)
    set_attention(model, attention)
    if summed and (Path(base.name) / DEPTH_FILE).is_file() and not num_new:
        attach_depth_decoder(model, base.name, vocabulary, torch.float32)
    else:
        add_depth_decoder(model, vocabulary, depth, seed)
    if (Path(base.name) / FOURIER_FILE).is_file() and not num_new:
        if fourier is not None:
            raise ValueError(f"{base.name} has Fourier heads, which are trained further; leave fourier out")
        attach_fourier_heads(model, base.name, vocabulary, torch.float32)
    elif fourier is not None:
        add_fourier_heads(model, vocabulary, fourier, seed)
    if kept:
        attach_soft_prompt(model, read_soft_prompt(Path(base.name)))
    elif prompt is not None:
        made = attach_soft_prompt(model, _make_prompt(model, vocabulary, prompt, prompt_words, seed))
        if prompt.private is not None:
            _check_private(model)
            made.private = PrivateGradients(prompt.private)
    return model


def _check_prompt(name: str, prompt: PromptSettings | None, kept: bool, freeze_base: bool) -> None:
    if kept and prompt is not None:
        raise ValueError(f"prompt: {name} has a soft prompt already, which is trained further; leave the setting out")
    if kept and not freeze_base:
        raise ValueError(
            f"{name} has a soft prompt, which whole training would not keep; tune it by recipes/finetune_lora.py, or "
            f"train a copy without {PROMPT_FOLDER}"
        )


def _check_private(model: PreTrainedModel) -> None:
    others = [name for name, p in model.named_parameters() if p.requires_grad and not name.endswith("prompt.vectors")]
    if others:
        raise ValueError(
            f"prompt.private hides what the prompt learns, and {others[0]} learns beside it; set lora=null, and take a "
            "base that has all rows of the vocabulary"
        )


def _make_prompt(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompt: PromptSettings,
    words: Sequence[int] | Context,
    seed: int,
) -> SoftPrompt:
    if isinstance(words, Context):
        assert prompt.context is not None
        return make_context_prompt(model, words, prompt.context)
    if prompt.source is None:
        if prompt.prefix is None and prompt.space is None:
            return draw_prompt(model, prompt.length, words, seed)
        if not vocabulary.positions.is_flat:
            raise ValueError(
                "prompt.prefix and prompt.space are read by the ids of a batch, and a summed position has several; use "
                "a prompt without them"
            )
        if prompt.space is not None:
            still = words or [vocabulary.get_control_id("<|bos|>")]
            return make_space_prompt(model, draw_prompt(model, prompt.length, still).vectors, prompt.space, seed)
        assert prompt.prefix is not None
        vectors = draw_prompt(model, prompt.length, words, seed).vectors
        return make_prefix(model, vectors.detach(), prompt.prefix.first_layer)
    found = read_soft_prompt(prompt.source, or_itself=True)
    if "length" in prompt.model_fields_set and len(found) != prompt.length:
        raise ValueError(f"prompt.length is {prompt.length}, but the prompt in {prompt.source} has {len(found)} tokens")
    return found
