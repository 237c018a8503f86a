"""Readers of frozen encoders: every kind of encoder, LiMBeR's one map, and CoME-VL against its authors' forward."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from unimodal.tokenizers.readers.come_vl import CoMEVLConfig, CoMEVLReader
from unimodal.tokenizers.readers.frozen_encoder import EncoderSettings, FrozenEncoder
from unimodal.tokenizers.readers.limber import LimberConfig, LimberReader
from unimodal.tokenizers.registry import load_reader

SMALL = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
         "image_size": 32, "patch_size": 8}  # fmt: skip
#: model_type → what its config says besides, and what stands before its patches
KINDS = {
    "siglip_vision_model": ({}, 0), "clip_vision_model": ({}, 1), "vit": ({}, 1), "dinov2": ({}, 1), "beit": ({}, 1),
    "dinov3_vit": ({"num_register_tokens": 4, "hidden_size": 16}, 5),
}  # fmt: skip


def make_settings(kind="siglip_vision_model", **changes):
    return EncoderSettings(kind=kind, network={**SMALL, **KINDS[kind][0], **changes}, image_size=32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_gives_its_patches(kind, tmp_path):
    """The layers are transformers' hidden states without what stands before the patches; also from a folder."""
    torch.manual_seed(0)
    network = AutoModel.from_config(AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind][0]})).eval()
    network.save_pretrained(tmp_path)
    encoder = FrozenEncoder.open(str(tmp_path))
    width = KINDS[kind][0].get("hidden_size", 12)
    assert (encoder.grid, encoder.width, encoder.num_layers) == ((4, 4), width, 3)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        out = network((x - 0.5) / 0.5, output_hidden_states=True)
    before = KINDS[kind][1]
    layers = encoder.read_layers(x)
    assert layers.shape == (3, 2, 16, width)
    for found, wanted in zip(layers, out.hidden_states[1:], strict=True):
        torch.testing.assert_close(found, wanted[:, before:])
    torch.testing.assert_close(encoder.read_last(x), out.last_hidden_state[:, before:])
    entropies = encoder.measure_entropies(x)
    assert entropies.shape == (3,) and bool((entropies > 0).all()) and bool((entropies <= 1.001).all())
    again = FrozenEncoder(encoder.settings)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.read_layers(x), layers)
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.train().training


