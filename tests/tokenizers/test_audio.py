"""The audio tokenizer: lengths, padding, every code, and what its transforms invert."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.nano.audio import AudioTokenizer, AudioTokenizerConfig
from unimodal.tokenizers.nano.audio_losses import SpectralLoss, WaveDiscriminator, compute_adversarial_losses
from unimodal.tokenizers.nano.audio_mel import LogMel, Spectrum, griffin_lim

SMALL = {
    "width": 24,
    "expansion": 2,
    "encoder_code_blocks": 1,
    "decoder_code_dilations": (1, 2),
    "decoder_frame_blocks": 1,
}
SMALL_HEAD = {"head_width": 32, "head_blocks": 1, "head_expansion": 2}


def make(head: str = "istft") -> AudioTokenizer:
    torch.manual_seed(0)
    return AudioTokenizer(AudioTokenizerConfig(head=head, **SMALL, **SMALL_HEAD)).eval()


def speechlike(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Harmonics under a moving envelope, with noise: [T]."""
    generator = torch.Generator().manual_seed(seed)
    time_s = torch.arange(num_samples) / 16_000
    pitch_hz = 120 + 40 * torch.sin(2 * math.pi * 0.7 * time_s + seed)
    phase = 2 * math.pi * torch.cumsum(pitch_hz, 0) / 16_000
    voiced = sum(torch.sin(k * phase) / k for k in range(1, 20)) * (0.5 + 0.5 * torch.sin(2 * math.pi * 3 * time_s))
    return 0.2 * voiced + 0.01 * torch.randn(num_samples, generator=generator)


@pytest.fixture(scope="session")
def tokenizer() -> AudioTokenizer:
    return make()


def test_rate_is_the_published_one(tokenizer: AudioTokenizer) -> None:
    assert tokenizer.tokens_per_second == 31.25
    assert tokenizer.codebook_sizes == (4096,)
    assert tokenizer.segments == (("audio", None),)
    assert AudioTokenizer(AudioTokenizerConfig(head="istft")).tokens_per_second == 31.25


def test_the_default_has_at_most_six_million_parameters() -> None:
    tokenizer = AudioTokenizer(AudioTokenizerConfig(head="istft"))
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) <= 6_000_000


