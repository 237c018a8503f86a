"""A vocabulary with square pictures, sounds of any length and clips; random Llamas and a Qwen3 of a few layers."""

import functools
import inspect

import numpy as np
import pytest
import torch

from unimodal.compression import METHODS
from unimodal.compression.learned import DecoderShape, LearnedMethod
from unimodal.model.build import NanoConfig, build_nano
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SIZES = NanoConfig(
    hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=256, init_std=0.2
)
STEPS = [7, 8, 9]  # text that is read one by one behind a prompt


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary.build(
        30,
        [
            Block(name="image", modality="image", size=24),
            Block(name="audio", modality="audio", size=12),
            Block(name="video", modality="video", size=8),
        ],
        [
            SpanLayout("image", [Segment("image", 16)]),
            SpanLayout("audio", [Segment("audio")]),
            SpanLayout("video", [Segment("image", 16), Segment("video", 9), Segment("video", 9)]),
        ],
    )


def make_method(name, keep, **settings):
    """A method of that name; a learned one with a random module for states of 32 values. STILL has chunks so short that
    a sound at the end of a prompt is older than two of them."""
    kind = METHODS[name]
    settings = {**({"chunk": 4} if name == "still" else {}), **settings}
    return kind(keep, **settings, **({kind.part: make_part(kind)} if issubclass(kind, LearnedMethod) else {}))


@functools.cache
@torch.inference_mode(False)
def make_part(kind):
    """A module for up to 8 layers, none of whose weights is zero, as some are at first."""
    torch.manual_seed(0)
    module = kind.make_part(DecoderShape(32, 8, 4, 8))
    for weight in module.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return module.eval()


def cache_name(model):
    """`cache`, or `past_key_values` in older versions of transformers."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def list_special_ids(vocabulary):
    return {f"{name}_id": vocabulary.get_control_id(f"<|{name}|>") for name in ("pad", "bos", "eos")}


@pytest.fixture(scope="session")
def make_model(vocabulary):
    def make(**changes):
        return build_nano(
            vocabulary.size, SIZES.model_copy(update=changes), seed=0, **list_special_ids(vocabulary)
        ).eval()

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def qwen(vocabulary):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary.size, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.2, use_cache=False,
        pad_token_id=list_special_ids(vocabulary)["pad_id"],
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def span(vocabulary):
    """The rows of a span with random codes; `num` of sound."""

    def make(modality, seed=0, num=11):
        draws = np.random.default_rng(seed)
        sizes = {"image": [(16, 24)], "audio": [(num, 12)], "video": [(16, 24), (9, 8), (9, 8)]}[modality]
        return vocabulary.encode_span(modality, np.concatenate([draws.integers(0, top, n) for n, top in sizes]))

    return make


@pytest.fixture(scope="session")
def prompt(vocabulary):
    """<|bos|> <|user|> parts <|end_of_turn|> <|assistant|>"""

    def make(*parts):
        bos, user, end, assistant = (
            vocabulary.get_control_id(name) for name in ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
        )
        return [bos, user, *(token for part in parts for token in part), end, assistant]

    return make


@pytest.fixture(scope="session")
def prompts(prompt, span):
    """Rows of unequal length, with unequal spans: a picture and a sound, another picture, a clip, words alone."""
    return [
        prompt([3, 4], span("image", 1), span("audio", 2), [5]),
        prompt(span("image", 3), [6, 7, 8]),
        prompt([3], span("video", 4), span("audio", 5, num=6), [9, 9]),
        prompt([3, 4, 5]),
    ]


@pytest.fixture(scope="session")
def read(vocabulary):
    """Logits after the prompts and after each of STEPS, with a cache: [B, 1 + steps, V]; padded on the left."""
    pad = vocabulary.get_control_id("<|pad|>")

    @torch.inference_mode()
    def run(model, rows, steps=STEPS):
        from transformers import DynamicCache

        longest = max(map(len, rows))
        pads = torch.tensor([longest - len(row) for row in rows])[:, None]
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
        cache, found, length = DynamicCache(config=model.config), [], 0
        for new in [ids, *(torch.full((len(rows), 1), step) for step in steps)]:
            places = torch.arange(length, length + new.shape[1])
            length += new.shape[1]
            out = model(
                input_ids=new,
                attention_mask=(torch.arange(length) >= pads).long(),
                position_ids=(places - pads).clamp(min=0),
                **{cache_name(model): cache},
                use_cache=True,
            )
            found.append(out.logits[:, -1])
        run.cache = cache
        return torch.stack(found, 1)

    return run
