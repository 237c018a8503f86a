"""Mel front ends: those of other libraries, frame by frame."""

import torch

from unimodal.tokenizers.parts.mel import KaldiFbank, WhisperMel


def make_sound(num_samples, seed=0):
    return 0.3 * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))


def test_whisper_bands_are_those_of_transformers():
    from transformers import WhisperFeatureExtractor

    sound, mel = make_sound(4321), WhisperMel(80)
    extractor = WhisperFeatureExtractor(feature_size=80)
    theirs = extractor(sound[0].numpy(), sampling_rate=16000, padding="longest", truncation=False, return_tensors="pt")
    torch.testing.assert_close(mel(sound), theirs["input_features"], atol=2e-4, rtol=0)
    assert mel(sound).shape[2] == mel.count_frames(4321) == 27
    assert mel(make_sound(3)).shape[2] == mel.count_frames(3) == 1


def test_kaldi_bands_are_those_of_torchaudio():
    from torchaudio.compliance.kaldi import fbank

    sound, bands = make_sound(1999) * 2**15, KaldiFbank(128)
    theirs = fbank(sound, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10)
    torch.testing.assert_close(bands(sound)[0], theirs, atol=1e-3, rtol=0)
    assert len(theirs) == bands.count_frames(1999) and bands.count_frames(399) == 0