@pytest.mark.parametrize("num_samples", [1, 2, 511, 512, 513, 16_000])
def test_number_of_codes_is_samples_over_512_rounded_up(tokenizer: AudioTokenizer, num_samples: int) -> None:
    codes = tokenizer.encode(speechlike(num_samples)[None, None])
    assert codes.ids.shape == (1, -(-num_samples // 512), 1)
    assert bool(codes.mask.all()) and codes.order == "time"
    assert tokenizer.decode(codes).shape == (1, 1, 512 * codes.ids.shape[1])


@examples(15)
@given(short=st.integers(1, 9000), garbage=st.floats(-1, 1), seed=st.integers(0, 5))
def test_padding_changes_no_code(tokenizer: AudioTokenizer, short: int, garbage: float, seed: int) -> None:
    """A clip beside a longer one, whatever lies in the padding, gives exactly the codes of the clip alone."""
    clip, neighbour = speechlike(short, seed), speechlike(10_000, seed + 1)
    batch = torch.full((2, 1, 10_000), garbage)
    batch[0, 0, :short], batch[1, 0] = clip, neighbour
    together = tokenizer.encode(batch, torch.tensor([short, 10_000]))
    alone = tokenizer.encode(clip[None, None])
    assert torch.equal(together.row(0), alone.row(0))
    assert torch.equal(together.row(1), tokenizer.encode(neighbour[None, None]).row(0))
    assert int(together.ids[0][~together.mask[0]].abs().sum()) == 0


@pytest.mark.parametrize("head", ["istft", "griffin_lim"])
def test_padding_changes_no_sound(head: str) -> None:
    tokenizer = make(head)
    rows = [torch.randint(4096, (count,), generator=torch.Generator().manual_seed(count)) for count in (9, 30)]
    together = tokenizer.decode(Codes.from_rows(rows, order="time"))
    alone = tokenizer.decode(Codes.from_rows(rows[:1], order="time"))
    assert together.shape == (2, 1, 30 * 512)
    assert torch.allclose(together[0, 0, : 9 * 512], alone[0, 0], atol=2e-3)
    assert float(together[0, 0, 9 * 512 :].abs().max()) == 0.0
    assert float(alone.abs().max()) > 0


def test_every_code_has_its_own_values_and_comes_back(tokenizer: AudioTokenizer) -> None:
    ids = torch.arange(4096)
    values = tokenizer.quantizer.to_values(ids)
    assert torch.equal(tokenizer.quantizer.to_ids(values), ids)
    assert len(torch.unique(values, dim=0)) == 4096


def test_codes_depend_on_near_samples_only(tokenizer: AudioTokenizer) -> None:
    """A change in the sound cannot move a code farther away than the encoder's reach: it can be streamed."""
    a = speechlike(40_000)
    b = a.clone()
    b[20_000:] += 0.3 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    first, second = tokenizer.encode(a[None, None]).row(0), tokenizer.encode(b[None, None]).row(0)
    # in frames: window 2, stem 1, block 3; in codes: block 3
    reach_samples = 512 + 256 * (1 + 3) + 512 * (3 + 1)
    safe = (20_000 - reach_samples) // 512
    assert torch.equal(first[:safe], second[:safe])
    assert not torch.equal(first, second)


def test_saved_half_precision_weights_give_the_same_codes(tokenizer: AudioTokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "first")
    first = AudioTokenizer.load(tmp_path / "first")
    first.save(tmp_path / "second")
    second = AudioTokenizer.load(tmp_path / "second")
    x = speechlike(12_000)[None, None]
    codes = first.encode(x)
    assert torch.equal(codes.ids, second.encode(x).ids)
    assert torch.equal(first.decode(codes), second.decode(codes))
    assert tokenizer.sha256 == first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("x", "lengths"),
    [
        (torch.zeros(1, 2, 100), None),
        (torch.zeros(1, 100), None),
        (torch.zeros(1, 1, 0), None),
        (torch.zeros(2, 1, 100), torch.tensor([100])),
        (torch.zeros(1, 1, 100), torch.tensor([101])),
        (torch.zeros(1, 1, 100), torch.tensor([0])),
    ],
)
def test_wrong_input_is_one_clear_line(
    tokenizer: AudioTokenizer, x: torch.Tensor, lengths: torch.Tensor | None
) -> None:
    with pytest.raises(ValueError) as caught:
        tokenizer.encode(x, lengths)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[4096], [-1], []])
def test_codes_out_of_range_are_refused(tokenizer: AudioTokenizer, ids: list[int]) -> None:
    with pytest.raises(ValueError):
        tokenizer.decode(Codes.from_rows([torch.tensor(ids, dtype=torch.int64)]))


def test_silence_has_codes_and_no_nan(tokenizer: AudioTokenizer) -> None:
    codes = tokenizer.encode(torch.zeros(1, 1, 5000))
    assert bool(torch.isfinite(tokenizer.decode(codes)).all())
    assert bool(torch.isfinite(make("griffin_lim").decode(codes)).all())


