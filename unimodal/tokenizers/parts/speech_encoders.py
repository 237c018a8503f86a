"""Frozen encoders of speech, whose features a tokenizer quantizes or is taught by.

Sounds of one length are encoded together, each as long as it is: Whisper's 30 s of padding are left out. So an item has
the same features alone and beside a longer one.

Shapes: B batch, b items of one length, T samples, N steps, D width, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unimodal.tokenizers.parts.mel import WhisperMel
from unimodal.tokenizers.parts.trunks.whisper import WhisperEncoder, WhisperSizes
from unimodal.tokenizers.rows import group_by_size


class SpeechEncoder(nn.Module, ABC):
    """An encoder that is never trained; gradients reach the sounds through it, and it stays in eval mode."""

    sample_rate_hz: int = 16000
    width: int  # D
    num_layers: int  # L
    #: a shorter sound is filled up with silence
    fewest_samples: int = 1

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @abstractmethod
    def list_hidden(self, x: Tensor) -> list[Tensor]:
        """Sounds of one length, float32 [b, T] → what goes into the layers and what each of them gives: L + 1 of
        [b, N, D]."""

    def forward(self, x: Tensor, lengths: Tensor | None = None, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """x: float [B, 1, T]. lengths: int64 [B]. layer: behind which layer to listen, from 0, before all of them, to L
        (negative ones count from the end); None for the mean of all → features [B, N, D] and mask bool [B, N].

        Raises ValueError for a layer that is not there.
        """
        if layer is not None and not -self.num_layers - 1 <= layer <= self.num_layers:
            raise ValueError(f"layer is {layer}; this encoder has {self.num_layers}")
        given = [x.shape[-1]] * len(x) if lengths is None else lengths.tolist()
        rows: dict[int, Tensor] = {}
        for length, items in group_by_size(given).items():
            sounds = x[items, 0, :length].float()
            hidden = self.list_hidden(pad(sounds, (0, max(0, self.fewest_samples - length))))
            rows.update(zip(items, torch.stack(hidden).mean(0) if layer is None else hidden[layer], strict=True))
        counts = torch.tensor([len(rows[item]) for item in range(len(x))], device=x.device)
        padded = [pad(rows[item], (0, 0, 0, int(counts.max()) - len(rows[item]))) for item in range(len(x))]
        return torch.stack(padded), torch.arange(int(counts.max()), device=x.device) < counts.unsqueeze(1)


class WhisperSpeech(SpeechEncoder):
    """Whisper's encoder (arXiv 2212.04356), 50 steps a second; more than its positions allow (30 s) is refused."""

    def __init__(self, sizes: WhisperSizes):
        super().__init__()
        self.mel, self.encoder = WhisperMel(sizes.num_mels), WhisperEncoder(sizes)
        self.width, self.num_layers = sizes.width, sizes.num_layers
        self.requires_grad_(False)
        self.eval()

    def count_steps(self, num_samples: int) -> int:
        """N of so many samples."""
        return self.encoder.count_steps(self.mel.count_frames(num_samples))

    def list_hidden(self, x: Tensor) -> list[Tensor]:
        return list(self.encoder.list_hidden(self.mel(x)))


class HubSpeech(SpeechEncoder):
    """HuBERT (arXiv 2106.07447), wav2vec 2.0, WavLM or Wav2Vec2-BERT (arXiv 2312.05187) of transformers.

    network: the model. extractor: of a network that reads bands in place of samples, transformers' feature extractor.
    normalize: scale each sound to mean 0 and variance 1, of networks that read samples.
    """

    def __init__(self, network: nn.Module, extractor: nn.Module | object | None, normalize: bool, fewest_samples: int):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.extractor, self.normalize, self.fewest_samples = extractor, normalize, fewest_samples
        config = network.config
        self.width, self.num_layers = int(config.hidden_size), int(config.num_hidden_layers)

    def list_hidden(self, x: Tensor) -> list[Tensor]:
        if self.extractor is not None:
            assert callable(self.extractor)
            read = self.extractor(
                list(x.detach().cpu().numpy()), sampling_rate=self.sample_rate_hz, return_tensors="pt"
            )
            bands = read["input_features"].to(x.device)
            return list(self.network(input_features=bands, output_hidden_states=True).hidden_states)
        if self.normalize:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-7).sqrt()
        return list(self.network(input_values=x, output_hidden_states=True).hidden_states)
