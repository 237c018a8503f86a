"""DualToken: one tower read at two depths, and two vocabularies that do not touch each other."""

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    built = build_tokenizer(read_system("dualtoken-384").choose_settings(small=True)).eval()
    with torch.no_grad():
        for part in built.quantizer.list_parts():
            part.book(0).codebook.normal_()
    return built


def test_pixels_follow_the_codes_of_looks_and_the_feature_those_of_meaning(tokenizer):
    codes = tokenizer.encode(torch.rand(1, 3, 32, 32))
    levels = tokenizer.config.num_levels
    assert codes.ids.shape == (1, 16, 2 * levels) and codes.grid == (1, 4, 4)
    for half, moves_pixels in ((slice(0, levels), False), (slice(levels, None), True)):
        changed = codes.ids.clone()
        changed[..., half] = (changed[..., half] + 1) % 32
        pixels = [tokenizer.decode(Codes.whole(ids, codes.grid)) for ids in (codes.ids, changed)]
        with torch.inference_mode():
            features = [tokenizer.describe(tokenizer.quantizer.look_up(ids)) for ids in (codes.ids, changed)]
        assert torch.equal(*pixels) is not moves_pixels
        assert torch.equal(*features) is moves_pixels


def test_meaning_is_read_behind_layers_that_looks_never_see(tokenizer):
    x = torch.rand(1, 3, 32, 32)
    width = tokenizer.config.code_width
    with torch.inference_mode():
        before = tokenizer.encode_latents(x)[0]
        weight = tokenizer.tower.list_layers()[1].mlp.fc2.weight
        kept = weight.clone()
        weight.mul_(3)
        after = tokenizer.encode_latents(x)[0]
        weight.copy_(kept)
    assert torch.equal(before[..., width:], after[..., width:])
    assert not torch.equal(before[..., :width], after[..., :width])


def test_each_half_has_one_codebook_for_all_levels_and_only_the_tower_is_frozen(tokenizer):
    assert [len(part.books) for part in tokenizer.quantizer.list_parts()] == [1, 1]
    frozen = {name.split(".")[0] for name, p in tokenizer.named_parameters() if not p.requires_grad}
    assert frozen == {"tower"}
    averages = [name for name, _ in tokenizer.named_buffers() if name.endswith(".codebook")]
    assert len(averages) == 2  # which no gradient trains and a checkpoint of a training holds
    assert all(not p.requires_grad for p in tokenizer.tower.parameters())


def test_a_tower_takes_the_weights_of_a_checkpoint(tokenizer, tmp_path):
    tokenizer.tower.network.save_pretrained(tmp_path)
    torch.manual_seed(1)
    other = build_tokenizer(read_system("dualtoken-384").choose_settings(small=True)).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(other.tower(x)[-1], tokenizer.tower(x)[-1])
        other.tower.load_pretrained(tmp_path)
        assert torch.equal(other.tower(x)[-1], tokenizer.tower(x)[-1])
    bigger = read_system("dualtoken-384").choose_settings(small=True)
    bigger["tower"] = {**bigger["tower"], "inner": 64}
    with pytest.raises(ValueError, match="another tower than the settings describe"):
        build_tokenizer(bigger).tower.load_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "places", "levels"), [("dualtoken-384", 27 * 27, 8), ("dualtoken-256", 16 * 16, 4)])
def test_the_published_sizes_have_their_published_codes(name, places, levels):
    with torch.device("meta"):
        built = build_tokenizer(read_system(name).choose_settings())
    assert (built.tokens_per_item, built.codebook_sizes) == (places, (16384,) * (2 * levels))


def test_settings_that_do_not_fit_are_named():
    settings = read_system("dualtoken-384").choose_settings(small=True)
    with pytest.raises(ValueError, match="meaning_layer 2 must rise, up to the tower's 3 layers"):
        build_tokenizer({**settings, "looks_layer": 3})
