"""The judges against figures that are known by definition."""

import math

import numpy as np
import pytest
import torch

from unimodal.evaluation.asking import find_features
from unimodal.evaluation.codecs import CODECS, encode_within
from unimodal.evaluation.judges import (
    DnsmosJudge,
    compute_clip_features,
    compute_picture_features,
    compute_psnr,
    compute_ssim,
    compute_word_error_rate,
    find_nearest,
)
from unimodal.evaluation.prepared import Pictures
from unimodal.evaluation.tokenizer_bench.picture_judges import fold_norms

pytestmark = pytest.mark.sweep("evaluations")


def test_psnr_is_that_of_its_definition():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.1
    b[1, :, :4] += 0.2  # half of the pixels
    assert compute_psnr(a, b).tolist() == pytest.approx([20.0, -10 * math.log10(0.02)], abs=1e-3)
    assert float(compute_psnr(a, a).min()) == pytest.approx(100)


def test_ssim_is_one_for_equals_and_falls_with_structure_lost():
    draws = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 32, 32, generator=draws)
    assert torch.allclose(compute_ssim(a, a), torch.ones(2), atol=1e-4)
    blurred = torch.nn.functional.avg_pool2d(a, 3, 1, 1, count_include_pad=False)
    assert (compute_ssim(a, blurred) < 0.8).all() and (compute_ssim(a, (a + 0.02).clamp(0, 1)) > 0.95).all()
    # two flat pictures: only the luminance term is left, (2ab + c1) / (a² + b² + c1)
    flat = [torch.full((1, 3, 16, 16), value) for value in (0.5, 0.25)]
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert float(compute_ssim(*flat)) == pytest.approx(expected, abs=1e-3)


def test_nearest_goes_by_angle():
    gallery = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), dim=1)
    assert find_nearest(torch.tensor([[0.0, 1.0]]), gallery, 2).tolist() == [[2, 1]]
    assert find_nearest(torch.tensor([[0.0, 1.0]]), gallery, 9).shape == (1, 3)


def test_features_are_unit_and_independent_of_the_batch(model):
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = compute_picture_features(model, pictures)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(compute_picture_features(model, pictures[1:2])[0], features[1], atol=1e-5)
    still = pictures[:1, None].expand(-1, 9, -1, -1, -1)  # a clip that does not move is its picture
    assert torch.allclose(compute_clip_features(model, still)[0], features[0], atol=1e-5)


def test_prepared_features_are_taken_of_the_same_trunk_only(model):
    """A model that looks through other networks compares pictures by these, on both sides."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    width = model.extract_picture_features(torch.zeros(1, 3, 64, 64)).shape[1]
    for wide in (width, width + 5):
        prepared = np.random.default_rng(1).normal(size=(3, wide)).astype(np.float32)
        pictures = Pictures(pixels, np.arange(3), np.array(["noto"] * 3), [], prepared)
        found = find_features(model, pictures, np.array([2, 0]), lambda *_: None)
        assert found.shape == (2, width)
        expected = torch.nn.functional.normalize(torch.from_numpy(prepared[[2, 0]]), dim=-1)
        assert (wide == width) == (found.shape == expected.shape and bool(torch.allclose(found, expected)))


@pytest.mark.parametrize(
    ("said", "heard", "rate"),
    [
        (["a red apple"], ["a red apple"], 0.0),
        (["a red apple"], ["A red, apple!"], 0.0),
        (["twenty one days"], ["21 days"], 0.0),  # Whisper writes numbers in digits
        (["a red apple", "yes"], ["a green apple", ""], 50.0),  # one wrong and one lost, of four
        (["hello"], ["hello hello hello"], 200.0),
    ],
)
def test_word_error_rate_counts_words_after_one_normaliser(said, heard, rate):
    assert compute_word_error_rate(said, heard) == rate


def test_no_sentence_is_an_error():
    with pytest.raises(ValueError, match="no sentence"):
        compute_word_error_rate([""], ["hello"])


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gives_its_best_within_the_budget(codec):
    ramp = torch.linspace(0, 1, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T, torch.full((64, 64), 0.5)])
    small, large = (encode_within(codec, picture, budget) for budget in (96, 5_000))
    assert small.picture.shape == picture.shape
    errors = [float((coded.picture - picture).square().mean()) for coded in (small, large)]
    assert errors[1] <= errors[0] and large.num_bytes <= 5_000
    if codec == "jpeg":  # its tables alone are larger: the smallest file counts, and says so
        assert small.num_bytes > 96
    else:
        assert small.num_bytes <= 96 and errors[0] < np.var(picture.numpy())


def test_dnsmos_hears_noise_in_speech_and_takes_any_length():
    from pathlib import Path

    import soundfile

    wave, rate_hz = soundfile.read(Path("model_cards/nano/samples/speech.wav"), dtype="float32")
    sound, judge = torch.from_numpy(wave), DnsmosJudge()
    assert rate_hz == 16_000
    noise = torch.randn(len(sound), generator=torch.Generator().manual_seed(0))
    clean, noisy = judge.score(sound), judge.score((sound + 0.1 * noise).clamp(-1, 1))
    assert 1 <= noisy < clean <= 5
    assert judge.score(sound.repeat(16_000 * 11 // len(sound) + 1)) == pytest.approx(clean, abs=0.3)
    assert judge.score(sound[:0]) == 1.0


def test_norms_go_into_the_convolutions_before_them_without_a_change_of_what_comes_out():
    draws = torch.Generator().manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.nn.BatchNorm2d(6))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU6(), inner).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
    x = torch.rand(2, 3, 8, 8, generator=draws)
    before = network(x)
    fold_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(network(x), before, rtol=1e-5, atol=1e-5)
