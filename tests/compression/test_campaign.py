"""Random cases: methods, alone or two at once, on several decoders, in ragged batches, padded, over several turns."""

import functools

import pytest
import torch
from transformers import DynamicCache

from tests.compression.conftest import cache_name, make_method
from tests.tiny_bases import make_base
from unimodal.compression import METHODS, CacheCompressor

KINDS = ("llama", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "granite", "glm4", "cohere", "smollm3", "olmoe")


@pytest.fixture(scope="session")
def get_base(vocabulary):
    return functools.cache(lambda kind: make_base(kind, None, vocab_size=vocabulary.size))


def draw_method(rng, scope, positions):
    """Any method; several for the cache act on one scope and count positions alike."""
    name = rng.choice(list(METHODS))
    settings = {"positions": positions}
    if issubclass(METHODS[name], CacheCompressor):
        settings["scope"] = scope
    return make_method(name, rng.choice([0.1, 0.3, 0.5, 0.8, 0.95]), **settings)


def draw_turn(rng, prompt, span):
    parts = []
    for _ in range(rng.randint(0, 3)):
        modality = rng.choice(["image", "audio", "video", "words", "empty"])
        if modality in ("words", "empty"):
            parts.append([rng.randrange(3, 30) for _ in range(rng.randint(1, 6))] if modality == "words" else [])
        else:
            parts.append(span(modality, rng.randrange(99), num=rng.randint(1, 14)))
    return prompt(*parts)


def read_turns(model, vocabulary, turns, steps, on_left):
    """Logits behind every turn and step, [B, turns * (1 + steps), V]. turns: rows of each, padded to one length."""
    pad = vocabulary.get_control_id("<|pad|>")
    cache, found = DynamicCache(config=model.config), []
    mask = torch.zeros(len(turns[0]), 0, dtype=torch.long)
    for rows in turns:
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        padded = [[pad] * n + row if on_left else row + [pad] * n for n, row in zip(pads, rows, strict=True)]
        ones = [[1] * len(row) for row in rows]
        real = [[0] * n + one if on_left else one + [0] * n for n, one in zip(pads, ones, strict=True)]
        calls = [(torch.tensor(padded), torch.tensor(real))]
        calls += [(torch.full((len(rows), 1), step), torch.ones(len(rows), 1, dtype=torch.long)) for step in steps]
        for ids, valid in calls:
            before = mask.sum(1, keepdim=True)
            mask = torch.cat([mask, valid], 1)
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(before + valid.cumsum(1) - 1).clamp(min=0),
                use_cache=True,
                **{cache_name(model): cache},
            )
            last = valid.cumsum(1).argmax(1)  # the last token that is no padding
            found.append(out.logits[torch.arange(len(rows)), last])
    return torch.stack(found, 1)


@torch.inference_mode()
def test_no_row_depends_on_its_neighbours(campaign, get_base, vocabulary, prompt, span):
    for rng in campaign(6, 1000):
        model = get_base(rng.choice(KINDS))
        shared = rng.choice(["media", "prompt"]), rng.choice(["kept", "compacted"])
        methods = [draw_method(rng, *shared)]
        if rng.random() < 0.4:
            methods.append(draw_method(rng, *shared))
        acts = [method.acts for method in methods if method.acts_on == "cache"]
        if len(acts) == 2 and (
            "evict" not in acts or {"replay", "mix"} & {*acts} or ("store" in acts and "compacted" in shared)
        ):
            methods.pop()  # refused together
        turns = [[draw_turn(rng, prompt, span) for _ in range(rng.randint(1, 4))]]
        turns += [[draw_turn(rng, prompt, span)[1:] for _ in turns[0]] for _ in range(rng.randint(0, 2))]
        on_left, steps = rng.random() < 0.7, [7, 8][: rng.randint(0, 2)]
        contexts = [method(model, vocabulary) for method in methods]
        for context in contexts:
            context.__enter__()
        try:
            together = read_turns(model, vocabulary, turns, steps, on_left)
            assert torch.isfinite(together).all(), methods
            row = rng.randrange(len(turns[0]))
            alone = read_turns(model, vocabulary, [[rows[row]] for rows in turns], steps, on_left)[0]
            scale = together[row].abs().max()
            assert (alone - together[row]).abs().max() <= 2e-4 * max(1.0, float(scale)), (methods, row)
        finally:
            for context in reversed(contexts):
                context.__exit__()
