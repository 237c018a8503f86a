"""UniFlow: an encoder held to its frozen self layer by layer, and a flow of each patch."""

import math

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.losses.self_distillation import distill_layers, weigh_layers
from unimodal.tokenizers.systems.uniflow import UniflowTokenizer


def build(**settings):
    torch.manual_seed(0)
    return build_tokenizer({**read_system("uniflow").choose_settings(small=True), "teacher": True, **settings})


def test_layers_weigh_by_their_depth_and_by_how_far_they_are():
    apart, beta = torch.tensor([0.3, 0.1, 0.2, 0.2]), 2.0
    raw = [(layer + 1) / 4 * math.exp(beta * far) for layer, far in enumerate(apart.tolist())]
    torch.testing.assert_close(weigh_layers(apart, beta), torch.tensor([each / sum(raw) for each in raw]))
    torch.testing.assert_close(weigh_layers(apart, 0.0), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    student = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]
    teacher = [student[0].detach(), torch.randn(2, 3, 4)]
    distill_layers(student, teacher, beta).backward()
    assert student[0].grad.abs().max() < 1e-6 and student[1].grad.abs().sum() > 0


def test_the_encoder_is_tuned_and_held_to_its_frozen_self():
    far = {}
    for weight in (0.0, 30.0):
        tokenizer = build(distill_weight=weight).train()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():  # a trained head: the flow begins at 0 and gives the encoder no gradient before
            tokenizer.flow.out.weight.normal_(std=0.1)
            tokenizer.flow.modulation.weight.normal_(std=0.1)
        made = tokenizer.reconstruct(x)
        assert made.numbers["distillation"] == pytest.approx(0, abs=1e-6)
        optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-3)
        for _ in range(8):
            optimizer.zero_grad()
            loss, numbers = tokenizer.training_loss(x)
            loss.backward()
            optimizer.step()
        far[weight] = numbers["distillation"]
        assert all(p.grad is None for p in tokenizer.teacher.parameters())
    assert 0 < far[30.0] < far[0.0] / 3


def test_a_patch_is_drawn_of_its_own_noise_and_of_all_latents():
    tokenizer = build().eval()
    with torch.no_grad():
        for module in (tokenizer.flow.out, tokenizer.flow.modulation, tokenizer.flow.blocks[0].modulation):
            module.weight.normal_(std=0.1)
    latents = tokenizer.encode(torch.rand(1, 3, 32, 32))
    assert latents.values.shape == (1, 16, 4)
    noise = tokenizer.draw_noise(latents, [3])
    other = noise.clone()
    other[0, 6] += 1  # second row, third column
    with torch.inference_mode():
        moved = (tokenizer.draw(latents.values, noise) != tokenizer.draw(latents.values, other)).any(1)[0]
        changed = latents.values.clone()
        changed[0, 6] += 1
        drawn = [tokenizer.draw(values, noise, steps=3) for values in (latents.values, changed)]
    wanted = torch.zeros(32, 32, dtype=torch.bool)
    wanted[8:16, 16:24] = True
    assert torch.equal(moved, wanted)
    assert (drawn[0] != drawn[1])[..., :8].any() and (drawn[0] != drawn[1])[..., 24:].any()


def test_patches_are_put_back_where_they_were():
    tokenizer = build()
    x = torch.rand(2, 3, 32, 32)
    patches = tokenizer.to_patches(x)
    torch.testing.assert_close(tokenizer.to_pictures(patches), x)
    scaled = tokenizer.encoder.prepare(x)
    torch.testing.assert_close(patches[1, 6], scaled[1, :, 8:16, 16:24].flatten())


def test_the_published_size_has_1024_latents_of_64_numbers():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("uniflow").choose_settings())
    assert (tokenizer.tokens_per_item, tokenizer.width, tokenizer.teacher) == (1024, 64, None)


def test_weights_go_out_under_the_authors_names_and_come_back():
    tokenizer = build(teacher=False)
    state = tokenizer.collect_authors_state()
    assert state["encoder.layers.1.attn.qkv.weight"].shape == (96, 32) and "decoder_pos_embed" in state
    assert UniflowTokenizer.from_authors(state, tokenizer.config).sha256 == tokenizer.sha256
    with pytest.raises(ValueError, match="set teacher to false"):
        build().collect_authors_state()


def test_the_authors_config_is_that_of_the_published_size():
    fields = {
        "hidden_size": 1024, "image_size": 448, "intermediate_size": 4096, "norm_type": "layer_norm",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "qk_normalization": False,
        "qkv_bias": True, "use_chal_proj": True, "latent_ch": 64, "use_global_blocks": True, "global_blocks_depth": 6,
        "num_decoder_layers": 12, "num_sampling_steps": "1",
    }  # fmt: skip
    published = read_system("uniflow").choose_settings()
    assert UniflowTokenizer.read_authors_config(fields) == UniflowTokenizer.config_class.model_validate(published)
    with pytest.raises(ValueError, match="with norms rms_norm"):
        UniflowTokenizer.read_authors_config({**fields, "norm_type": "rms_norm"})