@pytest.mark.parametrize(("window_size", "hop"), [(1024, 256), (512, 128), (64, 32)])
def test_inverse_transform_is_exact(window_size: int, hop: int) -> None:
    spectrum = Spectrum(window_size, hop)
    x = torch.randn(3, hop * 20, generator=torch.Generator().manual_seed(0))
    transformed = spectrum.stft(x)
    assert transformed.shape == (3, window_size // 2 + 1, 20)
    assert torch.allclose(spectrum.istft(transformed), x, atol=1e-5)


def test_mel_bands_find_a_tone() -> None:
    mel = LogMel(16_000, 1024, 256, 80, 1e-5, 0.0, 1.0)
    x = torch.sin(2 * math.pi * 1000 * torch.arange(256 * 40) / 16_000)
    band = int(mel(x[None])[0, :, 20].argmax())
    centre_hz = float((mel.bands[band] * torch.linspace(0, 8000, 513)).sum() / mel.bands[band].sum())
    assert abs(centre_hz - 1000) < 60


def test_griffin_lim_matches_the_magnitudes_and_is_deterministic() -> None:
    spectrum = Spectrum(1024, 256)
    x = speechlike(256 * 40)[None]
    magnitude, mask = spectrum.stft(x).abs(), torch.ones(1, 1, 40)
    made = griffin_lim(spectrum, magnitude, mask)
    error = (spectrum.stft(made).abs() - magnitude).norm() / magnitude.norm()
    start = griffin_lim(spectrum, magnitude, mask, iterations=0)
    assert error < 0.25 and error < 0.6 * (spectrum.stft(start).abs() - magnitude).norm() / magnitude.norm()
    assert torch.equal(made, griffin_lim(spectrum, magnitude, mask))


def test_magnitudes_from_mel_have_those_mel_bands() -> None:
    mel = LogMel(16_000, 1024, 256, 80, 1e-5, -5.0, 2.5)
    wanted = mel(speechlike(256 * 30)[None])
    magnitude = mel.magnitude(wanted)
    assert float(magnitude.min()) >= 0
    found = ((mel.bands @ magnitude).clamp_min(1e-5).log() + 5.0) / 2.5
    assert float((found - wanted).abs().mean()) < 0.05


def test_spectral_loss_is_zero_for_the_same_sound_and_orders_worse_ones() -> None:
    loss, x = SpectralLoss(16_000), speechlike(8192)[None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    same, near, far = (float(loss(x + level * noise, x)[0]) for level in (0.0, 0.003, 0.1))
    assert same < 1e-3 < near < far


def test_adversarial_gradients_reach_the_right_side_only_and_are_those_of_the_plain_losses() -> None:
    torch.manual_seed(0)
    judge = WaveDiscriminator(4, 4)
    made, real = (0.1 * torch.randn(2, 4096)).requires_grad_(), speechlike(4096).expand(2, -1)
    generator, discriminating, numbers = compute_adversarial_losses(judge, made, real)
    weights = list(judge.parameters())
    (2 * generator + discriminating).backward()

    def plain(shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fakes, trues = judge(shown), judge(real)
        hinge = sum((1 - layers[-1]).clamp_min(0).mean() for layers in fakes)
        pairs = [pair for a, b in zip(fakes, trues, strict=True) for pair in zip(a[:-1], b[:-1], strict=True)]
        matching = sum((a - b.detach()).abs().mean() / b.detach().abs().mean().clamp_min(1e-3) for a, b in pairs)
        judging = sum((1 - layers[-1]).clamp_min(0).mean() for layers in trues)
        judging = judging + sum((1 + layers[-1]).clamp_min(0).mean() for layers in fakes)
        return (hinge + matching) / len(fakes), judging / len(fakes)

    shown = made.detach().requires_grad_()
    (of_made,) = torch.autograd.grad(plain(shown)[0], shown)
    assert torch.allclose(made.grad, 2 * of_made, atol=1e-7) and float(of_made.abs().sum()) > 0
    of_weights = torch.autograd.grad(plain(made.detach())[1], weights)
    assert all(torch.allclose(w.grad, g, atol=1e-6) for w, g in zip(weights, of_weights, strict=True))
    assert numbers == {
        "generator": pytest.approx(float(plain(made.detach())[0].detach())),
        "discriminator": pytest.approx(float(plain(made.detach())[1].detach())),
    }


def test_matrices_in_8_bits_are_smaller_and_the_same_tokenizer_by_every_way(tmp_path) -> None:
    from unimodal.tokenizers import hash_stored, load_tokenizer

    torch.manual_seed(0)
    plain = make("istft")
    with torch.no_grad():
        plain.head.blocks[0].up.weight[0] = 0  # a row without a scale
    plain.save(tmp_path / "plain")
    plain.save(tmp_path / "small", in_8_bits=("head.blocks.",))
    small = load_tokenizer(tmp_path / "small")
    assert small.sha256 == hash_stored(tmp_path / "small") != hash_stored(tmp_path / "plain")
    small.save(tmp_path / "again")  # in half precision: the same values
    assert hash_stored(tmp_path / "again") == small.sha256
    before, after = plain.state_dict(), small.state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        packed = name.startswith("head.blocks.") and weight.dim() > 1 and weight[0].numel() >= 16
        rounding = (
            before[name].abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / 254
            if packed
            else torch.zeros(())
        )
        assert bool(((weight - before[name]).abs() <= rounding + before[name].abs() * 2**-10 + 1e-6).all()), name
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "small")}
    assert sizes["small"] < sizes["plain"]
    with pytest.raises(ValueError, match="do not fit its config"):
        config = tmp_path / "small" / "config.json"
        config.write_text(config.read_text().replace("istft", "griffin_lim"))
        load_tokenizer(tmp_path / "small")
