"""TiTok, TA-TiTok and One-D-Piece: the authors' codes and pictures, their checkpoints in and out, prefixes and text."""

import json

import pytest
import torch
from safetensors.torch import save_file

from unimodal.tokenizers import pretrained
from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.systems.titok import (
    TATiTokTokenizer,
    TiTokConfig,
    TiTokLatents,
    TiTokTokenizer,
)
from unimodal.tokenizers.systems.titok_names import read_settings

SIZE = {"width": 32, "num_layers": 2, "num_heads": 4}
KINDS = {
    "titok": TiTokTokenizer,
    "titok-legacy": TiTokTokenizer,
    "titok-vae": TiTokLatents,
    "tatitok": TATiTokTokenizer,
    "one-d-piece": TiTokTokenizer,
}


def read_config(kind, reference):
    """Our settings of a reference file: the authors' config, with the constants that were lowered for it."""
    settings = read_settings(reference.config, latents=kind is TiTokLatents, text=kind.reads_text)
    pixel = reference.facts.get("config_pixel")
    if pixel is not None:
        settings["proxy"] = {
            "num_codes": pixel["codebook"][0], "depth": pixel["codebook"][1], "channels": pixel["hidden_channels"],
            "multipliers": pixel["channel_mult"], "num_blocks": pixel["num_res_blocks"],
            "num_groups": pixel["group_norm_groups"],
        }  # fmt: skip
    return kind.config_class.model_validate({**settings, "encoder": SIZE, "decoder": SIZE})


@pytest.fixture(params=KINDS)
def pair(request, open_reference):
    """A reference file and our tokenizer with its weights."""
    reference, kind = open_reference(f"visual/{request.param}"), KINDS[request.param]
    return reference, kind.from_authors(reference.weights, read_config(kind, reference))


@torch.no_grad()
def test_it_gives_the_authors_codes_and_pictures(pair):
    reference, tokenizer = pair
    condition = Condition(features=reference["text_guidance"]) if "text_guidance" in reference.tensors else None
    z = tokenizer.encode_tokens(reference["input"])
    if isinstance(tokenizer, TiTokLatents):
        mean, log_variance = tokenizer.encode_distribution(reference["input"])
        reference.check_close("latents", z.transpose(1, 2).unsqueeze(2))
        reference.check_close("posterior_mean", mean.transpose(1, 2).unsqueeze(2))
        reference.check_close("posterior_logvar", log_variance.transpose(1, 2).unsqueeze(2))
        reference.check_close("decoded_from_mean", tokenizer.decode_tokens(mean))
        assert torch.equal(tokenizer.encode(reference["input"]).values, mean)
        return
    codes = tokenizer.encode(reference["input"])
    quantized = tokenizer.quantizer.look_up(codes.ids)
    reference.check_close("latents", z.transpose(1, 2).unsqueeze(2))
    reference.check_equal("codes", codes.ids.transpose(1, 2))
    reference.check_close("quantized", quantized.transpose(1, 2).unsqueeze(2))
    reference.check_close("decoded", tokenizer.decode_tokens(quantized, condition=condition))
    torch.testing.assert_close(
        tokenizer.decode(codes, condition), reference["decoded"].clamp(0, 1), atol=5e-5, rtol=1e-4
    )
    if "decoder_logits" in reference.tensors:
        reference.check_close("decoder_logits", tokenizer.predict_proxy(quantized))
    for length in (1, 3):
        if f"decoded_prefix_{length}" in reference.tensors:
            reference.check_close(f"decoded_prefix_{length}", tokenizer.decode_tokens(quantized[:, :length]))


def test_its_weights_are_written_back_as_its_authors_have_them(pair):
    reference, tokenizer = pair
    written = tokenizer.collect_authors_state()
    assert set(written) == set(reference.weights)
    assert all(torch.equal(written[name], tensor) for name, tensor in reference.weights.items())
    for change, said in (
        (lambda w: w.pop("encoder.ln_pre.bias"), "lacks encoder.ln_pre.bias"),
        (lambda w: w.update(other=torch.zeros(1)), "beside what this system has other"),
        (lambda w: w.update({"encoder.ln_pre.bias": torch.zeros(2)}), r"encoder.ln_pre.bias of shape \(2,\)"),
    ):
        spoilt = dict(reference.weights)
        change(spoilt)
        with pytest.raises(ValueError, match=said):
            type(tokenizer).from_authors(spoilt, tokenizer.config)
