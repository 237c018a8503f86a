"""Losses for waveform heads: spectra at several resolutions, and a light discriminator on the same spectra.

The multi-resolution STFT loss is Parallel WaveGAN's (arXiv 1910.11480), the mel term HiFi-GAN's (arXiv 2010.05646), the
discriminator a small form of UnivNet's multi-resolution one (arXiv 2106.07889) with the hinge losses of arXiv
2210.13438.

Shapes: B batch, T samples, K frequency bins, F frames, M mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # window and hop in samples


def magnitudes(x: Tensor, window_size: int, hop: int) -> Tensor:
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
            a, b = magnitudes(made, window_size, hop), magnitudes(real, window_size, hop)
            energy = b.square().sum((1, 2)).clamp_min(1e-4).sqrt()
            convergence = (((a - b).square().sum((1, 2)) + 1e-8).sqrt() / energy).mean()
            stft = stft + convergence + (a.clamp_min(1e-4).log() - b.clamp_min(1e-4).log()).abs().mean()
            if window_size >= 512:
                bank = getattr(self, f"bank_{window_size}")
                mel = mel + ((bank @ a).clamp_min(1e-5).log() - (bank @ b).clamp_min(1e-5).log()).abs().mean()
        stft, mel = stft / len(RESOLUTIONS), mel / 2
        return stft + self.mel_weight * mel, {"stft": float(stft.detach()), "mel": float(mel.detach())}


class SpectrumDiscriminator(nn.Module):
    """One small 2-D convolutional judge a resolution, on compressed magnitudes; returns all its layers."""

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
            self.judges.append(nn.ModuleList(nn.utils.parametrizations.weight_norm(layer) for layer in layers))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for (window_size, hop), judge in zip(RESOLUTIONS, self.judges, strict=True):
            h = magnitudes(x, window_size, hop).pow(0.3).unsqueeze(1)  # [B, 1, K, F]
            seen = []
            assert isinstance(judge, nn.ModuleList)
            for index, layer in enumerate(judge):
                h = layer(h)
                if index + 1 < len(judge):
                    h = nn.functional.leaky_relu(h, 0.1)
                seen.append(h)
            outputs.append(seen)
        return outputs


def adversarial_losses(
    discriminator: SpectrumDiscriminator, made: Tensor, real: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """→ (loss of the generator with feature matching, loss of the discriminator, numbers to log).

    Both may be added into one backward pass: the generator's loss sees the discriminator's weights as constants, the
    discriminator's sees the made signal as a constant.
    """
    weights = {name: value.detach() for name, value in discriminator.named_parameters()}
    judged_made = torch.func.functional_call(discriminator, weights, (made,))
    with torch.no_grad():
        judged_real = discriminator(real)
    generator = made.new_zeros(())
    for made_layers, real_layers in zip(judged_made, judged_real, strict=True):
        generator = generator + (1 - made_layers[-1]).clamp_min(0).mean()
        for a, b in zip(made_layers[:-1], real_layers[:-1], strict=True):
            generator = generator + (a - b).abs().mean() / b.abs().mean().clamp_min(1e-3)
    loss = made.new_zeros(())
    for fake, true in zip(discriminator(made.detach()), discriminator(real), strict=True):
        loss = loss + (1 - true[-1]).clamp_min(0).mean() + (1 + fake[-1]).clamp_min(0).mean()
    generator, loss = generator / len(judged_made), loss / len(judged_made)
    return generator, loss, {"generator": float(generator.detach()), "discriminator": float(loss.detach())}
