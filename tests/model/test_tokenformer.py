"""Layers that attend to their parameters: the authors' formula, growth that changes nothing, and a trunk of them."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from unimodal.export.stock import export_model
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.model.base import load_base
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.tokenformer import (
    Pattention,
    PattentionSettings,
    check_tokenformer,
    load_tokenformer,
    make_tokenformer,
    save_tokenformer,
)
from unimodal.model_folder.decoder import load_decoder
from unimodal.objectives.packed import PackedLoss
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SIZES = NanoConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, max_positions=64)
SETTINGS = PattentionSettings(attention_tokens=24, mlp_tokens=40)


@pytest.fixture(scope="module")
def vocabulary():
    layouts = [SpanLayout("image", [Segment("image", 4)])]
    return Vocabulary.build(48, [Block(name="image", modality="image", size=16)], layouts)


def make_small(vocabulary, settings=SETTINGS, sizes=SIZES):
    model = build_nano(vocabulary.size, sizes, pad_id=0, bos_id=1, eos_id=2, seed=1)
    make_tokenformer(model, settings)
    return model.eval()


def attend_as_published(inputs, keys, values, order):
    """The authors' `Pattention.forward` and `nonlinear_norm_func`."""
    weight = inputs @ keys.transpose(-2, -1) * 1
    if order == "gelu_l2_norm":
        weight = F.gelu(weight)
        weight = weight / torch.norm(weight, p=2, dim=-1, keepdim=True) * math.sqrt(weight.shape[-1])
    else:
        weight = weight / torch.norm(weight, p=2, dim=-1, keepdim=True) * math.sqrt(weight.shape[-1])
        weight = F.gelu(weight)
    return weight @ values


@pytest.mark.parametrize("order", ["l2_norm_gelu", "gelu_l2_norm"])
def test_a_layer_is_the_authors_and_grows_without_a_change(order):
    layer = Pattention(12, 7, 10, order, std=0.5)
    x = torch.randn(2, 3, 12)
    before = layer(x).detach()
    torch.testing.assert_close(before, attend_as_published(x, layer.keys, layer.values, order).detach())
    layer.grow(25, std=0.5)
    assert layer.num_tokens == 25 and layer.keys.shape == (25, 12) and layer.values[10:].abs().min() > 0
    torch.testing.assert_close(layer(x).detach(), before, rtol=1e-6, atol=1e-6)
    layer(x).square().sum().backward()
    assert layer.keys.grad[10:].abs().sum(1).min() > 0, "what is new learns"
    again = Pattention(12, 7, 10, order)
    again.grow(25, published=True)
    torch.testing.assert_close(again(x), attend_as_published(x, again.keys, again.values, order))
    with pytest.raises(ValueError, match="of 25 parameter tokens does not shrink to 24"):
        layer.grow(24)


def test_a_trained_model_is_grown_and_trained_on(vocabulary, tmp_path):
    """Trained, saved, grown: equal logits and answers at that moment, and a lower loss after more steps."""
    model = make_small(vocabulary)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 48, (4, 24), generator=generator)
    positions = torch.arange(24).expand(4, -1)

    def train(one, steps):
        module = PackedLoss(one, vocabulary)
        optimizer = torch.optim.Adam(one.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            total, parts = module(ids, ids, positions)
            (total / parts["weight"]).backward()
            optimizer.step()
        return float(module(ids, ids, positions)[0].detach()) / parts["weight"]

    first = train(model, 12)
    save_tokenformer(tmp_path / "small", model)
    loaded = load_tokenformer(tmp_path / "small")
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-6)
        larger = SETTINGS.model_copy(update={"mlp_tokens": 90, "attention_tokens": 30, "source": tmp_path / "small"})
        grown = make_small(vocabulary, larger)
        torch.testing.assert_close(grown(ids).logits, expected, rtol=0, atol=1e-5)
    config = GenerationConfig(max_new_tokens=8, force="image")
    asked = [[1, 5, 7], [1, 9]]
    answers = Engine(model, vocabulary).generate(asked, config)
    assert Engine(grown, vocabulary).generate(asked, config) == answers
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    assert train(grown, 6) < first


def test_it_is_no_stock_class_and_says_so(vocabulary, tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_small(vocabulary)
    save_tokenformer(tmp_path / "model", model)
    vocabulary.save(tmp_path / "model" / "vocabulary.json")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "tokenformer_llama"
    with pytest.raises(ValueError, match="tokenformer_llama"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_base(tmp_path / "model")
    with pytest.raises(ValueError, match="is a TokenFormer, whose layers no stock causal LM has; it is not exported"):
        export_model(tmp_path / "model", tmp_path / "out")
    found = load_decoder(tmp_path / "model", vocabulary)
    ids = torch.tensor([[1, 3, 4]])
    torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="is not lean|attend to their parameters"):
        Engine(model, vocabulary, "lean")
    check = PattentionSettings(attention_tokens=8, mlp_tokens=40, source=tmp_path / "model")
    with pytest.raises(ValueError, match="pattention.attention_tokens is 8, but .* has 24 already"):
        check_tokenformer(check, pushed=False, summed=False)
    with pytest.raises(ValueError, match="holds no TokenFormer"):
        check_tokenformer(PattentionSettings(source=tmp_path), pushed=False, summed=False)
    with pytest.raises(ValueError, match="leave push or pattention out"):
        check_tokenformer(SETTINGS, pushed=True, summed=False)
    wide = SIZES.model_copy(update={"hidden_size": 48})
    with pytest.raises(ValueError, match="has other sizes"):
        make_small(vocabulary, SETTINGS.model_copy(update={"source": tmp_path / "model"}), wide)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_decoder(tmp_path / "model", vocabulary)
    assert "\n" not in str(error.value)
