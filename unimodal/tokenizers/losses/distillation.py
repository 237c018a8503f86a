"""Codes of sounds taught by what a frozen speech encoder hears and what a language model makes of the words.

By dimension (SpeechTokenizer, arXiv 2308.16692): the cosine over time of each dimension, -log σ(cos), a mean. By time:
the absolute error, and -log σ of the cosine over dimensions at each step. With two teachers their mean counts
(DM-Codec, arXiv 2410.15017). Cosines are over an item's real steps. The authors' code cuts student and teacher to the
shorter; a teacher at another rate is interpolated here.

DM-Codec pads a text's tokens to as many as there are codes, so that words stand at the beginning whenever they are
said; here they are spread evenly over the sound, and `spread=False` pads.

Shapes: B batch, N codes, D width of their vectors, M steps of a teacher, K its width, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, l1_loss, logsigmoid, pad

from unimodal.tokenizers.parts.speech_encoders import SpeechEncoder

#: steps by which student and teacher may differ without being of another rate
SLACK = 2


def distill_by_dimension(features: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """features, teacher: [B, N, K]; mask: bool [B, N] → scalar."""
    real = mask.unsqueeze(-1)
    return -logsigmoid(cosine_similarity(features * real, teacher * real, dim=1)).mean()


def distill_by_time(features: Tensor, teacher: Tensor, mask: Tensor, similarity: float = 1.0) -> Tensor:
    """features, teacher: [B, N, K]; mask: bool [B, N]; similarity: what the cosine counts beside the error → scalar."""
    ours, theirs = features[mask], teacher[mask]
    return l1_loss(ours, theirs) - similarity * logsigmoid(cosine_similarity(ours, theirs, dim=-1)).mean()


def match_steps(rows: Sequence[Tensor], counts: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """A teacher's features of each item, [m, K], at the steps of its codes: [B, length, K] and bool [B, length]. A step
    or two more or less are cut off; of another rate, they are interpolated."""
    made = []
    for row, count in zip(rows, counts, strict=True):
        if abs(len(row) - count) > SLACK:
            row = interpolate(row.T[None], count, mode="linear", align_corners=False)[0].T
        made.append(row[:count])
    kept = torch.tensor([len(row) for row in made], device=made[0].device)
    padded = torch.stack([pad(row, (0, 0, 0, length - len(row))) for row in made])
    return padded, torch.arange(length, device=padded.device) < kept.unsqueeze(1)


class TextTeacher:
    """A frozen text model of transformers. layer: as of `SpeechEncoder`; None for the mean of all."""

    def __init__(self, folder: str | Path, layer: int | None = None, spread: bool = True):
        """Raises ValueError for a folder without a text model, and for one that cannot pad where it must."""
        from transformers import AutoModel, AutoTokenizer

        try:
            network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self.text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no text model ({str(error).splitlines()[0]})") from None
        if not spread and self.text.pad_token is None:
            raise ValueError(f"the text tokenizer in {folder} has no padding; set distillation.spread: true")
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.width, self.layer, self.spread = int(network.config.hidden_size), layer, spread

    @torch.no_grad()
    def read(self, texts: Sequence[str], counts: Sequence[int], device: torch.device) -> list[Tensor]:
        """Features of each text at so many steps, [n, K]."""
        self.network.to(device)
        rows = []
        for text, count in zip(texts, counts, strict=True):
            filled = {} if self.spread else {"padding": "max_length", "truncation": True, "max_length": count}
            read = self.text(text, return_tensors="pt", **filled).to(device)
            hidden = self.network(**read, output_hidden_states=True).hidden_states
            row = (torch.stack(hidden).mean(0) if self.layer is None else hidden[self.layer])[0]
            if self.spread:
                row = row[torch.arange(count, device=device) * len(row) // count]
            rows.append(row)
        return rows


class DistillationLoss(nn.Module):
    """width: of the features that are taught; where a teacher's is another, a linear layer is learned between. axis:
    "dimension" or "time". layer: of the speech encoder."""

    def __init__(
        self,
        width: int,
        speech: SpeechEncoder | None,
        text: TextTeacher | None,
        axis: str = "dimension",
        layer: int | None = None,
        similarity: float = 1.0,
        sample_rate_hz: int = 16000,
    ):
        super().__init__()
        if speech is None and text is None:
            raise ValueError("distillation needs a teacher: set its network, its language_model, or both")
        self.speech, self.text, self.axis, self.layer = speech, text, axis, layer
        self.similarity, self.sample_rate_hz = similarity, sample_rate_hz
        widths = {name: teacher.width for name, teacher in (("speech", speech), ("text", text)) if teacher is not None}
        self.projections = nn.ModuleDict(
            {name: nn.Identity() if of == width else nn.Linear(width, of) for name, of in widths.items()}
        )

    def forward(
        self, values: Tensor, mask: Tensor, sounds: Tensor, lengths: Tensor | None, texts: Sequence[str] | None
    ) -> Tensor:
        """values: [B, N, D], mask: bool [B, N], sounds: [B, 1, T] with lengths int64 [B] → scalar. ValueError for texts
        that lack."""
        counts, losses = mask.sum(1).tolist(), []
        for name, projection in self.projections.items():
            if name == "speech":
                rows = self._hear(sounds, lengths)
            else:
                assert self.text is not None
                if texts is None or not all(texts):
                    raise ValueError("a language model teaches by what is said: give every item its text")
                rows = self.text.read(texts, counts, values.device)
            teacher, kept = match_steps(rows, counts, mask.shape[1])
            ours = projection(values)
            if self.axis == "time":
                losses.append(distill_by_time(ours, teacher, kept, self.similarity))
            else:
                losses.append(distill_by_dimension(ours, teacher, kept))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _hear(self, sounds: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """The speech encoder's features of each item, at its own rate."""
        assert self.speech is not None
        if self.sample_rate_hz != self.speech.sample_rate_hz:
            from torchaudio.functional import resample

            old, new = self.sample_rate_hz, self.speech.sample_rate_hz
            lengths = None if lengths is None else (lengths * new / old).long().clamp(min=1)
            sounds = resample(sounds, old, new)
        features, mask = self.speech(sounds, lengths, self.layer)
        return [row[kept] for row, kept in zip(features, mask, strict=True)]
