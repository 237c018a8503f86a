"""SEED: the authors' outputs from their weights, and a causal order of codes."""

import pytest
import torch

from tests.tokenizers.references import encode_beyond_range
from unimodal.tokenizers import Codes, pretrained
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.seed import SeedTokenizer

NAMES = ("seed", "seed-qformer-image")


def load(reference):
    fields = {**reference.config, "image_down": [32, 24, 8]}  # a constant of their code, made smaller for the file
    settings = SeedTokenizer.read_authors_config(fields)
    return SeedTokenizer.from_authors(reference.weights, settings, reference.name)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_authors_give_their_outputs(name, open_reference):
    reference = open_reference(f"visual/{name}")
    tokenizer = load(reference)
    x = reference["input"] * tokenizer.pixel_std + tokenizer.pixel_mean
    with torch.inference_mode():
        features = tokenizer.read_picture(x)
        reference.check_close("image_embeds", features)
        queries = tokenizer.ask(features)
        reference.check_close("query_output", queries)
        latents = tokenizer.encode_task_layer(queries)
        reference.check_close("latents", latents)
        made = tokenizer.quantizer(latents)
        reference.check_equal("codes", made.ids[..., 0])
        reference.check_close("quantized", made.rows)
        reference.check_close("query_output_up", tokenizer.decode_task_layer(made.rows))
    codes = encode_beyond_range(tokenizer, x)
    reference.check_equal("codes", codes.ids[..., 0])
    reference.check_close("decoded", tokenizer.decode_features(codes))
    with pytest.raises(ValueError, match="decode_features.* gives it, and an unCLIP decoder"):
        tokenizer.decode(codes)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_written_back_as_they_came(name, open_reference):
    reference = open_reference(f"visual/{name}")
    state = load(reference).collect_authors_state()
    constants = {key for key in reference.weights if key.endswith("position_ids")}
    assert state.keys() | constants == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def test_released_weights_without_the_tower_ask_for_it(open_reference, tmp_path):
    import json

    from safetensors.torch import save_file

    reference = open_reference("visual/seed")
    own = {key: tensor for key, tensor in reference.weights.items() if not key.startswith("visual_encoder.")}
    tower = {key.removeprefix("visual_encoder."): tensor for key, tensor in reference.weights.items() if key not in own}
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**reference.config, "image_down": [32, 24, 8]}))
    with pytest.raises(ValueError, match="leaves out its picture encoder, eva_vit_g.pth"):
        pretrained.load("seed", tmp_path, file="", config=tmp_path / "config.json")
    (tmp_path / "eva").mkdir()
    save_file(
        {**tower, "blocks.1.norm1.weight": torch.zeros(20), "norm.weight": torch.zeros(20)},
        tmp_path / "eva" / "a.safetensors",
    )
    tokenizer = pretrained.load("seed", tmp_path, file="", config=tmp_path / "config.json", companion=tmp_path / "eva")
    x = reference["input"] * tokenizer.pixel_std + tokenizer.pixel_mean
    reference.check_equal("codes", encode_beyond_range(tokenizer, x).ids[..., 0])


def test_a_code_depends_on_the_queries_before_it_alone():
    tokenizer = build_tokenizer(read_system("seed-2").choose_settings(small=True)).eval()
    assert isinstance(tokenizer, SeedTokenizer)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = tokenizer.ask(tokenizer.read_picture(x))
        tokenizer.query_tokens[:, 2] += 1
        after = tokenizer.ask(tokenizer.read_picture(x))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().amin(-1).max() > 0
    with pytest.raises(ValueError, match="a picture is 4 codes"):
        tokenizer.decode_features(Codes.whole(torch.zeros(1, 3, dtype=torch.int64)))


def test_the_feature_of_a_picture_is_learned_from_that_of_an_encoder():
    tokenizer = build_tokenizer(read_system("seed-2").choose_settings(small=True)).train()
    x, wanted = torch.rand(4, 3, 16, 16), torch.randn(4, 8)
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    errors = []
    for _ in range(30):
        loss, numbers = tokenizer.compare_features(x, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(numbers["feature_error"])
    assert errors[-1] < 0.9 * errors[0]
