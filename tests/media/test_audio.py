import io
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.campaigns import examples
from unimodal.media.audio import _resample_by_sinc, load_audio, resample, save_audio

SAMPLES_16 = hnp.arrays(np.int16, st.integers(1, 300))
quick = examples(15)


def encode(samples: np.ndarray, rate_hz: int, format_name: str = "WAV", subtype: str | None = None) -> bytes:
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate_hz, format=format_name, subtype=subtype)
    return memory.getvalue()


def sine(frequency_hz: float, rate_hz: int, duration_s: float = 1.0) -> torch.Tensor:
    return (
        0.5
        * torch.sin(torch.arange(round(rate_hz * duration_s)).double() * 2 * math.pi * frequency_hz / rate_hz).float()
    )


def peak_frequency_hz(samples: torch.Tensor, rate_hz: int) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples)), n=1 << 18).abs()
    return spectrum.argmax().item() * rate_hz / (1 << 18)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@given(values=SAMPLES_16)
@quick
def test_wav_and_flac_keep_every_16_bit_value(suffix, values, tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / f"a{suffix}"
    samples = torch.from_numpy(values.astype(np.float32) / 32768)
    save_audio(samples, path, 16000)
    assert torch.equal(load_audio(path), samples)
    assert torch.equal(load_audio(path.read_bytes()), samples)


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_ogg_and_mp3_are_close(suffix, tmp_path):
    samples = sine(440, 16000)
    save_audio(samples, tmp_path / f"a{suffix}", 16000)
    loaded = load_audio(tmp_path / f"a{suffix}")
    assert loaded.shape == samples.shape
    assert (loaded - samples)[1000:-1000].abs().mean() < 0.02


@pytest.mark.parametrize(
    "format_name,subtype", [("OGG", "OPUS"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("RF64", "PCM_16")]
)
def test_other_codings_are_read(format_name, subtype):
    samples = sine(300, 16000).numpy()
    loaded = load_audio(encode(samples, 16000, format_name, subtype))
    assert len(loaded) == 16000 and abs(peak_frequency_hz(loaded, 16000) - 300) < 1


def test_eight_bit_wav_is_centred():
    """8-bit WAV is unsigned: its silence is 128, its step is 1/128."""
    samples = np.array([0.0, 0.5, -0.5, -1.0, 127 / 128], np.float32)
    loaded = load_audio(encode(samples, 16000, "WAV", "PCM_U8"))
    assert np.abs(loaded.numpy() - samples).max() <= 1 / 128
    assert load_audio(encode(np.zeros(100), 16000, "WAV", "PCM_U8")).abs().max() <= 1 / 128


@given(values=hnp.arrays(np.int16, st.tuples(st.integers(1, 50), st.sampled_from([1, 2, 9, 12]))))
@quick
def test_one_two_and_very_many_channels_are_averaged(values):
    loaded = load_audio(encode(values, 16000))
    assert np.abs(loaded.numpy() - values.astype(np.float64).mean(axis=1) / 32768).max() < 1e-6


@pytest.mark.parametrize("format_name", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("num_channels", range(3, 9))
def test_more_channels_are_mixed_down_as_the_standard_says(num_channels, format_name):
    """ITU-R BS.775: left = L + 0.707 C + 0.707 Ls, right alike; one channel is their mean, at most at full level."""
    orders = {3: "L R C", 4: "L R Ls Rs", 5: "L R C Ls Rs", 6: "L R C LFE Ls Rs", 7: "L R C LFE B Ls Rs"}
    names = orders.get(num_channels, "L R C LFE Ls Rs Ls Rs").split()
    values = np.random.default_rng(num_channels).uniform(-0.4, 0.4, (2000, num_channels)).astype(np.float32)
    left, right = np.zeros(2000), np.zeros(2000)
    for name, channel in zip(names, values.T, strict=True):
        left += channel * {"L": 1, "C": 0.5**0.5, "Ls": 0.5**0.5, "B": 0.5}.get(name, 0)
        right += channel * {"R": 1, "C": 0.5**0.5, "Rs": 0.5**0.5, "B": 0.5}.get(name, 0)
    expected = (left + right) / 2
    loaded = load_audio(encode(values, 16000, format_name)).numpy()
    assert np.abs(loaded - expected / max(1, np.abs(expected).max())).max() < 1e-4


def test_speech_in_the_centre_of_5_1_stays_loud():
    speech = sine(300, 16000).numpy()  # up to 0.5
    silence = np.zeros_like(speech)
    loaded = load_audio(encode(np.stack([silence, silence, speech, silence, silence, silence], axis=1), 16000))
    assert 20 * np.log10(float(loaded.abs().max()) / 0.5) == pytest.approx(-3.0, abs=0.1)


def test_opposite_channels_cancel_and_long_sounds_are_read_whole():
    one = np.random.default_rng(0).integers(-9000, 9000, 600_000).astype(np.int16)  # several blocks
    assert load_audio(encode(np.stack([one, -one], axis=1), 16000)).abs().max() == 0
    assert np.array_equal(load_audio(encode(one, 16000)).numpy(), one / np.float32(32768))


@pytest.mark.parametrize("from_hz", [8000, 11025, 22050, 24000, 44100, 48000, 96000, 44101])
def test_resampling_keeps_pitch_level_and_length(from_hz):
    loaded = load_audio(encode(sine(440, from_hz).numpy(), from_hz, subtype="FLOAT"))
    assert len(loaded) == 16000
    assert abs(peak_frequency_hz(loaded, 16000) - 440) < 0.2
    assert (loaded - sine(440, 16000))[200:-200].abs().max() < 5e-3  # the same wave, not delayed


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert resample(sine(11000, 48000), 48000, 16000)[100:-100].abs().max() < 0.02


@given(st.integers(1, 400), st.sampled_from([8000, 11025, 16000, 22050, 44100, 44101, 31999]), st.integers(1000, 50000))
@quick
def test_resampled_length(length, from_hz, to_hz):
    assert resample(torch.ones(length), from_hz, to_hz).shape == (-(-length * to_hz // from_hz),)


@pytest.mark.parametrize("from_hz,to_hz", [(44100, 16000), (16000, 44100), (8000, 16000), (48000, 16000)])
def test_the_filter_for_unrelated_rates_is_torchaudios(from_hz, to_hz):
    samples = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    assert (_resample_by_sinc(samples, from_hz, to_hz) - resample(samples, from_hz, to_hz)).abs().max() < 1e-4


def test_silence_is_valid(tmp_path):
    save_audio(torch.zeros(16000), tmp_path / "a.wav", 16000)
    assert torch.equal(load_audio(tmp_path / "a.wav"), torch.zeros(16000))
    assert load_audio(encode(np.zeros(44100), 44100)).abs().max() == 0


def test_a_float_file_that_overshoots_is_clipped_and_one_of_integers_is_refused():
    assert load_audio(encode(np.array([1.5, -2.0, 0.25]), 16000, subtype="FLOAT")).tolist() == [1, -1, 0.25]
    with pytest.raises(ValueError, match="samples up to 20,000, not within -1 to 1"):
        load_audio(encode(np.array([20000.0, 0.0]), 16000, subtype="FLOAT"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_refused(bad, tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(np.array([0.0, bad, 0.0]), 16000, subtype="FLOAT"))
    with pytest.raises(ValueError, match="a.wav holds samples that are not numbers"):
        load_audio(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="not numbers"):
        save_audio(torch.tensor([0.0, bad]), tmp_path / "b.wav", 16000)
    assert not (tmp_path / "b.wav").exists()


def test_no_samples_is_refused():
    with pytest.raises(ValueError, match="holds no samples"):
        load_audio(encode(np.zeros(0), 16000))


@pytest.mark.parametrize(
    "tensor,name,rate_hz,message",
    [
        (torch.zeros(4), "a.aac", 16000, "cannot save a sound as '.aac'"),
        (torch.zeros(1, 4), "a.wav", 16000, r"expected a float sound \[T\]"),
        (torch.zeros(0), "a.wav", 16000, r"expected a float sound \[T\]"),
        (torch.zeros(4), "a.wav", 0, "sample_rate_hz=0"),
        (torch.zeros(4), "a.mp3", 12345, "cannot hold 12,345 samples a second"),
    ],
)
def test_what_cannot_be_saved_says_so_and_leaves_nothing(tensor, name, rate_hz, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_audio(tensor, tmp_path / name, rate_hz)
    assert list(tmp_path.iterdir()) == []
