"""How far two sounds are apart in what a frozen speech encoder hears: a feature loss of speech (Germain et al., arXiv
1806.10522; Hsieh et al., arXiv 2010.15174), which asks for what tells words apart where spectra ask for all alike.

Every layer of the encoder counts as much, and so does every channel of a layer: its difference is taken relative to the
deviation of that channel over the real sounds of the batch, since a few channels of a transformer are a hundred times
as large as the others.

Shapes: B batch, T samples, N steps, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unimodal.tokenizers.parts.speech_encoders import SpeechEncoder
from unimodal.tokenizers.rows import group_by_size

EPS = 1e-4


class HeardLoss(nn.Module):
    """sample_rate_hz: of the sounds, which are resampled where the encoder has another. lead_s: of silence in front of
    both, which a Whisper is used to."""

    def __init__(self, encoder: SpeechEncoder, sample_rate_hz: int, lead_s: float = 0.2):
        super().__init__()
        self.encoder, self.sample_rate_hz = encoder, sample_rate_hz
        self.lead = round(lead_s * encoder.sample_rate_hz)

    def hear(self, sounds: Tensor) -> list[Tensor]:
        """Sounds of one length, [B, T] → what each layer gives, [B, N, D]."""
        sounds = sounds.float()
        if self.sample_rate_hz != self.encoder.sample_rate_hz:
            from torchaudio.functional import resample

            sounds = resample(sounds, self.sample_rate_hz, self.encoder.sample_rate_hz)
        more = max(0, self.encoder.fewest_samples - sounds.shape[-1] - self.lead)
        return self.encoder.list_hidden(pad(sounds, (self.lead, more)))[1:]

    def forward(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
        """made, real: [B, T], lengths: int64 [B] → scalar with a gradient to `made`."""
        given = [real.shape[-1]] * len(real) if lengths is None else lengths.tolist()
        apart: list[list[Tensor]] = []  # of each group of one length, by layer: [b · N, D]
        wanted: list[list[Tensor]] = []
        with torch.autocast(made.device.type, enabled=False):
            for length, items in group_by_size(given).items():
                with torch.no_grad():
                    there = self.hear(real[items, :length])
                here = self.hear(made[items, :length])
                apart.append([(a - b).abs().flatten(0, 1) for a, b in zip(here, there, strict=True)])
                wanted.append([b.flatten(0, 1) for b in there])
            errors = []
            for ours, theirs in zip(zip(*apart, strict=True), zip(*wanted, strict=True), strict=True):
                spread = torch.cat(theirs).std(0, correction=0).clamp_min(EPS)
                errors.append((torch.cat(ours) / spread).mean())
        return torch.stack(errors).mean()