def test_an_efficientnet_gives_the_map_that_its_features_are_the_mean_of():
    torch.manual_seed(0)
    encoder = FrozenEncoder(EncoderSettings(kind="lite0", image_size=64))
    x = torch.rand(2, 3, 64, 64)
    found = encoder.read_last(x)
    assert found.shape == (2, 4, 1280) and encoder.grid == (2, 2)
    torch.testing.assert_close(found.mean(1), encoder.network(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="does not attend"):
        encoder.measure_entropies(x)


def test_limber_is_one_linear_map_and_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    reader = LimberReader(LimberConfig(width=20, encoder=make_settings()))
    x = torch.rand(2, 3, 32, 32)
    learns = [name for name, p in reader.named_parameters() if p.requires_grad]
    assert learns == ["linear.weight", "linear.bias"] and (reader.num_features, reader.width) == (16, 20)
    seen = reader.encoder.read_last(x)
    torch.testing.assert_close(reader.read(x), seen @ reader.linear.weight.T + reader.linear.bias)
    reader.map(reader.look(x)).sum().backward()
    assert reader.linear.weight.grad is not None
    reader.save(tmp_path)
    torch.testing.assert_close(load_reader(tmp_path).read(x), reader.read(x))
    assert load_reader(tmp_path).sha256 == reader.sha256


def make_come(**changes):
    torch.manual_seed(1)
    settings = {
        "width": 20, "hidden": 16, "heads": 2, "first": make_settings(),
        "second": make_settings("dinov3_vit", patch_size=16),
        "second_layers": (1, 2), **changes,
    }  # fmt: skip
    reader = CoMEVLReader(CoMEVLConfig.model_validate(settings)).eval()
    with torch.no_grad():
        reader.gate.fill_(0.7)
        reader.mix_first.weights.copy_(torch.tensor([0.3, -0.2, 0.5]))
    return reader


@torch.no_grad()
def explain(reader, first, second):
    """The authors' forward of one picture: layers [L, N, E] and [L', M, F] of both → the fused tokens [N, W]."""

    def mix(module, layers):
        norm = lambda y: F.layer_norm(y, y.shape[-1:], module.norm.weight, module.norm.bias)  # noqa: E731
        w, merged = module.weights.softmax(0), 0
        for k, layer in enumerate(layers):
            merged = merged + w[k] * (norm(layer) @ module.each.weight.T)
        return norm(merged) @ module.last.weight.T

    a, b = mix(reader.mix_first, first), mix(reader.mix_second, second)
    g = reader.gated
    value, gate = (
        F.layer_norm(b, b.shape[-1:], g.norm.weight, g.norm.bias) @ g.project.weight.T + g.project.bias
    ).chunk(2, -1)
    b = b + (value * F.gelu(gate)) @ g.out.weight.T + g.out.bias
    s, d = reader.norm_first(reader.project_first(a)), reader.norm_second(reader.project_second(b))
    att = reader.attention
    width = s.shape[-1] // att.heads

    def places(grid):
        return [(y / max(grid[0] - 1, 1), x / max(grid[1] - 1, 1)) for y in range(grid[0]) for x in range(grid[1])]

    def turn(vector, place):
        out, at = vector.clone(), 0
        for coordinate, freqs in zip((0.0, *place), att.rotation.frequencies, strict=True):
            for freq in freqs:
                angle = 0.5 * math.pi * coordinate * float(freq)
                u, v = vector[at], vector[at + 1]
                out[at] = u * math.cos(angle) - v * math.sin(angle)
                out[at + 1] = v * math.cos(angle) + u * math.sin(angle)
                at += 2
        assert at == len(vector)
        return out

    q, k, v = att.query(s), att.key(d), att.value(d)
    at, to = places(reader.first.grid), places(reader.second.grid)
    rows = []
    for i, here in enumerate(at):
        heads = []
        for h in range(att.heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([turn(q[i, part], here) @ turn(k[j, part], to[j]) for j in range(len(to))])
            scores = scores / math.sqrt(width)
            for j, there in enumerate(to):
                if att.reach is not None and math.dist(here, there) > att.reach:
                    scores[j] += torch.finfo(torch.float32).min / 2
            heads.append(scores.softmax(0) @ v[:, part])
        rows.append(torch.cat(heads))
    return s + math.tanh(float(reader.gate)) * att.out(torch.stack(rows))


@pytest.mark.parametrize(("reach", "orthogonal"), [(0.5, "matrix_exp"), (None, "cayley")])
def test_come_vl_is_the_authors_forward(reach, orthogonal, tmp_path):
    reader = make_come(reach=reach, orthogonal=orthogonal)
    x = torch.rand(2, 3, 32, 32)
    seen = reader.look(x)
    assert seen[0].shape == (2, 3, 16, 12) and seen[1].shape == (2, 2, 4, 16)
    expected = torch.stack([explain(reader, first, second) for first, second in zip(*seen, strict=True)])
    torch.testing.assert_close(reader.fuse(seen), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reader.read(x), reader.out(expected).detach(), rtol=1e-3, atol=1e-3)
    for mix in (reader.mix_first, reader.mix_second):
        for layer in (mix.each, mix.last):  # whatever is learnt, they stay orthogonal
            eye = torch.eye(len(layer.weight))
            torch.testing.assert_close(layer.weight @ layer.weight.T, eye, rtol=0, atol=1e-4)
    reader.save(tmp_path)
    torch.testing.assert_close(load_reader(tmp_path).read(x), reader.read(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("orthogonal", ["matrix_exp", "cayley"])
def test_what_learns_of_come_vl_stays_orthogonal_and_the_encoders_stay(orthogonal):
    reader = make_come(pool=2, orthogonal=orthogonal).train()
    assert reader.num_features == 4 and reader.first.training is False
    x = torch.rand(2, 3, 32, 32)
    before = reader.first.read_last(x)
    optimizer = torch.optim.SGD([p for p in reader.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        reader.map(reader.look(x)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in reader.parameters() if p.requires_grad)
    torch.testing.assert_close(
        reader.mix_second.each.weight @ reader.mix_second.each.weight.T, torch.eye(16), atol=1e-4, rtol=0
    )
    assert torch.equal(reader.first.read_last(x), before)


def test_what_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="second_layers is .*has layers 0 to 2"):
        make_come(second_layers=(3,))
    with pytest.raises(ValueError, match="does not divide into 8 heads"):
        make_come(heads=8)
    with pytest.raises(ValueError, match="pool 3 does not divide"):
        make_come(pool=3)
    with pytest.raises(ValueError, match="pictures of 30 pixels do not fit"):
        FrozenEncoder(EncoderSettings(kind="vit", network=SMALL, image_size=30))
    with pytest.raises(ValueError, match="is no encoder that transformers builds"):
        FrozenEncoder(EncoderSettings(kind="nothing", image_size=32))
    with pytest.raises(ValueError, match="cannot be loaded"):
        FrozenEncoder.open(str(tmp_path / "nowhere"))
