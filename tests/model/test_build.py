"""The nano decoder is a stock Llama, reproducible, and saved without anything of ours in it."""

import json
import math

import pytest
import torch
from pydantic import ValidationError

from unimodal.model.build import NanoConfig, build_nano, count_parameters


def test_it_is_a_stock_class_that_loads_back_equal(make_model, tmp_path):
    from transformers import LlamaForCausalLM

    model = make_model()
    assert type(model) is LlamaForCausalLM
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_training_keeps_no_cache(make_model):
    model = make_model()
    assert model.config.use_cache is False
    assert model(torch.arange(6)[None]).past_key_values is None


def test_seed_fixes_the_weights_and_leaves_the_global_state(make_model):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_tied_tables_are_one_parameter_and_counted_once(make_model, vocabulary):
    tied, untied = make_model(tie_embeddings=True), make_model(tie_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert count_parameters(untied) - count_parameters(tied) == vocabulary.size * 32


def test_residual_projections_start_smaller_by_depth(make_model):
    plain, scaled = make_model(scale_residual_init=False), make_model(scale_residual_init=True)
    for a, b in zip(plain.model.layers, scaled.model.layers, strict=True):
        torch.testing.assert_close(b.mlp.down_proj.weight, a.mlp.down_proj.weight / math.sqrt(4))
        torch.testing.assert_close(b.self_attn.o_proj.weight, a.self_attn.o_proj.weight / math.sqrt(4))
        assert torch.equal(b.mlp.up_proj.weight, a.mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 321}, "not a multiple of num_heads"),
        ({"num_kv_heads": 2}, "not a multiple of num_kv_heads"),
        ({"hidden_size": 35}, "rotary positions need pairs"),
        ({"num_layer": 3}, "num_layer"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        NanoConfig(**changes)


def test_a_special_id_outside_the_table_is_refused():
    with pytest.raises(ValueError, match="eos_id 9 is not one of the 9 rows"):
        build_nano(9, NanoConfig(), pad_id=0, bos_id=1, eos_id=9)
