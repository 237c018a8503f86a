"""Random bases of the families that transformers has, a few thousand parameters each, saved as their folders lie on a
hub: config, weights, and a tokenizer of one token a character."""

import json
from pathlib import Path
from typing import Any

import torch

import unimodal  # noqa: F401 - torchaudio beside a CPU build of torch, before transformers

ROWS, PADDED = 45, 48  # real tokens, and rows of the table
WINDOW = 8  # of the layers that have one
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "BPE", "vocab": {chr(48 + i): i for i in range(ROWS)}, "merges": []},
}  # fmt: skip
SIZES = {
    "vocab_size": PADDED, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 160, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD = {"head_dim": 8}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

#: type of transformers → what its config says besides SIZES. Each of these is accepted.
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **MIXED},
    "qwen3": HEAD,
    "gemma": HEAD,
    "gemma2": {**HEAD, **MIXED, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0,
               "attn_logit_softcapping": 2.0},
    "gemma3_text": {**HEAD, **MIXED, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": WINDOW},
    "phi": {},
    "gpt2": {},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.2},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **MIXED, **HEAD},
    "olmo2": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "mixtral": {"num_local_experts": 4, "sliding_window": WINDOW},
    "qwen3_moe": {**HEAD, **EXPERTS},
}  # fmt: skip
#: accepted too; `make study` goes through them
MORE_BASES: dict[str, dict[str, Any]] = {
    "apertus": {}, "arcee": {}, "bitnet": {}, "exaone4": MIXED, "ernie4_5": {}, "glm": {**HEAD}, "glm4": {**HEAD},
    "gpt_bigcode": {}, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}, "granitemoe": {"logits_scaling": 4.0},
    "helium": HEAD, "hyperclovax": {"logits_scaling": 0.5}, "nemotron": {}, "olmo": {}, "olmo3": MIXED,
    "persimmon": {}, "seed_oss": HEAD, "vaultgemma": {**HEAD, **MIXED, "query_pre_attn_scalar": 8},
    "nanochat": {"final_logit_softcapping": 5.0}, "jais2": {}, "diffllama": {}, "doge": {}, "cwm": {**MIXED, **HEAD},
    "biogpt": {}, "ministral3": HEAD, "hunyuan_v1_dense": HEAD, "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "ctrl": {"dff": 48},
    "lfm2": {"layer_types": ["full_attention", "full_attention"]},
    "minicpm3": {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
                 "dim_model_base": 16, "scale_emb": 3.0, "num_key_value_heads": 4, "head_dim": 8},
    "glm4_moe": {**HEAD, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2}, "phimoe": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24}, "ministral": HEAD,
}  # fmt: skip
#: type → what its config says besides, and why it is refused
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({}, "it keeps a state that is not keys and values"),
    "bloom": ({}, "the documents that are packed in one row see each other"),
    "gpt_oss": ({**HEAD, "num_local_experts": 4}, "the documents that are packed in one row see each other"),
    "bert": ({}, "its logits are not its head's products"),
    "gemma4_text": (
        {**HEAD, "vocab_size_per_layer_input": PADDED, "hidden_size_per_layer_input": 8},
        "it looks its tokens up in a second table",
    ),
}


def make_base(kind: str, tied: bool | None, seed: int = 0, **settings: Any) -> Any:
    """A random causal LM of that type; tied None: as its family has it. Large weights, so that answers differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {} if tied is None else {"tie_word_embeddings": tied}
    config = AutoConfig.for_model(kind, **{**SIZES, **BASES.get(kind, MORE_BASES.get(kind, {})), **given, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            if parameter.dim() >= 2:
                fan_in = parameter.shape[-1]
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * (1.2 / fan_in**0.5))
        if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
            bias.copy_(torch.randn(bias.shape, generator=noise))
    return model


def save_base(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder
