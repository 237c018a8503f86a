"""Which cache entries kvpress keeps of one prompt: the expected sets of tests/compression/test_kvpress.py.

    python -m venv kvpress && kvpress/bin/pip install "torch<2.14" kvpress
    kvpress/bin/python tools/compare_kvpress.py --out tests/compression/kvpress.json

kvpress (https://github.com/NVIDIA/kvpress, Apache-2.0) pins an older transformers, so that it needs an environment of
its own. This file needs nothing of the library: a small Llama whose weights are drawn by numpy, the same in both
environments, reads a prompt once under each press at its published settings, and the entries that stay are written, a
number in hexadecimal for each layer and head: its bit i says that entry i stays. The test reads the same prompt with
the same model under the library's methods.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

NUM_TOKENS, TEXT = 400, 300
RATIO = 0.5  # of the entries that go
#: method of the library → press, and its settings beside the ratio; all else as published
PRESSES: dict[str, tuple[str, dict[str, object]]] = {
    "snapkv": ("SnapKVPress", {}),
    "pyramidkv": ("PyramidKVPress", {}),
    "adakv": ("AdaKVPress", {}),
    "tova": ("TOVAPress", {}),
    "knorm": ("KnormPress", {}),
    "keydiff": ("KeyDiffPress", {}),
    "lagkv": ("LagKVPress", {}),
    "streaming_llm": ("StreamingLLMPress", {}),
    "expected_attention": ("ExpectedAttentionPress", {}),
    "h2o": ("ObservedAttentionPress", {}),
    "kvzip": ("KVzipPress", {}),
}
#: what KVzip's prompt, and the end of it, are in the ids of this vocabulary
REPEAT, SUFFIX = (7, 8, 9), (5,)


def make_llama(kernel: str = "sdpa") -> LlamaForCausalLM:
    """A Llama of four layers whose weights depend on their names alone."""
    config = LlamaConfig(
        vocab_size=TEXT, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, attn_implementation=kernel,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draws = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(weight.shape))
            weight.copy_(torch.from_numpy(1 + 0.1 * draws if weight.ndim == 1 else 0.3 * draws))
    return model


def make_prompt() -> Tensor:
    """Ids of text, int64 [1, NUM_TOKENS]."""
    return torch.from_numpy(np.random.default_rng(0).integers(10, TEXT, (1, NUM_TOKENS)))


def pack_set(kept: Tensor) -> str:
    """bool [L] → hexadecimal."""
    return f"{sum(1 << int(place) for place in kept.nonzero()):x}"


def unpack_set(text: str, length: int = NUM_TOKENS) -> Tensor:
    """hexadecimal → bool [L]."""
    number = int(text, 16)
    return torch.tensor([number >> place & 1 == 1 for place in range(length)])


class StandInTokenizer:
    """What KVzip asks of a tokenizer, for a model without one."""

    chat_template = None

    @classmethod
    def from_pretrained(cls, name: str) -> StandInTokenizer:
        return cls()

    def encode(self, text: str, **settings: object) -> Tensor:
        ids = {"": (), "\n": SUFFIX}.get(text, REPEAT)
        return torch.tensor([ids], dtype=torch.int64)


def read_keys(model: LlamaForCausalLM) -> list[Tensor]:
    """The keys of every layer [K, L, W], as the model's cache holds them."""
    cache = DynamicCache()
    model(make_prompt(), past_key_values=cache, use_cache=True)
    return [layer.keys[0] for layer in cache.layers]


@torch.inference_mode()
def find_kept(name: str) -> list[Tensor]:
    """The entries that stay under a press, bool [K, L] of every layer."""
    presses = import_module("kvpress")
    press_name, settings = PRESSES[name]
    model = make_llama("eager" if name == "h2o" else "sdpa")
    if name == "adakv":
        press = presses.AdaKVPress(presses.SnapKVPress(compression_ratio=RATIO))
    else:
        press = getattr(presses, press_name)(compression_ratio=RATIO, **settings)
    import_module("kvpress.presses.kvzip_press").AutoTokenizer = StandInTokenizer
    whole = read_keys(model)
    with press(model):
        left = read_keys(model)
    found = []
    for layer, full, rest in zip(model.model.layers, whole, left, strict=True):
        masked = vars(layer.self_attn).get("masked_key_indices")
        kept = torch.zeros(full.shape[:2], dtype=torch.bool)
        if masked is not None:  # entries that are only hidden
            kept[:] = True
            kept[masked[1], masked[2]] = False
        else:
            same = (rest[:, :, None] == full[:, None]).all(-1)  # [K, M, L]
            assert bool((same.sum(-1) == 1).all()), "an entry is found more than once"
            kept |= same.any(1)
        found.append(kept)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file of the expected sets")
    args = parser.parse_args(arguments)
    sets = {}
    for name, (press, settings) in PRESSES.items():
        kept = find_kept(name)
        sets[name] = {"press": press, **settings, "kept": [[pack_set(head) for head in layer] for layer in kept]}
        print(name, [layer.sum(-1).tolist() for layer in kept], file=sys.stderr)
    made_with = {package: version(package) for package in ("kvpress", "torch", "transformers")}
    document = {"made_with": made_with, "tokens": NUM_TOKENS, "ratio": RATIO, "sets": sets}
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
