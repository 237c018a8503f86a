"""Losses for waveform heads: spectra at several resolutions, and light discriminators on spectra and on periods.

The multi-resolution STFT loss is Parallel WaveGAN's (arXiv 1910.11480), the mel term HiFi-GAN's (arXiv 2010.05646). The
discriminators are small forms of UnivNet's multi-resolution one (arXiv 2106.07889) and of HiFi-GAN's multi-period one,
with the hinge losses and the feature matching of arXiv 2210.13438.

Shapes: B batch, T samples, K frequency bins, F frames, M mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # window and hop in samples


def compute_magnitudes(x: Tensor, window_size: int, hop: int) -> Tensor:
    """x: [B, T] → [B, K, F], bounded away from 0 so that its root has a gradient."""
    window = torch.hann_window(window_size, device=x.device)
    spectrum = torch.stft(x, window_size, hop, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-8).sqrt()


class SpectralLoss(nn.Module):
    """Spectral convergence and log-magnitude error at three resolutions, and log-mel error at two."""

    def __init__(self, sample_rate_hz: int, mel_weight: float = 2.0):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.mel_weight = mel_weight
        for window_size, num_mels in ((512, 64), (1024, 100)):
            bank = melscale_fbanks(
                window_size // 2 + 1,
                0.0,
                sample_rate_hz / 2,
                num_mels,
                sample_rate_hz,
                norm="slaney",
                mel_scale="slaney",
            )
            self.register_buffer(f"bank_{window_size}", bank.T.contiguous(), persistent=False)  # [M, K]

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, dict[str, float]]:
        """made, real: [B, T] → (loss, numbers to log)."""
        with torch.autocast(made.device.type, enabled=False):
            return self._forward(made.float(), real.float())

    def _forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, dict[str, float]]:
        stft = mel = made.new_zeros(())
        for window_size, hop in RESOLUTIONS:
            a, b = compute_magnitudes(made, window_size, hop), compute_magnitudes(real, window_size, hop)
            energy = b.square().sum((1, 2)).clamp_min(1e-4).sqrt()
            convergence = (((a - b).square().sum((1, 2)) + 1e-8).sqrt() / energy).mean()
            stft = stft + convergence + (a.clamp_min(1e-4).log() - b.clamp_min(1e-4).log()).abs().mean()
            if window_size >= 512:
                bank = getattr(self, f"bank_{window_size}")
                mel = mel + ((bank @ a).clamp_min(1e-5).log() - (bank @ b).clamp_min(1e-5).log()).abs().mean()
        stft, mel = stft / len(RESOLUTIONS), mel / 2
        return stft + self.mel_weight * mel, {"stft": float(stft.detach()), "mel": float(mel.detach())}


PERIODS = (2, 3, 5, 7, 11)  # samples


def run_layers(layers: nn.ModuleList, h: Tensor) -> list[Tensor]:
    """The output of every layer, a leaky ReLU after all but the last."""
    seen = []
    for index, layer in enumerate(layers):
        h = layer(h)
        if index + 1 < len(layers):
            h = nn.functional.leaky_relu(h, 0.1)
        seen.append(h)
    return seen


def add_weight_norm(layers: list[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(nn.utils.parametrizations.weight_norm(layer) for layer in layers)


class SpectrumDiscriminator(nn.Module):
    """One small 2-D convolutional judge a resolution, on compressed magnitudes: [B, T] → all layers of each judge."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.judges = nn.ModuleList()
        for _ in RESOLUTIONS:
            layers: list[nn.Module] = [nn.Conv2d(1, channels, (7, 5), stride=(2, 1), padding=(3, 2))]
            layers += [nn.Conv2d(channels, channels, (5, 3), stride=(2, 2), padding=(2, 1)) for _ in range(2)]
            layers += [
                nn.Conv2d(channels, 2 * channels, (5, 3), stride=(2, 1), padding=(2, 1)),
                nn.Conv2d(2 * channels, 1, 3, padding=1),
            ]
            self.judges.append(add_weight_norm(layers))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for (window_size, hop), judge in zip(RESOLUTIONS, self.judges, strict=True):
            assert isinstance(judge, nn.ModuleList)
            outputs.append(
                run_layers(judge, compute_magnitudes(x, window_size, hop).pow(0.3).unsqueeze(1))
            )  # [B, 1, K, F]
        return outputs


class PeriodDiscriminator(nn.Module):
    """One small judge a period, on the samples folded by it, which shows voicing: [B, T] → all layers of each judge."""

    def __init__(self, channels: int = 8):
        super().__init__()
        widths = (1, channels, 2 * channels, 4 * channels)
        self.judges = nn.ModuleList()
        for _ in PERIODS:
            layers: list[nn.Module] = [
                nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0))
                for a, b in zip(widths[:-1], widths[1:], strict=True)
            ]
            layers += [nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0))]
            layers += [nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))]
            self.judges.append(add_weight_norm(layers))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for period, judge in zip(PERIODS, self.judges, strict=True):
            assert isinstance(judge, nn.ModuleList)
            folded = x[:, : x.shape[1] // period * period].unflatten(1, (-1, period)).unsqueeze(1)  # [B, 1, T/p, p]
            outputs.append(run_layers(judge, folded))
        return outputs


class WaveDiscriminator(nn.Module):
    """Both kinds of judges: [B, T] → all layers of each."""

    def __init__(self, spectrum_channels: int = 16, period_channels: int = 8):
        super().__init__()
        self.spectrum = SpectrumDiscriminator(spectrum_channels)
        self.period = PeriodDiscriminator(period_channels)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        return [*self.spectrum(x), *self.period(x)]


def compute_adversarial_losses(
    discriminator: nn.Module, made: Tensor, real: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """made, real: [B, T] → (loss of the generator with feature matching, loss of the discriminator, numbers to log).

    Both may be added into one backward pass: the generator's loss has no gradient for the discriminator's weights, the
    discriminator's none for the made signal. The made signal is judged once for both, so the gradient of the
    generator's loss is taken here and handed on as a term that is linear in ``made``.
    """
    shown = made.detach().requires_grad_()
    judged_made, judged_real = discriminator(shown), discriminator(real)
    generator = discriminating = made.new_zeros(())
    for made_layers, real_layers in zip(judged_made, judged_real, strict=True):
        generator = generator + (1 - made_layers[-1]).clamp_min(0).mean()
        for a, b in zip(made_layers[:-1], real_layers[:-1], strict=True):
            b = b.detach()
            generator = generator + (a - b).abs().mean() / b.abs().mean().clamp_min(1e-3)
        discriminating = discriminating + (1 - real_layers[-1]).clamp_min(0).mean()
        discriminating = discriminating + (1 + made_layers[-1]).clamp_min(0).mean()
    generator, discriminating = generator / len(judged_made), discriminating / len(judged_made)
    numbers = {"generator": float(generator.detach()), "discriminator": float(discriminating.detach())}
    (slope,) = torch.autograd.grad(generator, shown, retain_graph=True)
    linear = (slope * made).sum()
    return generator.detach() + linear - linear.detach(), discriminating, numbers
