"""Losses of sounds, each against the formula that was published of it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import conv2d, leaky_relu
from torchaudio.transforms import MelSpectrogram

from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.settings import LossSettings
from unimodal.tokenizers.losses.spectra import MelLoss, StftLoss
from unimodal.tokenizers.losses.wave_adversarial import WaveAdversarialLoss, WaveJudges
from unimodal.tokenizers.losses.wave_judges import BandJudge, PeriodJudge, SpectrumJudge


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2, 3000, generator=generator) * 0.1
    return real + 0.05 * torch.randn(2, 3000, generator=generator), real


def test_mel_losses_are_the_published_formulas(pair):
    made, real = pair
    bands = MelSpectrogram(16000, 1024, hop_length=256, n_mels=100, power=1)
    wanted = (bands(made).clamp(min=1e-7).log() - bands(real).clamp(min=1e-7).log()).abs().mean()
    torch.testing.assert_close(MelLoss(16000)(made, real), wanted)
    wanted = 0.0
    for window, count in ((256, 40), (64, 10)):
        bands = MelSpectrogram(
            16000, window, hop_length=window // 4, n_mels=count, power=1, norm="slaney", mel_scale="slaney"
        )
        a, b = (bands(x).clamp(min=1e-5).log10() for x in (made, real))
        wanted = wanted + (a - b).abs().mean()
    torch.testing.assert_close(MelLoss(16000, "dac", (256, 64), (40, 10))(made, real), wanted)
    assert len(MelLoss(16000, "dac").scales) == 7
    with pytest.raises(ValueError, match="each window of the mel loss"):
        MelLoss(16000, "dac", (256, 64), (40,))


@pytest.mark.sweep("tokenizers at work")
def test_a_sound_that_is_shorter_than_a_window_is_filled_up_with_silence(pair):
    """One of a single sample too: a short file amid others does not end a training."""
    for short in (1, 100):
        made, real = (x[:, :short] for x in pair)
        filled = [torch.nn.functional.pad(x, (0, 513 - short)) for x in (made, real)]
        torch.testing.assert_close(MelLoss(16000)(made, real), MelLoss(16000)(*filled))
        assert StftLoss()(made, real).isfinite() and MelLoss(16000, "dac")(made, real).isfinite()
        for form in ("dac", "encodec", "wavtokenizer"):
            assert all(part.isfinite() for part in WaveJudges(form, 2).measure(made, real))


def test_the_stft_loss_is_the_published_formula(pair):
    wanted = 0.0
    for size in (2048, 512):
        a, b = (torch.stft(x, size, size // 4, window=torch.hann_window(size), return_complex=True).abs() for x in pair)
        logs = [x.clamp(min=1e-5).square().log10() for x in (a, b)]
        wanted = wanted + (a - b).abs().mean() + (logs[0] - logs[1]).abs().mean()
    torch.testing.assert_close(StftLoss()(*pair), wanted)
    silence = torch.zeros(1, 3000, requires_grad=True)
    StftLoss()(silence, pair[1][:1]).backward()
    assert silence.grad.isfinite().all()


@pytest.mark.sweep
@pytest.mark.parametrize(("form", "count"), [("dac", 42519760), ("encodec", 283398), ("wavtokenizer", 41705968)])
def test_judges_have_the_size_of_their_authors(form, count):
    with torch.device("meta"):
        judges = WaveJudges(form)
    assert sum(p.numel() for p in judges.parameters()) == count


def test_judges_see_what_their_authors_show_them(pair):
    x = pair[1]
    period = PeriodJudge(7, 4, whole=True)
    folded = torch.cat([x, x.flip(1)[:, 1 : 1 + 7 - 3000 % 7]], dim=1).unflatten(1, (-1, 7))[:, None]
    first = period.layers[0]
    torch.testing.assert_close(period(x)[0], leaky_relu(conv2d(folded, first.weight, first.bias, (3, 1), (2, 0)), 0.1))
    assert PeriodJudge(5, 4, whole=True)(x)[0].shape[2] == math.ceil(601 / 3)  # a sound of whole periods is longer
    assert PeriodJudge(5, 4)(x)[0].shape[2] == 200
    band = BandJudge(512, 4)
    spectrum = band.transform(x)
    assert spectrum.shape == (2, 2, math.ceil(3000 / 128), 257)  # frames as a convolution of stride 128 has them
    assert [high - low for low, high in band.edges] == [25, 39, 64, 64, 65]
    assert len(band(x)) == 5 * 5 + 1
    maps = SpectrumJudge(512, 4)(x)
    assert [h.shape[-1] for h in maps] == [257, 129, 65, 33, 33, 33] and maps[-1].shape[1] == 1


@pytest.mark.sweep("tokenizers at work")
def test_codec_losses_are_the_published_formulas(pair):
    """Each from the judges' maps, as its authors wrote it."""
    made, real = pair
    torch.manual_seed(0)
    for form in ("dac", "encodec", "wavtokenizer"):
        judges = WaveJudges(form, 2)
        judging, generating, matching = judges.measure(made, real)
        found = zip(judges(made), judges(real), strict=True)
        groups = [list(zip(a, b, strict=True)) for a, b in found]
        wanted = [0.0, 0.0, 0.0]
        for group in groups:
            for number, (a, b) in enumerate(group):
                if form == "dac":
                    wanted[0] += (a[-1] ** 2).mean() + ((1 - b[-1]) ** 2).mean()
                    wanted[1] += ((1 - a[-1]) ** 2).mean()
                    wanted[2] += sum((x - y).abs().mean() for x, y in zip(a[:-1], b[:-1], strict=True))
                    continue
                wanted[0] += ((1 - b[-1]).clamp(min=0).mean() + (1 + a[-1]).clamp(min=0).mean()) / len(group)
                wanted[1] += (1 - a[-1]).clamp(min=0).mean() / len(group)
                if form == "encodec":
                    parts = [((x - y).abs().mean() / y.abs().mean()) for x, y in zip(a[:-1], b[:-1], strict=True)]
                    wanted[2] += sum(parts) / len(parts) / len(group)
                else:  # of periods without the first layer
                    start = 1 if len(group) == 5 else 0
                    parts = [(x - y).abs().mean() for x, y in zip(a[start:], b[start:], strict=True)]
                    wanted[2] += sum(parts) / len(group)
                assert number < 5
        for ours, theirs in zip((judging, generating, matching), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.sweep("tokenizers at work")
def test_codec_and_judges_learn_in_one_pass_what_they_would_in_two(pair):
    torch.manual_seed(0)
    made, real = pair[0][:, None].clone().requires_grad_(), pair[1][:, None]
    for forms in (["dac"], ["wavtokenizer", "encodec"]):
        loss = WaveAdversarialLoss(forms, 2, matching=3.0)
        total, numbers = loss(made, made, real, made.new_zeros(()), 0.5)
        trained = list(loss.judges.parameters())
        together = torch.autograd.grad(total, [made, *trained])
        shown = made.detach().requires_grad_()
        parts = [judges.measure(shown[:, 0], real[:, 0]) for judges in loss.judges]
        (of_sound,) = torch.autograd.grad(0.5 * sum(p[1] + 3 * p[2] for p in parts), shown)
        parts = [judges.measure(made.detach()[:, 0], real[:, 0]) for judges in loss.judges]
        of_judges = torch.autograd.grad(sum(p[0] for p in parts), trained)
        for one, other in zip(together, (of_sound, *of_judges), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        added = 0.5 * (numbers["generator"] + 3 * numbers["matching"]) + numbers["judge"]
        assert math.isclose(float(total.detach()), added, rel_tol=1e-4)


def test_a_bag_of_sounds_has_them_by_settings_and_looks_at_nothing_behind_a_sound():
    torch.manual_seed(0)
    real = torch.rand(2, 1, 3000) - 0.5
    decoded = (real * 0.5).requires_grad_()
    made = SimpleNamespace(decoded=decoded, loss=torch.zeros(()), numbers={}, features={})
    settings = {
        "l2": 0, "mel": {"form": "dac", "windows": [64], "bands": [8], "weight": 15}, "stft": 1,
        "adversarial": {"judge": "dac+encodec", "width": 2, "weight": 1},
    }  # fmt: skip
    bag = LossBag(LossSettings.model_validate(settings), "audio", sample_rate_hz=16000)
    loss, numbers = bag(made, real, 0, lengths=torch.tensor([2000, 3000]))
    loss.backward()
    assert {"mel", "stft", "generator", "matching", "judge"} <= numbers.keys()
    assert decoded.grad[0, :, 2000:].abs().sum() == 0 and decoded.grad[1].abs().sum() > 0
    for wrong, message in (
        ({"adversarial": {"judge": "dac", "kind": "hinge"}}, "losses of their own; leave kind out"),
        ({"adversarial": {"judge": "waves", "matching": 1.0}}, "matches no features"),
    ):
        with pytest.raises(ValueError, match=message):
            LossBag(LossSettings.model_validate(wrong), "audio", sample_rate_hz=16000)
    for wrong in ({"mel": 1}, {"stft": 1}, {"adversarial": {"judge": "dac"}}):
        with pytest.raises(ValueError, match="image"):
            LossBag(LossSettings.model_validate(wrong), "image")
