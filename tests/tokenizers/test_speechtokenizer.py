"""SpeechTokenizer and DM-Codec: the authors' outputs from their weights, whole and in part."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.quantizers.residual import ResidualQuantizer
from unimodal.tokenizers.systems.speechtokenizer import SpeechTokenizer

FILES = ["audio/speechtokenizer", "audio/speechtokenizer_snake", "audio/dmcodec"]


def load(reference):
    settings = SpeechTokenizer.read_authors_config(reference.config)
    return SpeechTokenizer.from_authors(reference.weights, settings, reference.name)


@pytest.mark.parametrize("name", FILES)
def test_weights_of_the_authors_give_their_outputs(open_reference, name):
    reference = open_reference(name)
    tokenizer = load(reference)
    x, close = reference["input"], {"atol": 2e-6, "rtol": 1e-5}
    with torch.inference_mode():
        z = tokenizer.encode_latents(x)
        reference.check_close("latents", z.transpose(1, 2), **close)
        made = tokenizer.quantizer(z)
        reference.check_equal("codes", made.ids.permute(2, 0, 1))
        reference.check_close("quantized", tokenizer.quantizer.look_up(made.ids).transpose(1, 2), **close)
        decoded = tokenizer.decode_equal(made.ids)
        reference.check_close("decoded", decoded, **close)
        found = tokenizer.reconstruct(x)
        torch.testing.assert_close(found.decoded, decoded, **close)
        reference.check_close("semantic_feature", found.features["semantic"], **close)
        reference.check_close("decoded_first_layer_item0", tokenizer.decode_equal(made.ids[:1, :, :1]), **close)
        later = ResidualQuantizer([tokenizer.quantizer.book(level) for level in (1, 2, 3)])
        rows = later.look_up(made.ids[:1, :, 1:])
        reference.check_close("decoded_layers1plus_item0", tokenizer.decoder(rows.transpose(1, 2)), **close)
        reference.check_equal("codes_encode_nq3_st1", later(z).ids[..., :2].permute(2, 0, 1))
        cut = int(reference["ragged_length"])
        ragged = tokenizer.encode_equal(x[..., :cut])
        reference.check_equal("codes_ragged", ragged.permute(2, 0, 1))
        reference.check_close("decoded_ragged_item1", tokenizer.decode_equal(ragged[1:]), **close)
    codes = tokenizer.encode(x)
    assert torch.equal(codes.ids, made.ids)
    assert torch.equal(tokenizer.encode(x, torch.tensor([cut, cut])).ids, ragged)
    torch.testing.assert_close(tokenizer.decode(codes), reference["decoded"].clamp(-1, 1), **close)


@pytest.mark.parametrize("name", FILES)
def test_weights_are_written_back_as_they_came(open_reference, name):
    reference = open_reference(name)
    tokenizer = load(reference)
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)
    written = tokenizer.write_authors_config()
    assert {key: written[key] for key in reference.config if key in written} == {
        key: value for key, value in reference.config.items() if key in written
    }
    lacking = dict(reference.weights)
    gone = lacking.pop("encoder.model.0.conv.conv.weight_g")
    with pytest.raises(ValueError, match=r"lacks encoder\.model\.0\.conv\.conv\.weight_g"):
        SpeechTokenizer.from_authors(lacking, tokenizer.config)
    newer = {**lacking, "encoder.model.0.conv.conv.parametrizations.weight.original0": gone}
    assert SpeechTokenizer.from_authors(newer, tokenizer.config).sha256 == tokenizer.sha256


@pytest.mark.parametrize("name", ["speechtokenizer", "dm-codec"])
def test_a_published_size_has_its_bit_rates(name):
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system(name).choose_settings())
    rates = [
        tokenizer.tokens_per_second * 10 * books for books in (2, 4, len(tokenizer.codebook_sizes))
    ]  # 10 bits a code
    assert rates == [1000, 2000, 4000] and set(tokenizer.codebook_sizes) == {1024}


def test_the_first_book_alone_is_what_a_teacher_sees():
    """Later books change the sound and not the semantic features, which have a gradient to the encoder alone."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("speechtokenizer").choose_settings(small=True)).train()
    x = torch.rand(2, 1, 1600) - 0.5
    tokenizer.reconstruct(x)  # the books begin
    tokenizer.eval()
    made = tokenizer.reconstruct(x)
    with torch.no_grad():
        for level in range(1, len(tokenizer.codebook_sizes)):
            tokenizer.quantizer.book(level).codebook.add_(0.1)
    again = tokenizer.reconstruct(x)
    assert torch.equal(made.features["semantic"], again.features["semantic"])
    assert not torch.equal(made.decoded, again.decoded)
    made.features["semantic"].sum().backward()
    assert tokenizer.encoder.layers[0].conv.bias.grad.abs().sum() > 0
    assert all(p.grad is None for p in tokenizer.decoder.parameters())


def test_encodec_is_the_same_network_and_takes_its_weights():
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("encodec-24-learned").choose_settings(small=True)).eval()
    trunk = tokenizer.config.trunk
    network = EncodecModel(
        EncodecConfig(
            num_filters=trunk.width,
            hidden_size=trunk.latent_width,
            codebook_dim=trunk.latent_width,
            upsampling_ratios=list(trunk.strides),
            num_lstm_layers=trunk.lstm_layers,
            codebook_size=tokenizer.config.codebook_size,
            target_bandwidths=[18.0],
        )
    ).eval()
    ours = tokenizer.state_dict()
    taken = set()
    for name, tensor in network.state_dict().items():
        if name.endswith(".embed"):
            torch.nn.init.normal_(tensor, std=0.05)
        book = name.replace("quantizer.layers.", "quantizer.books.").replace(".codebook.embed", ".codebook")
        for place in (book, name.replace(".conv.", ".transposed.")):
            if place in ours:
                ours[place].copy_(tensor)
                taken.add(place)
    assert {name for name in ours if "upkeep" not in name} == taken
    x = torch.rand(1, 1, 450) - 0.5
    with torch.inference_mode():
        theirs = network.encode(x, bandwidth=18.0).audio_codes[0, :, :3]  # [B, G, N]
        wave = network.decode(theirs[None], [None]).audio_values
    codes = tokenizer.encode(x)
    assert torch.equal(codes.ids.transpose(1, 2), theirs) and len(theirs.unique()) >= 6
    torch.testing.assert_close(tokenizer.decode(codes), wave.clamp(-1, 1), atol=1e-5, rtol=1e-4)
