"""XQ-GAN, ImageFolder and RobusTok: the authors' outputs from their weights, scales that decode, and codes that bear
near ones."""

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.xqgan import XqganTokenizer

NAMES = ("imagefolder", "imagefolder-lfq")


def load(reference):
    settings = XqganTokenizer.read_authors_config(reference.config)
    return XqganTokenizer.from_authors(reference.weights, settings, reference.name)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_authors_give_their_outputs(name, open_reference):
    reference = open_reference(f"visual/{name}")
    tokenizer = load(reference)
    x = reference["input"] / 2 + 0.5
    with torch.inference_mode():
        latents = tokenizer.encode_latents(x)  # [B, L, P·D]
        branches = torch.cat(latents.chunk(2, dim=-1), dim=1)
        reference.check_close("latents", branches.transpose(1, 2).unsqueeze(-1))
        made = tokenizer.quantizer(latents)
        for branch in range(2):
            reference.check_equal(f"codes_branch_{branch}", made.ids[..., branch])
        coarse = tokenizer.quantizer.look_up(made.ids[:, :6])  # scales of 1, 1 and 2 cells a side
        for suffix, values in (("", tokenizer.quantizer.look_up(made.ids)), ("_first_3_scales", coarse)):
            reference.check_close(f"quantized{suffix}", values.transpose(1, 2).unflatten(2, (3, 3)))
            reference.check_close(f"decoded{suffix}", tokenizer.decode_latents(values) * 2 - 1)
    codes = tokenizer.encode(x)
    assert torch.equal(codes.ids, made.ids)
    wanted = (reference["decoded_first_3_scales"] / 2 + 0.5).clamp(0, 1)
    prefix = Codes(codes.ids[:, :6], codes.mask[:, :6])
    torch.testing.assert_close(tokenizer.decode(prefix), wanted, atol=5e-5, rtol=1e-4)
    if name == "imagefolder":
        with torch.inference_mode():
            reference.check_close("var_input", tokenizer.make_next_inputs(codes))
    with pytest.raises(ValueError, match="whole scales come in 1, 2, 6, 15 positions; got 4"):
        tokenizer.decode(Codes(codes.ids[:, :4], codes.mask[:, :4]))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_written_back_as_they_came(name, open_reference):
    reference = open_reference(f"visual/{name}")
    state = load(reference).collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in reference.weights.items())
    teachers = {
        **reference.weights,
        "semantic_model.norm.weight": torch.ones(3),
        "quantizes.0.ema_vocab_hit_SV": torch.ones(2),
    }
    XqganTokenizer.from_authors(teachers, load(reference).config)


@pytest.mark.parametrize("name", ["imagefolder-msvr10p2-4096", "imagefolder-msbr10p2-4096", "xqgan-vp2-4096"])
def test_published_sizes_have_their_published_codes(name):
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system(name).choose_settings())
    assert tokenizer.codebook_sizes == (4096, 4096)
    assert tokenizer.tokens_per_item == (256 if "vp2" in name else 286)


def make_robust(share: float, **settings) -> XqganTokenizer:
    """A small RobusTok whose table is spread, so that near codes differ."""
    known = read_system("robustok").choose_settings(small=True)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(known | {"perturbed_share": share, "near_codes": 6} | settings)
    assert isinstance(tokenizer, XqganTokenizer)
    torch.nn.init.normal_(tokenizer.branches[0].codebook)
    return tokenizer


@pytest.mark.parametrize(("share", "perturbed"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_codes_of_a_share_of_the_batch_become_near_ones_in_training_alone(share, perturbed, monkeypatch):
    tokenizer = make_robust(share)
    seen = []
    monkeypatch.setattr(tokenizer, "decode_latents", lambda values: seen.append(values) or torch.zeros(8, 3, 16, 16))
    x = torch.rand(8, 3, 16, 16)
    tokenizer.train().reconstruct(x, generator=torch.Generator().manual_seed(1))
    tokenizer.eval().reconstruct(x)
    trained, exact = seen
    with torch.no_grad():
        z = torch.nn.functional.normalize(tokenizer.encode_latents(x), dim=-1)
    near = torch.cdist(z, tokenizer.branches[0].rows).topk(6, dim=-1, largest=False).indices
    drawn = torch.cdist(trained, tokenizer.branches[0].rows).argmin(-1)
    assert (drawn.unsqueeze(-1) == near).any(-1).all()
    changed = (trained - exact).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [row < perturbed for row in range(8)]
