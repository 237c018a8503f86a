"""Cosmos-Tokenizer: the authors' outputs from their weights, causality, and the Haar transform."""

import pytest
import torch

from unimodal.tokenizers.parts.trunks.haar import HALF_COEFFICIENT, CausalHaarPatcher, HaarPatcher, split_bands
from unimodal.tokenizers.systems.cosmos import CosmosImageLatents, CosmosImageTokenizer, CosmosVideoTokenizer

KINDS = {"cosmos-di": CosmosImageTokenizer, "cosmos-ci": CosmosImageLatents, "cosmos-dv": CosmosVideoTokenizer}


def load(reference):
    kind = KINDS[reference.name.removeprefix("visual/")]
    settings = kind.read_authors_config(reference.config)
    if kind is CosmosVideoTokenizer:  # its weights were rounded to half precision, and the wavelet with them
        settings = settings.model_copy(update={"num_frames": 9, "wavelet": HALF_COEFFICIENT})
    return kind.from_authors(reference.weights, settings, reference.name)


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_the_authors_give_their_outputs(name, open_reference):
    reference = open_reference(f"visual/{name}")
    tokenizer = load(reference)
    x = reference["input"] / 2 + 0.5
    with torch.no_grad():
        latents = tokenizer.encode_latents(x)
        reference.check_close("latents", latents)
        if name != "cosmos-ci":
            made = tokenizer.quantizer(latents.flatten(2).transpose(1, 2))
            latents = made.values.transpose(1, 2).reshape(latents.shape)
            reference.check_close("quantized", latents)
        reference.check_close("decoded", tokenizer.decode_latents(latents) * 2 - 1)
    coded = tokenizer.encode(x)
    decoded = tokenizer.decode(coded)
    torch.testing.assert_close(decoded, (reference["decoded"] / 2 + 0.5).clamp(0, 1), atol=5e-5, rtol=1e-4)
    if name != "cosmos-ci":
        reference.check_equal("codes", coded.ids[..., 0].reshape(reference["codes"].shape))
    if name == "cosmos-dv":
        first = tokenizer.encode(x[:, :, :1])
        reference.check_equal("codes_first_frame_alone", first.ids[..., 0].reshape(2, 1, 2, 3))
        wanted = (reference["decoded_first_frame_alone"] / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(tokenizer.decode(first), wanted, atol=5e-5, rtol=1e-4)
        assert torch.equal(first.ids, coded.ids[:, : first.ids.shape[1]])


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_written_back_as_they_came_and_read_strictly(name, open_reference):
    reference = open_reference(f"visual/{name}")
    tokenizer = load(reference)
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in reference.weights.items())
    kind, settings = type(tokenizer), tokenizer.config
    odd = dict(reference.weights)
    gone = odd.pop(min(odd))
    with pytest.raises(ValueError, match="lacks decoder"):
        kind.from_authors(odd, settings)
    with pytest.raises(ValueError, match="surplus.weight"):
        kind.from_authors({**reference.weights, "surplus.weight": gone}, settings)
    with pytest.raises(ValueError, match="of shape"):
        kind.from_authors({**reference.weights, min(reference.weights): torch.zeros(3)}, settings)


def test_no_frame_sees_a_later_one_and_lengths_are_heard():
    from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

    tokenizer = build_tokenizer(read_system("cosmos-dv-4x8x8").choose_settings(small=True)).eval()
    x = torch.rand(2, 3, 9, 16, 16)
    codes = tokenizer.encode(x, torch.tensor([9, 5]))
    assert codes.counts == [48, 32]
    assert torch.equal(codes.row(1), tokenizer.encode(x[1:, :, :5]).row(0))
    changed = x.clone()
    changed[:, :, 5:] = 0
    assert torch.equal(tokenizer.encode(changed).ids[:, :32], tokenizer.encode(x).ids[:, :32])
    with pytest.raises(ValueError, match=r"1 \+ a multiple of 4 frames; got 6"):
        tokenizer.encode(x[:, :, :6])


def test_the_haar_transform_comes_back_and_its_first_band_is_the_mean():
    picture, clip = torch.rand(2, 3, 8, 16), torch.rand(2, 3, 9, 8, 16)
    for patch in (1, 2, 4):
        assert torch.allclose(HaarPatcher(patch).join(HaarPatcher(patch).split(picture)), picture, atol=1e-6)
        assert torch.allclose(CausalHaarPatcher(patch).join(CausalHaarPatcher(patch).split(clip)), clip, atol=1e-6)
    mean = torch.nn.functional.avg_pool2d(picture, 2)
    assert torch.allclose(split_bands(picture, (-1, -2))[:, :3], mean, atol=1e-6)
    with pytest.raises(ValueError, match="power of two"):
        HaarPatcher(3)
