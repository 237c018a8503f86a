"""Soft codes: the mean of the codebook's vectors under probabilities, decoded by any tokenizer that looks codes up."""

import pytest
import torch
from torch.nn.functional import one_hot

from tests.tokenizers.test_published_systems import make_media
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.quantizers import make_quantizer
from unimodal.tokenizers.soft_codes import decode_soft, mix_codes

#: of one code a position, of bits in groups, with a prefix, with a flow, of clips, of masks
SYSTEMS = ["titok-b64", "beyond-words", "one-d-piece-s256", "flextok-d12-d12", "gigatok-ss", "videoflextok", "himtok"]


def build_small(name: str):
    torch.manual_seed(0)
    return build_tokenizer(read_system(name).choose_settings(small=True)).eval()


@pytest.mark.sweep
@pytest.mark.parametrize("name", SYSTEMS)
def test_sure_probabilities_give_what_the_codes_give(name):
    tokenizer = build_small(name)
    codes = tokenizer.encode(make_media(tokenizer))
    sure = [one_hot(codes.ids[..., g].clone(), size).float() for g, size in enumerate(tokenizer.codebook_sizes)]
    with torch.inference_mode():
        made = decode_soft(tokenizer, sure, codes)
    assert torch.allclose(made, tokenizer.decode(codes), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "vector", "codebook_size": 16, "num_dims": 6},
        {"kind": "finite_scalar", "levels": [4, 5]},
        {"kind": "lookup_free", "group_bits": [2, 3]},
    ],
    ids=lambda settings: settings["kind"],
)
def test_the_mean_vector_is_the_mean_of_many_draws(settings):
    torch.manual_seed(0)
    quantizer = make_quantizer(settings).eval()
    probabilities = [torch.rand(1, 1, size).softmax(-1) for size in quantizer.codebook_sizes]
    draws = torch.stack([each[0, 0].multinomial(20_000, True) for each in probabilities], -1)
    with torch.inference_mode():
        mean, drawn = mix_codes(quantizer, probabilities)[0, 0], quantizer.look_up(draws[None])[0].mean(0)
    assert torch.allclose(mean, drawn, atol=0.03)


def test_a_soft_code_is_nearer_than_the_likeliest_one_and_has_a_gradient():
    tokenizer = build_small("titok-b64")
    x = make_media(tokenizer)
    with torch.no_grad():
        z = tokenizer.encode_tokens(x)
        table = tokenizer.quantizer.look_up(torch.arange(tokenizer.codebook_sizes[0])[:, None])
    target = (table[3] + table[5]) / 2  # between two codes
    probabilities = torch.zeros(*z.shape[:2], len(table)).index_fill(-1, torch.tensor([3, 5]), 0.5)
    probabilities.requires_grad_(True)
    mixed = mix_codes(tokenizer.quantizer, [probabilities])
    assert torch.allclose(mixed, target.expand_as(mixed), atol=1e-5)
    decode_soft(tokenizer, [probabilities]).sum().backward()
    assert probabilities.grad is not None and probabilities.grad.abs().sum() > 0
    likeliest = mix_codes(
        tokenizer.quantizer, [probabilities.detach() + 1e-3 * one_hot(torch.tensor(3), len(table))], 1
    )
    assert torch.allclose(likeliest, table[3].expand_as(likeliest), atol=1e-5)


def test_what_cannot_be_mixed_is_named():
    tokenizer = build_small("titok-b64")
    with pytest.raises(ValueError, match="probabilities of \\(7,\\) codes; the quantizer has"):
        decode_soft(tokenizer, [torch.rand(1, 4, 7)])
    scales = build_small("imagefolder-msvr10p2-4096")
    with pytest.raises(ValueError, match="decode the likeliest codes"):
        decode_soft(scales, [torch.rand(1, 4, size) for size in scales.codebook_sizes])
