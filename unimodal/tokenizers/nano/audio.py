"""The audio tokenizer of ``nano``: 16 kHz sound ⇄ 31.25 codes a second of a 4096-value codebook.

log-mel frames → ConvNeXt encoder, two frames a code → finite scalar quantization (arXiv 2309.15505) → ConvNeXt
decoder → log-mel frames → waveform head (``audio_head.py``). While it is trained, a small reader spells the
transcript from the quantized codes with a CTC loss, as the supervised speech tokens of CosyVoice 2 (arXiv 2412.10117)
do, so that codes say what was said and a small language model learns to read and to speak from few examples.

Every layer is local in time and masked at the true end of each clip: a padded clip gives the codes of the clip alone.

Shapes: B batch, T samples, M mel bands, F frames (T / hop), N codes (F / 2), C width, K quantized dimensions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.nano.audio_head import GriffinLimHead, IstftHead, MaskedConvNeXt
from unimodal.tokenizers.nano.audio_mel import LogMel
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.stored import TokenizerConfig

FRAMES_PER_CODE = 2


class AudioTokenizerConfig(TokenizerConfig):
    family: Literal["mel_fsq"] = "mel_fsq"
    sample_rate_hz: int = 16_000
    window_size: int = Field(1024, ge=2)
    hop: int = Field(256, ge=1)
    num_mels: int = 80
    mel_floor: float = 1e-3
    mel_mean: float = -5.0
    mel_deviation: float = 2.5
    levels: tuple[int, ...] = (8, 8, 8, 8)
    width: int = 192
    expansion: int = 3
    encoder_frame_blocks: int = 1  # at the frame rate, before two frames become one code
    encoder_code_blocks: int = 3
    decoder_code_dilations: tuple[int, ...] = (1, 2, 4, 1)  # wide: the voice is spread over many codes
    decoder_frame_blocks: int = 2
    head: Literal["griffin_lim", "istft"] = "griffin_lim"
    head_width: int = 256
    head_blocks: int = 5
    head_expansion: int = 3


class AudioEncoder(nn.Module):
    """Log-mel [B, M, F] → what is quantized [B, N, K]."""

    def __init__(self, config: AudioTokenizerConfig, num_dims: int):
        super().__init__()
        width, expansion = config.width, config.expansion
        self.stem = nn.Conv1d(config.num_mels, width, 3, padding=1)
        self.frame_blocks = nn.ModuleList(MaskedConvNeXt(width, expansion) for _ in range(config.encoder_frame_blocks))
        self.merge = nn.Conv1d(width, width, FRAMES_PER_CODE, stride=FRAMES_PER_CODE)
        self.code_blocks = nn.ModuleList(MaskedConvNeXt(width, expansion) for _ in range(config.encoder_code_blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_dims)

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, N], 1 where a code is real."""
        frame_mask = mask.repeat_interleave(FRAMES_PER_CODE, dim=-1)
        h = self.stem(log_mel * frame_mask) * frame_mask
        for block in self.frame_blocks:
            h = block(h, frame_mask)
        h = self.merge(h) * mask
        for block in self.code_blocks:
            h = block(h, mask)
        return self.out(self.norm(h.transpose(1, 2)))


