"""GigaTok against its authors' code, and what its queries start as."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from unimodal.tokenizers import pretrained
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.resamplers import pool_scales
from unimodal.tokenizers.parts.trunks.map_tokens import TransformerSize, list_pool_scales
from unimodal.tokenizers.systems.gigatok import GigatokConfig, GigatokTokenizer

FILES = ["gigatok", "gigatok-2d"]
#: what the reference files were made with in place of the authors' constants
EDITS = {
    "width": 4,
    "num_norm_groups": 2,
    "image_size": 32,
    "encoder": TransformerSize(width=32, num_layers=2, num_heads=4),
    "decoder": TransformerSize(width=24, num_layers=1, num_heads=4),
}


def open_tokenizer(reference):
    config = GigatokTokenizer.read_authors_config(reference.config)
    config = GigatokConfig.model_validate(config.model_dump() | EDITS)
    return GigatokTokenizer.from_authors(reference.weights, config)


@pytest.mark.parametrize("name", FILES)
def test_the_authors_code_gives_the_same_codes_and_pictures(open_reference, name):
    reference = open_reference(f"visual/{name}")
    tokenizer = open_tokenizer(reference)
    pictures = (reference["input"] + 1) / 2
    codes = tokenizer.encode(pictures)
    reference.check_equal("codes", codes.ids[..., 0].view_as(reference["codes"]))
    with torch.no_grad():
        maps = tokenizer.extract_map(pictures)
        vectors = tokenizer.embed(maps)
        found = tokenizer.quantizer.look_up(tokenizer.quantizer(vectors).ids)
        again, _ = tokenizer.unfold(found)
        painted = tokenizer.paint(again)
    reference.check_close("encoder_map", maps)
    reference.check_close("latents", vectors.transpose(1, 2).reshape(reference["latents"].shape))
    reference.check_close("quantized", found.transpose(1, 2).reshape(reference["quantized"].shape))
    if name == "gigatok":
        reference.check_close("decoder_map", again)
    reference.check_close("decoded", painted * 2 - 1)
    assert torch.equal(tokenizer.decode(codes), painted.clamp(0, 1))
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def build(name: str, **changes: object) -> GigatokTokenizer:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**read_system(name).choose_settings(small=True), **changes})
    assert isinstance(tokenizer, GigatokTokenizer)
    return tokenizer


def test_queries_start_as_averages_of_one_one_two_four_cells_with_the_columns_halved_first():
    assert list_pool_scales(16, (8, 8)) == [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4)]
    features = torch.arange(16.0).view(1, 16, 1)  # a map of 4×4
    pools = pool_scales(features, (4, 4), list_pool_scales(8, (4, 4)))[0, :, 0].tolist()
    assert pools[:2] == [7.5, 7.5] and pools[2:4] == [6.5, 8.5]  # the left half, the right half
    for num_tokens, grid, message in [(12, (8, 8), "no power of 2"), (64, (6, 6), "does not divide into 4×8")]:
        with pytest.raises(ValueError, match=message):
            list_pool_scales(num_tokens, grid)


def test_training_brings_the_aligned_layer_near_a_frozen_network():
    """The frozen network stands for DINOv2: a fixed projection of averages of the picture, one for each position."""
    tokenizer = build("gigatok-ss", quantizer={"kind": "vector", "codebook_size": 64, "num_dims": 4}).train()
    pictures, frozen = torch.rand(1, 3, 32, 32), torch.randn(3, 16)
    teacher = adaptive_avg_pool2d(pictures, 8).flatten(2).transpose(1, 2) @ frozen  # [B, 64, 16]
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    likeness = []
    for _ in range(6):
        made = tokenizer.reconstruct(pictures)
        near = cosine_similarity(made.features["align"], teacher, dim=-1).mean()
        likeness.append(float(near.detach()))
        optimizer.zero_grad()
        ((made.decoded - pictures).square().mean() + made.loss + 1 - near).backward()
        optimizer.step()
    assert likeness[-1] > likeness[0] + 0.3


def test_the_distance_of_maps_trains_the_way_back_alone():
    pictures = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        plain, squared, both = (
            build("gigatok-ss", **changes).reconstruct(pictures).loss
            for changes in ({"map_weight": 0.0}, {}, {"direct_weight": 1.0})
        )
    assert plain < squared < both
    tokenizer = build("gigatok-ss")
    maps = tokenizer.extract_map(pictures)
    again, _ = tokenizer.unfold(tokenizer.quantizer.look_up(torch.zeros(1, 16, 1, dtype=torch.int64)))
    torch.nn.functional.mse_loss(again, maps.detach()).backward()
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    assert any(p.grad is not None for p in tokenizer.token_decoder.parameters())


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "changes"), [("gigatok-ss", {}), ("gigatok-bl-2d", {}), ("gigatok-bl-2d", {"form": "grid_twice"})]
)
def test_the_head_of_training_may_be_left_out_of_a_loaded_tokenizer(name, changes):
    whole = build(name, **changes).eval()
    state = whole.collect_authors_state()
    assert any("distill_mlp" in key for key in state)
    config = whole.config.model_copy(update={"align_layer": None})
    plain = GigatokTokenizer.from_authors({**state, "quantize.codebook_used": torch.zeros(65536)}, config)
    pictures = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain.encode(pictures).ids, whole.encode(pictures).ids)
    with pytest.raises(ValueError, match="lacks .*distill_mlp"):
        GigatokTokenizer.from_authors(plain.collect_authors_state(), whole.config)


def test_settings_that_are_not_read_and_sizes_that_do_not_fit_are_named():
    fields = {"multi_level_query_init": True, "encoder_size": "huge"}
    for changed, message in [
        (fields, "no size 'huge'"),
        ({"multi_level_query_init": False}, "multi_level_query_init false is not read"),
        ({"transformer_layer_type": "QformerLayerVar"}, "'QformerLayerVar' is not read"),
    ]:
        with pytest.raises(ValueError, match=message):
            GigatokTokenizer.read_authors_config(changed)
    tokenizer = build("gigatok-ss").eval()
    with pytest.raises(ValueError, match=r"takes pictures \[B, 3, 32, 32\]; got \(1, 3, 32, 48\)"):
        tokenizer.encode(torch.rand(1, 3, 32, 48))
    with pytest.raises(ValueError, match="align_layer 9 is none of the decoder's 2 layers"):
        build("gigatok-ss", align_layer=9)
    with pytest.raises(ValueError, match="on no hub"):
        pretrained.load("gigatok")


def test_the_yaml_of_the_authors_is_the_published_size():
    arguments = {"encoder_size": "base", "decoder_size": "large", "adaptive_gn": True, "d2s_up": True}
    arguments |= {"use_attn": False, "fea_rec_loss_type": "mse", "distill_depth": 3, "model_size": None, "rot": True}
    fields = {"model": {"model_cls": "VQVitModelPlus", "init_args": {**arguments, "multi_level_query_init": True}}}
    published = GigatokConfig.model_validate(read_system("gigatok-bl").choose_settings())
    found = GigatokTokenizer.read_authors_config(fields)
    assert found.quantizer.items() >= published.quantizer.items()
    assert found.model_copy(update={"quantizer": published.quantizer}) == published
    fields["model"] = {"model_cls": "VQVitModel2DPlus", "init_args": arguments}
    arguments["transformer_layer_type"] = "TransformerLayer"
    published = GigatokConfig.model_validate(read_system("gigatok-bl-2d").choose_settings())
    found = GigatokTokenizer.read_authors_config(fields)
    assert found.model_copy(update={"quantizer": published.quantizer}) == published
    arguments |= {"encoder_size": "small", "decoder_size": "small"}
    del arguments["transformer_layer_type"]  # as in VQ_SS256_2d.yaml
    published = GigatokConfig.model_validate(read_system("gigatok-ss-2d").choose_settings())
    found = GigatokTokenizer.read_authors_config(fields)
    assert found.model_copy(update={"quantizer": published.quantizer}) == published
