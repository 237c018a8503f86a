"""Sounds ⇄ 100 codes a second of 625 values: a tokenizer of somebody else, written only from CONTRIBUTING.md."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unimodal.tokenizers import Codes, CodingOptions, MediaTokenizer, TokenizerConfig, register
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer


class SoundConfig(TokenizerConfig):
    family: Literal["my_sounds"] = "my_sounds"
    sample_rate_hz: int = 4000
    samples_per_code: int = 40
    levels: tuple[int, ...] = (5, 5, 5, 5)
    width: int = 32


class SoundTokenizer(MediaTokenizer):
    """Sounds by frames of 10 ms, each a code of 625 values."""

    modality: ClassVar[str] = "audio"
    config_class: ClassVar[type[TokenizerConfig]] = SoundConfig
    config: SoundConfig

    def __init__(self, config: SoundConfig):
        super().__init__(config)
        frame, width = config.samples_per_code, config.width
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.encoder = nn.Sequential(nn.Linear(frame, width), nn.GELU(), nn.Linear(width, len(config.levels)))
        self.decoder = nn.Sequential(nn.Linear(len(config.levels), width), nn.GELU(), nn.Linear(width, frame))
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.segments = (("audio", None),)
        self.sample_rate_hz = config.sample_rate_hz
        self.tokens_per_second = config.sample_rate_hz / frame
        self.code_levels = {"audio": config.levels}

    def make_frames(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, 1, T] → frames [B, N, S], silent past each end, and which of them are real, bool [B, N]."""
        if x.dim() != 3 or x.shape[1] != 1:
            raise ValueError(f"my_sounds takes sounds [B, 1, T]; got {tuple(x.shape)}")
        frame, ends = self.config.samples_per_code, torch.full((len(x), 1), x.shape[2]) if lengths is None else lengths
        ends = ends.view(-1, 1)
        x = torch.where(torch.arange(x.shape[2]) < ends, x[:, 0], torch.zeros(()))
        frames = nn.functional.pad(x, (0, -x.shape[1] % frame)).unflatten(1, (-1, frame))
        return frames, torch.arange(frames.shape[1]) * frame < ends

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        frames, real = self.make_frames(x, lengths)
        _, ids = self.quantizer.quantize(self.encoder(frames))
        return Codes(torch.where(real, ids, 0)[..., None], real, order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        frames = self.decoder(self.quantizer.to_values(codes.ids[..., 0])) * codes.mask[..., None]
        return frames.flatten(1)[:, None].clamp(-1, 1)

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        frames, real = self.make_frames(x, lengths)
        values, ids = self.quantizer.quantize(self.encoder(frames))
        loss = (self.decoder(values) - frames)[real].square().mean()
        return loss, {"used": float(len(ids[real].unique()))}


register(SoundTokenizer)
