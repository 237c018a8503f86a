"""Small models whose inside is known: what a report finds is where it was put."""

import torch

from tests.tiny_bases import make_base

TOKEN = 7  # what every head looks at
BOOST = 60.0


def plant(model: torch.nn.Module, token: int, says: float) -> torch.nn.Module:
    """Makes every head of a Llama look at one token once it has come.

    says: how much its values say, beside those of the rest. With little it is a sink, with much it is all that matters.
    """
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, 0] = 1.0  # of all tokens: what queries ask by
        table[:, 1] = 0.0
        table[token] = 0.0
        table[token, :2] = torch.tensor([1.0, 30.0])  # only of this one: what keys answer by
        for layer in model.model.layers:
            attention, width = layer.self_attn, layer.self_attn.head_dim
            slow = width - 1  # the pair of features that turns the least with the position
            attention.q_proj.weight.zero_()
            attention.k_proj.weight.zero_()
            attention.q_proj.weight[slow::width, 0] = BOOST
            attention.k_proj.weight[slow::width, 1] = BOOST
            attention.v_proj.weight[:, 0] = 0.0
            attention.v_proj.weight[:, 1] = torch.randn(len(attention.v_proj.weight)) * says
            attention.o_proj.weight[:2] = 0.0
            layer.mlp.down_proj.weight[:2] = 0.0  # nothing else writes where the token is marked
    return model


def plant_sink() -> torch.nn.Module:
    return plant(_make_llama(), TOKEN, 0.01)


def plant_source() -> torch.nn.Module:
    """All that an answer says comes from one token."""
    model = _make_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight *= 0.1
    return plant(model, TOKEN, 3.0)


def _make_llama() -> torch.nn.Module:
    return make_base("llama", False, rope_parameters={"rope_type": "default", "rope_theta": 1e9})
