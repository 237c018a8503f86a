"""UniAudio 2's SQ-Codec and ReasoningCodec: the authors' reference files, and what defines each."""

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.systems.key_map import MisfitError
from unimodal.tokenizers.systems.reasoning_codec import ReasoningCodecTokenizer, join_features
from unimodal.tokenizers.systems.reasoning_codec_config import FlowSettings, ReasoningCodecConfig, ReasoningSettings
from unimodal.tokenizers.systems.sqcodec import SQCodecConfig, SQCodecTokenizer


@pytest.fixture
def sqcodec(open_reference):
    reference = open_reference("audio/uniaudio2_sqcodec")
    config = SQCodecTokenizer.read_authors_config(reference.config)
    return reference, SQCodecTokenizer.from_authors(reference.weights, config)


def test_sqcodec_gives_the_authors_codes_and_sounds(sqcodec):
    reference, tokenizer = sqcodec
    x = reference["input"]
    codes = tokenizer.encode(x)
    reference.check_equal("codes", codes.ids.transpose(1, 2) - 9)
    with torch.inference_mode():
        latents = tokenizer.encode_latents(x)
        reference.check_close("latents", latents.transpose(1, 2))
        reference.check_close("quantized", tokenizer.quantizer(latents).values.transpose(1, 2), atol=1e-7)
        decoded = tokenizer.decode_equal(codes.ids)
    reference.check_close("decoded", decoded, atol=2e-6)
    assert torch.equal(tokenizer.decode(codes), decoded.clamp(-1, 1))
    short = x[..., : int(reference["ragged_length"])]
    codes = tokenizer.encode(short, published=True)
    with torch.inference_mode():
        reference.check_close("latents_ragged", tokenizer.encode_latents(short).transpose(1, 2))
        reference.check_close("decoded_ragged_item1", tokenizer.decode_equal(codes.ids)[1:], atol=2e-6)


def test_sqcodec_writes_its_weights_back_and_names_what_does_not_fit(sqcodec):
    reference, tokenizer = sqcodec
    written = tokenizer.collect_authors_state()
    assert written.keys() == reference.weights.keys()
    assert all(torch.equal(written[name], value) for name, value in reference.weights.items())
    shared = "encoder.3.down_conv.activation.weight"
    with pytest.raises(MisfitError, match="PReLU"):
        SQCodecTokenizer.from_authors({**reference.weights, shared: torch.ones(1)}, tokenizer.config)


def test_sqcodec_is_causal_but_for_the_frames_that_its_decoder_looks_ahead():
    torch.manual_seed(0)
    tokenizer = SQCodecTokenizer(SQCodecConfig()).eval()
    x = torch.rand(1, 1, 640) - 0.5
    other = torch.cat([x[..., :320], torch.rand(1, 1, 320)], -1)
    assert torch.equal(tokenizer.encode(x).ids[:, :5], tokenizer.encode(other).ids[:, :5])
    ids = torch.randint(19, (1, 10, 12))
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 9) % 19
    differ = (tokenizer.decode(Codes.whole(ids)) - tokenizer.decode(Codes.whole(changed))).abs().amax((0, 1))
    assert int(differ.nonzero()[0]) == (7 - 2) * 64  # the kernel of 5 sees two frames ahead


