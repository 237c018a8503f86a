"""Moto: the authors' outputs from their weights, and motion tokens of clips of any length."""

import pytest
import torch

from tests.tokenizers.references import encode_beyond_range
from unimodal.tokenizers import Condition
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.moto import MotoTokenizer

NAME = "visual/moto-latent-motion"


def load(reference, **settings):
    config = MotoTokenizer.read_authors_config(reference.config).model_copy(update=settings)
    return MotoTokenizer.from_authors(reference.weights, config, reference.name)


@pytest.mark.parametrize("typed", [False, True])
def test_weights_of_the_authors_give_their_outputs(typed, open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference, typed=typed)
    frames = [reference[name] * tokenizer.pixel_std + tokenizer.pixel_mean for name in ("input_cond", "input_target")]
    kind = "nonlegacy_" if typed else ""
    with torch.inference_mode():
        features = [tokenizer.image_encoder(tokenizer.scale(frame)) for frame in frames]
        for name, found in zip(("cond_hidden_states", "target_hidden_states"), features, strict=True):
            reference.check_close(name, found)
        reference.check_close(f"{kind}motion_tokens", tokenizer.m_former(*features))
        made = tokenizer.quantizer(tokenizer.encode_pair(*features))
        reference.check_equal(f"{kind}codes", made.ids[..., 0])
        if typed:
            return
        reference.check_close("latents", tokenizer.encode_pair(*features))
        reference.check_close("quantized", made.values)
        reference.check_close("decoded", tokenizer.scale(tokenizer.draw_next(frames[0], made.values)))
    codes = encode_beyond_range(tokenizer, torch.stack(frames, dim=2))
    reference.check_equal("codes", codes.ids[..., 0])
    drawn = tokenizer.decode(codes, Condition(medium=frames[0]))
    wanted = (reference["decoded"] * tokenizer.pixel_std + tokenizer.pixel_mean).clamp(0, 1)
    torch.testing.assert_close(drawn[:, :, 1], wanted, atol=5e-5, rtol=1e-4)
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in reference.weights.items())


def test_released_weights_ask_for_the_picture_encoder_that_they_leave_out(open_reference, tmp_path):
    from safetensors.torch import save_file

    from unimodal.tokenizers import pretrained

    reference = open_reference(NAME)
    own = {name: tensor for name, tensor in reference.weights.items() if not name.startswith("image_encoder.")}
    trunk = {
        "vit." + name.removeprefix("image_encoder."): tensor
        for name, tensor in reference.weights.items()
        if name not in own
    }
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "mae").mkdir()
    save_file({**trunk, "decoder.mask_token": torch.zeros(1)}, tmp_path / "mae" / "model.safetensors")
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(reference.config))
    with pytest.raises(ValueError, match="leaves out its picture encoder, facebook/vit-mae-large; name its folder"):
        pretrained.load("moto", tmp_path, file="model.safetensors", config=tmp_path / "config.yaml")
    tokenizer = pretrained.load(
        "moto", tmp_path, file="model.safetensors", config=tmp_path / "config.yaml", companion=tmp_path / "mae"
    )
    assert torch.equal(tokenizer.state_dict()["m_former.layernorm.weight"], own["m_former.layernorm.weight"])


def test_each_pair_of_frames_has_its_own_codes_and_lengths_are_heard():
    tokenizer = build_tokenizer(read_system("moto").choose_settings(small=True)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    x = torch.rand(2, 3, 4, 16, 16)
    codes = tokenizer.encode(x, torch.tensor([4, 2]))
    assert codes.counts == [9, 3]
    assert torch.equal(codes.row(1), tokenizer.encode(x[1:, :, :2]).row(0))
    assert torch.equal(codes.row(0)[6:], tokenizer.encode(x[:1, :, 2:]).row(0))
    drawn = tokenizer.decode(codes, Condition(medium=x[:, :, 0]))
    assert drawn.shape == (2, 3, 4, 16, 16) and torch.equal(drawn[:, :, 0], x[:, :, 0])
    assert not drawn[1, :, 2:].any()
    with pytest.raises(ValueError, match="give the first frames too"):
        tokenizer.decode(codes)
