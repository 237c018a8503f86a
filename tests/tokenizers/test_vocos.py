"""WavTokenizer and Vocos: the authors' outputs from their weights, and those of transformers' class."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.heads.spectrum import InverseStft
from unimodal.tokenizers.systems.vocos import VocosEncodec, VocosMel
from unimodal.tokenizers.systems.wavtokenizer import WavTokenizer

CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def load(kind, reference, **changes):
    config = kind.read_authors_config({**reference.config, **changes})
    return kind.from_authors(reference.weights, config, reference.name)


def check_written_back(tokenizer, reference):
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def open_wavtokenizer(reference):
    """The reference's config says what the authors' YAML has under `feature_extractor`."""
    names = ("n_filters", "dimension", "ratios", "vq_bins")
    return load(WavTokenizer, reference, feature_extractor={name: reference.config[name] for name in names})


def test_wavtokenizer_gives_its_authors_outputs(open_reference):
    reference = open_reference("audio/wavtokenizer")
    tokenizer, x = open_wavtokenizer(reference), reference["input"][:, None]
    with torch.inference_mode():
        z = tokenizer.encode_latents(x)
        reference.check_close("latents", z.transpose(1, 2), **CLOSE)
        ids = tokenizer.quantizer(z).ids
        reference.check_equal("codes", ids.permute(2, 0, 1))
        rows = tokenizer.quantizer.look_up(ids).transpose(1, 2)
        reference.check_close("quantized", rows, **CLOSE)
        wide = {"atol": 5e-6, "rtol": 1e-5}  # the authors' code misses the file's 2e-6 on another processor too
        reference.check_close("decoded", tokenizer.decoder(rows)[:, 0], **wide)
        other = tokenizer.decoder(rows, 2)[:, 0, :960]
        reference.check_close("decoded_bandwidth_id_2_first960", other, **wide)
        ragged = tokenizer.encode_equal(x[..., : int(reference["ragged_length"])])
        reference.check_equal("codes_ragged", ragged.permute(2, 0, 1))
        reference.check_close("decoded_ragged_item1", tokenizer.decode_equal(ragged[1:])[:, 0], **wide)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x))[:, 0], reference["decoded"].clamp(-1, 1), **wide)
    check_written_back(tokenizer, reference)
    trained = {**reference.weights, "multiperioddisc.x": z, "feature_extractor.encodec.decoder.model.0.x": z}
    assert WavTokenizer.from_authors(trained, tokenizer.config).sha256 == tokenizer.sha256


def test_wavtokenizer_loads_what_transformers_saves():
    from transformers import WavTokenizerConfig, WavTokenizerModel

    torch.manual_seed(0)
    sizes = {"num_filters": 2, "upsampling_ratios": [5, 4], "hidden_size": 16, "codebook_dim": 16, "codebook_size": 32}
    decoder = {"decoder_hidden_size": 32, "decoder_intermediate_size": 48, "decoder_num_layers": 2}
    network = WavTokenizerModel(WavTokenizerConfig(**sizes, **decoder)).eval()
    config = WavTokenizer.read_authors_config(network.config.to_dict())
    tokenizer = WavTokenizer.from_authors(network.state_dict(), config)
    x = torch.rand(1, 1, 610) - 0.5
    with torch.inference_mode():
        theirs = network.encode(x).audio_codes  # [B, 1, N]
        wave = network.decode(theirs).audio_values
    ours = tokenizer.encode(x)
    assert torch.equal(ours.ids[..., 0], theirs.reshape(1, -1))
    torch.testing.assert_close(tokenizer.decode(ours).flatten(), wave.flatten().clamp(-1, 1), **CLOSE)


@pytest.mark.parametrize(
    ("name", "rate"), [("wavtokenizer-75", 900), ("wavtokenizer-40", 480), ("vocos-encodec", 12000)]
)
def test_a_published_size_has_its_bits_a_second(name, rate):
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system(name).choose_settings())
    bits = sum((size - 1).bit_length() for size in tokenizer.codebook_sizes)
    assert tokenizer.tokens_per_second * bits == rate


def test_vocos_of_mel_bands_gives_its_authors_outputs(open_reference):
    reference = open_reference("audio/vocos_mel")
    tokenizer, x = load(VocosMel, reference), reference["input"][:, None]
    latents = tokenizer.encode(x)
    reference.check_close("latents", latents.values.transpose(1, 2), atol=2e-5, rtol=1e-4)
    with torch.inference_mode():
        out = tokenizer.decoder.backbone(reference["latents"][:1])
        reference.check_close("backbone_out_item0", out, **CLOSE)
        reference.check_close("decoded", tokenizer.decode_equal(reference["latents"].transpose(1, 2))[:, 0], **CLOSE)
    cut = torch.tensor([x.shape[-1], int(reference["ragged_length"])])
    padded = tokenizer.encode(x, cut)
    reference.check_close("latents_ragged_item1", padded.row(1).T[None], atol=2e-5, rtol=1e-4)
    made = tokenizer.decode(padded)
    assert made.shape == (2, 1, 4800) and not made[1, :, 4736:].any()
    torch.testing.assert_close(made[1, :, :4736], reference["decoded_ragged_item1"].clamp(-1, 1), atol=1e-5, rtol=1e-4)
    check_written_back(tokenizer, reference)
    same = VocosMel.from_authors(
        reference.weights,
        tokenizer.config.model_copy(
            update={"decoder": tokenizer.config.decoder.model_copy(update={"padding": "same"})}
        ),
    )
    latents = same.encode(x[:1])
    reference.check_close("latents_same_item0", latents.values.transpose(1, 2), atol=2e-5, rtol=1e-4)
    wave = same.decode_equal(reference["latents_same_item0"].transpose(1, 2)).detach()
    reference.check_close("decoded_same_item0", wave[:, 0], **CLOSE)
    assert same.encode(torch.rand(1, 1, 3) - 0.5).counts == [1]


def test_vocos_of_encodec_gives_its_authors_outputs(open_reference):
    reference = open_reference("audio/vocos_encodec")
    tokenizer, x = load(VocosEncodec, reference), reference["input"][:, None]
    assert tokenizer.config.books_of_conditions == (1, 2, 3, 4)
    with torch.inference_mode():
        z = tokenizer.encode_latents(x)
        reference.check_close("latents", z.transpose(1, 2), **CLOSE)
        ids = tokenizer.quantizer(z).ids
        reference.check_equal("codes", ids.permute(2, 0, 1))
        reference.check_equal("codes_bandwidth_id_1", ids[..., :2].permute(2, 0, 1))
        reference.check_close("quantized", tokenizer.look_up(ids).transpose(1, 2), **CLOSE)
        reference.check_close("decoded", tokenizer.decode_equal(ids)[:, 0], **CLOSE)
        reference.check_close("decoded_bandwidth_id_1_item0", tokenizer.decode_equal(ids[:1, :, :2])[:, 0], **CLOSE)
        ragged = tokenizer.encode_equal(x[..., : int(reference["ragged_length"])])
        reference.check_equal("codes_ragged", ragged.permute(2, 0, 1))
        reference.check_close("decoded_ragged_item1", tokenizer.decode_equal(ragged[1:])[:, 0], **CLOSE)
    check_written_back(tokenizer, reference)
    own = {name: value for name, value in reference.weights.items() if "encodec." not in name}
    encodec = {name.partition("encodec.")[2]: value for name, value in reference.weights.items() if name not in own}
    assert VocosEncodec.lacks_companion(own) and not VocosEncodec.lacks_companion(reference.weights)
    whole = VocosEncodec.from_authors(VocosEncodec.add_companion(own, encodec), tokenizer.config)
    assert whole.sha256 == tokenizer.sha256


def test_vocos_takes_the_encodec_of_transformers():
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("vocos-encodec").choose_settings(small=True)).eval()
    trunk = tokenizer.config.trunk
    network = EncodecModel(
        EncodecConfig(
            num_filters=trunk.width,
            hidden_size=trunk.latent_width,
            codebook_dim=trunk.latent_width,
            upsampling_ratios=list(trunk.strides),
            num_lstm_layers=trunk.lstm_layers,
            codebook_size=tokenizer.config.codebook_size,
            target_bandwidths=[24.0],
        )
    ).eval()
    for layer in network.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    own = {k: v for k, v in tokenizer.collect_authors_state().items() if "encodec." not in k}
    whole = VocosEncodec.from_authors(VocosEncodec.add_companion(own, network.state_dict()), tokenizer.config)
    x = torch.rand(1, 1, 500) - 0.5
    with torch.inference_mode():
        theirs = network.quantizer.encode(network.encoder(x), None)[: tokenizer.config.num_codebooks]  # [G, B, N]
    assert torch.equal(whole.encode(x).ids, theirs.permute(1, 2, 0))


@pytest.mark.parametrize("padding", ["same", "center"])
def test_the_inverse_transform_gives_back_what_was_transformed(padding):
    x = torch.rand(2, 640) - 0.5
    inverse = InverseStft(64, 16, padding)
    if padding == "center":
        spectrum = torch.stft(x, 64, 16, window=inverse.window, return_complex=True)
    else:
        around = torch.nn.functional.pad(x, (24, 24))
        spectrum = torch.stft(around, 64, 16, window=inverse.window, center=False, return_complex=True)
    torch.testing.assert_close(inverse(spectrum), x, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="hop of at most half"):
        InverseStft(64, 48)


def test_released_folders_load_with_their_own_config(open_reference, tmp_path, monkeypatch):
    """As the repositories have them: a pickle beside a config.yaml, and EnCodec's weights elsewhere."""
    import yaml

    from unimodal.tokenizers import pretrained
    from unimodal.tokenizers.pretrained import checkpoint

    for name, kind in (("vocos_mel", VocosMel), ("vocos_encodec", VocosEncodec)):
        reference = open_reference(f"audio/{name}")
        folder = tmp_path / name
        folder.mkdir()
        config = {
            key: {"class_path": "…", "init_args": reference.config[key]}
            for key in ("feature_extractor", "backbone", "head")
        }
        config |= {key: value for key, value in reference.config.items() if key == "encodec"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        own = {key: value for key, value in reference.weights.items() if "encodec." not in key}
        encodec = {key.partition("encodec.")[2]: value for key, value in reference.weights.items() if key not in own}
        torch.save(own, folder / "pytorch_model.bin")
        monkeypatch.setattr(checkpoint, "download_folder", lambda place, patterns, folder=folder: folder)
        more = {}
        if encodec:
            with pytest.raises(ValueError, match="leaves out its EnCodec, facebook/encodec_24khz; name its folder"):
                pretrained.load(name, pickle=True)
            torch.save(encodec, tmp_path / "encodec.th")
            more = {"companion": tmp_path / "encodec.th"}
        load = pretrained.load if encodec else pretrained.load_latents
        loaded = load(name, pickle=True, **more)
        assert loaded.sha256 == kind.from_authors(reference.weights, loaded.config).sha256