def test_sqcodec_has_the_codes_of_a_sound_of_any_length():
    tokenizer = SQCodecTokenizer(SQCodecConfig()).eval()
    for length in (1, 63, 64, 65, 129):
        x = torch.rand(1, 1, length)
        assert tokenizer.encode(x).ids.shape[1] == -(-length // 64)
        assert tokenizer.encode(x, published=True).ids.shape[1] == max(1, -(-(length // 2 * 2) // 64))


# ---- ReasoningCodec


@pytest.fixture
def reasoning(open_reference):
    reference = open_reference("audio/uniaudio2_reasoning")
    config = ReasoningCodecTokenizer.read_authors_config(reference.config)
    return reference, ReasoningCodecTokenizer.from_authors(reference.weights, config)


def read_features(reference):
    names = ("bestrq_acoustic", "bestrq_semantic", "whisper", "wavlm")
    return join_features(*(reference[f"input_{name}"].transpose(1, 2) for name in names))


def test_reasoning_codec_gives_the_authors_codes_and_latents(reasoning):
    reference, tokenizer = reasoning
    features = read_features(reference)
    condition = Condition(features=features)
    codes = tokenizer.encode(torch.zeros(2, 1, 19200), condition=condition)
    slow, fast = tokenizer.streams.split(codes)
    reference.check_equal("codes_reasoning", slow.ids)
    reference.check_equal("codes", fast.ids)
    torch.manual_seed(0)
    drawn = tokenizer.encode(torch.zeros(2, 1, 19200), condition=condition, published=True)
    reference.check_equal("codes_stock_call_seed0", tokenizer.streams.split(drawn)[1].ids)
    with torch.inference_mode():
        latents = tokenizer.cond_feature_emb(tokenizer.quantize_features(features)[3])
        reference.check_close("latents", latents, atol=1e-5)
        told = tokenizer.look_up_condition(codes.ids)
        reference.check_close("quantized", told, atol=1e-5)
        noise, context = reference["noise"], reference["context_latents"]
        reference.check_close("decoded", tokenizer.sample_latents(told, noise, 4, 1.5), atol=1e-4)
        made = tokenizer.sample_latents(told, noise, 4, 1.5, context[:, :6], num_real=18)
        reference.check_close("decoded_len18_context6", made, atol=1e-4)


def test_reasoning_codec_writes_its_weights_back(reasoning):
    reference, tokenizer = reasoning
    written = tokenizer.collect_authors_state()
    assert written.keys() == reference.weights.keys()
    assert all(torch.equal(written[name], value) for name, value in reference.weights.items())
    wrapped = {f"module.{name}": tensor for name, tensor in reference.weights.items()}
    assert ReasoningCodecTokenizer.from_authors(wrapped, tokenizer.config).sha256 == tokenizer.sha256


TINY = ReasoningCodecConfig(
    sample_rate_hz=400,
    width=32,
    whisper_width=3,
    wavlm_width=2,
    best_rq_width=4,
    codebook_size=16,
    code_width=4,
    num_acoustic=2,
    latent_width=5,
    reasoning=ReasoningSettings(num_levels=2, codebook_size=16, code_width=4, num_layers=1, head_width=32),
    flow=FlowSettings(num_layers=1, num_heads=2, head_width=8, max_frames=200),
    sqcodec=SQCodecConfig(sample_rate_hz=400, pool=2, strides=(2, 4), kernels=(4, 8), num_channels=5),
    window=4,
)


def make_tiny():
    torch.manual_seed(0)
    tokenizer = ReasoningCodecTokenizer(TINY).eval()
    x, features = torch.rand(2, 1, 6 * 160) - 0.5, torch.randn(2, 60, 18)
    return tokenizer, x, features


@pytest.mark.sweep("tokenizers at work")
def test_reasoning_codec_codes_each_item_by_itself_and_long_sounds_window_by_window():
    tokenizer, x, features = make_tiny()
    codes = tokenizer.encode(x, torch.tensor([960, 300]), Condition(features=features))
    assert codes.counts == [6, 2] and codes.ids.shape[2] == 2 * 2 + 5 * 4
    for item, length in enumerate((960, 300)):
        own = Condition(features=features[item : item + 1])
        assert torch.equal(tokenizer.encode(x[item : item + 1, :, :length], condition=own).row(0), codes.row(item))
    decoded = tokenizer.decode(codes, steps=2)
    assert decoded.shape == (2, 1, 960) and not decoded[1, :, 320:].any()
    alone = tokenizer.decode(Codes.whole(codes.row(1)[None]), steps=2)
    assert torch.allclose(decoded[1:, :, :320], alone, atol=1e-6)
    assert torch.allclose(tokenizer.decode(codes, steps=2, guidance=1.0), decoded, atol=1) and not torch.equal(
        tokenizer.decode(codes, steps=2, guidance=1.0), decoded
    )


def test_reasoning_codec_trains_and_says_what_it_lacks():
    tokenizer, x, features = make_tiny()
    made = tokenizer.train().reconstruct(x[..., :640], None, Condition(features=features))
    made.loss.backward()
    assert made.decoded.shape == (2, 1, 640) and tokenizer.audio_thinking.cls_token.grad is not None
    assert tokenizer.flow.proj_in.ffn_1.weight.grad.abs().sum() > 0
    tokenizer.eval()
    with pytest.raises(ValueError, match="BEST-RQ, Whisper and WavLM"):
        tokenizer.encode(x)
    with pytest.raises(ValueError, match="25 a second"):
        tokenizer.encode(x, condition=Condition(features=features[:, :50]))
    bare = ReasoningCodecTokenizer(TINY.model_copy(update={"sqcodec": None})).eval()
    with pytest.raises(ValueError, match="sqcodec"):
        bare.decode(tokenizer.encode(x, condition=Condition(features=features)))
    weights = tokenizer.collect_authors_state()
    assert "sqcodec.encoder.0.weight_g" in weights
    again = ReasoningCodecTokenizer.from_authors(weights, TINY)
    assert again.sha256 == tokenizer.sha256