class AudioDecoder(nn.Module):
    """Quantized values [B, N, K] → log-mel [B, M, F]."""

    def __init__(self, config: AudioTokenizerConfig, num_dims: int):
        super().__init__()
        width, expansion = config.width, config.expansion
        self.stem = nn.Linear(num_dims, width)
        self.code_blocks = nn.ModuleList(
            MaskedConvNeXt(width, expansion, dilation=d) for d in config.decoder_code_dilations
        )
        self.split = nn.Linear(width, FRAMES_PER_CODE * width)
        self.frame_blocks = nn.ModuleList(MaskedConvNeXt(width, expansion) for _ in range(config.decoder_frame_blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.num_mels)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, N], 1 where a code is real."""
        frame_mask = mask.repeat_interleave(FRAMES_PER_CODE, dim=-1)
        h = self.stem(values).transpose(1, 2) * mask
        for block in self.code_blocks:
            h = block(h, mask)
        h = (
            self.split(h.transpose(1, 2)).unflatten(-1, (FRAMES_PER_CODE, -1)).flatten(1, 2).transpose(1, 2)
            * frame_mask
        )
        for block in self.frame_blocks:
            h = block(h, frame_mask)
        return self.out(self.norm(h.transpose(1, 2))).transpose(1, 2)


class AudioTokenizer(MediaTokenizer):
    """nano's speech at 16 kHz: 31.25 codes a second of a 4,096-value codebook.

    ``encode``: float [B, 1, T] in [-1, 1] → Codes [B, ceil(T / 512), 1].
    """

    modality: ClassVar[str] = "audio"
    config_class: ClassVar[type[TokenizerConfig]] = AudioTokenizerConfig
    config: AudioTokenizerConfig

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.segments = (("audio", None),)
        self.block_sizes = {"audio": self.quantizer.codebook_size}
        self.samples_per_code = FRAMES_PER_CODE * config.hop
        self.sample_rate_hz = config.sample_rate_hz
        self.tokens_per_second = config.sample_rate_hz / self.samples_per_code
        self.code_levels = {"audio": self.quantizer.levels}
        self.mel = LogMel(
            config.sample_rate_hz,
            config.window_size,
            config.hop,
            config.num_mels,
            config.mel_floor,
            config.mel_mean,
            config.mel_deviation,
        )
        self.encoder = AudioEncoder(config, self.quantizer.num_dims)
        self.decoder = AudioDecoder(config, self.quantizer.num_dims)
        self.head: GriffinLimHead | IstftHead
        if config.head == "griffin_lim":
            self.head = GriffinLimHead(self.mel)
        else:
            self.head = IstftHead(
                config.num_mels,
                config.head_width,
                config.head_blocks,
                config.head_expansion,
                config.window_size,
                config.hop,
            )

    # -- pieces used in training ------------------------------------------------------------------------------------
    def frames(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: [B, T], lengths: int64 [B] or None → (log-mel [B, M, 2·N], mask float [B, 1, N]), silent past each end."""
        num_samples = x.shape[1]
        num_codes = -(-num_samples // self.samples_per_code)
        x = nn.functional.pad(x, (0, num_codes * self.samples_per_code - num_samples))
        if lengths is None:
            lengths = torch.full((len(x),), num_samples, device=x.device)
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        mask = torch.arange(num_codes, device=x.device) * self.samples_per_code < lengths[:, None]
        with torch.autocast(x.device.type, enabled=False):  # small energies do not survive half precision
            return self.mel(torch.where(real, x, torch.zeros_like(x)).float()), mask[:, None].to(x.dtype)

    def quantize(self, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """→ (values [B, N, K] with straight-through gradient, ids int64 [B, N])."""
        return self.quantizer.quantize(self.encoder(log_mel, mask))

    # -- the contract -----------------------------------------------------------------------------------------------
    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """What the quantizer turns codes into, [size, K]."""
        return self.quantizer.make_table() if block == "audio" and group == 0 else None

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        if x.dim() != 3 or x.shape[1] != 1 or x.shape[2] == 0:
            raise ValueError(f"the audio tokenizer takes [B, 1, T] with T ≥ 1; got {tuple(x.shape)}")
        log_mel, mask = self.frames(x[:, 0].float(), lengths)
        _, ids = self.quantize(log_mel, mask)
        real = mask[:, 0] > 0
        return Codes(torch.where(real, ids, torch.zeros_like(ids)).unsqueeze(-1), real, order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        ids = codes.ids[..., 0]
        mask = codes.mask[:, None].to(self.decoder.out.weight.dtype)
        log_mel = self.decoder(self.quantizer.to_values(ids), mask)
        wave = self.head(log_mel, mask.repeat_interleave(FRAMES_PER_CODE, dim=-1))
        real = codes.mask.repeat_interleave(self.samples_per_code, dim=1)
        return torch.where(real, wave.clamp(-1, 1), torch.zeros_like(wave)).unsqueeze(1)
