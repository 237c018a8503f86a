"""MingTok: latents that are widened one by one to features, of which alone the pixels are drawn."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.mingtok import MingtokTokenizer


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    return build_tokenizer(read_system("mingtok").choose_settings(small=True)).eval()


def test_latents_are_widened_one_by_one_and_pixels_are_drawn_of_the_features(tokenizer):
    x = torch.rand(2, 3, 32, 32)
    latents = tokenizer.encode(x)
    assert latents.values.shape == (2, 16, 4) and latents.grid == (1, 4, 4)
    with torch.inference_mode():
        features = tokenizer.expand(latents.values)
        torch.testing.assert_close(tokenizer.expand(latents.values[:, :5]), features[:, :5])
        changed = latents.values.clone()
        changed[:, 5] += 1
        moved = (tokenizer.expand(changed) - features).abs().amax(-1) > 1e-5
        drawn = tokenizer.draw(features)
    assert not moved[:, :5].any() and moved[:, 5:].all()
    assert features.shape == (2, 16, 32) and torch.equal(drawn.clamp(0, 1), tokenizer.decode(latents))


def test_a_square_of_pixels_stands_where_its_patch_stood(tokenizer):
    """The last transformer mixes all squares: without its layers a feature reaches the pixels of its patch alone."""
    features = torch.randn(1, 16, 32)
    changed = features.clone()
    changed[0, 6] += 1  # second row, third column
    blocks = tokenizer.pixel_decoder.blocks
    tokenizer.pixel_decoder.blocks = torch.nn.ModuleList()
    with torch.inference_mode():
        moved = (tokenizer.draw(changed) - tokenizer.draw(features)).abs().amax((0, 1)) > 0
    tokenizer.pixel_decoder.blocks = blocks
    wanted = torch.zeros(32, 32, dtype=torch.bool)
    wanted[8:16, 16:24] = True
    assert torch.equal(moved, wanted)


def test_weights_go_out_under_the_authors_names_and_come_back(tokenizer):
    state = tokenizer.collect_authors_state()
    assert "low_level_encoder.blocks.0.0.mlp.w12.weight" in state and "pixel_decoder.blocks.0.0.mlp.fc1.bias" in state
    again = MingtokTokenizer.from_authors({**state, "target_backbone.norm.weight": torch.ones(1)}, tokenizer.config)
    assert again.sha256 == tokenizer.sha256
    with pytest.raises(ValueError, match=r"lacks sem_to_pix\.bias"):
        weights = {name: tensor for name, tensor in state.items() if name != "sem_to_pix.bias"}
        MingtokTokenizer.from_authors(weights, tokenizer.config)


def test_the_authors_config_is_that_of_the_published_size():
    fields = {
        "low_level_encoder": {"img_size": 512, "patch_size": 32, "depth": 12, "embed_dim": 768, "out_dim": 32},
        "semantic_decoder": {"in_dim": 32, "patch_size": 32, "embed_dim": 1024, "decoder_depth": 24},
        "pixel_decoder": {"patch_size": 16, "decoder_depth": 24, "embed_dim": 1024},
        "scaling_factor": 8.09449291,
        "mean": 1.46817409,
    }
    with torch.device("meta"):
        published = build_tokenizer(read_system("mingtok").choose_settings())
    assert MingtokTokenizer.read_authors_config(fields) == published.config
    assert (published.tokens_per_item, published.width) == (256, 32)
