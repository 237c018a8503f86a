"""Small tokenizers, one for each ability of the contract that none of the package's own families needs yet.

They really code: what they encode comes back, up to the steps of their scalar quantizers.

Shapes: B batch, N positions, T samples, F frames, P patches of 4×4 pixels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.tokenizers import (
    Codes,
    CodingOptions,
    ConcatenatedStreams,
    InterleavedStreams,
    Latents,
    LatentTokenizer,
    MediaTokenizer,
    TokenizerConfig,
)

LEVELS = 64  # of one scalar in [-1, 1]


def to_ids(x: Tensor) -> Tensor:
    """Values in [-1, 1] → int64 in [0, LEVELS)."""
    return ((x.clamp(-1, 1) + 1) / 2 * (LEVELS - 1)).round().long()


def to_values(ids: Tensor) -> Tensor:
    return ids.float() / (LEVELS - 1) * 2 - 1


def to_patches(x: Tensor, side: int = 4) -> Tensor:
    """Pictures [B, 3, H, W] → the grey mean of each patch [B, P], in [-1, 1]."""
    return nn.functional.avg_pool2d(x.mean(1, keepdim=True) * 2 - 1, side).flatten(1)


def to_picture(values: Tensor, side: int, size: int) -> Tensor:
    """[B, side²] in [-1, 1] → grey pictures [B, 3, size, size]."""
    grey = (values.unflatten(1, (1, side, side)) + 1) / 2
    return nn.functional.interpolate(grey, size=(size, size)).expand(-1, 3, -1, -1)


def pad_frames(x: Tensor, lengths: Tensor | None, frame: int) -> tuple[Tensor, Tensor]:
    """Sounds [B, 1, T] → frames [B, F, frame], silent past each end, and their mask [B, F]."""
    real = torch.full((len(x),), x.shape[2]) if lengths is None else lengths
    x = torch.where(torch.arange(x.shape[2]) < real[:, None, None], x, torch.zeros_like(x))
    framed = nn.functional.pad(x[:, 0], (0, -x.shape[2] % frame)).unflatten(1, (-1, frame))
    return framed, torch.arange(framed.shape[1]) * frame < real[:, None]


class SmallTokenizer(MediaTokenizer):
    """With one weight, so that there is something to store and to hash."""

    codebook_sizes = (LEVELS,)

    def __init__(self, config: TokenizerConfig):
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(()))


# ---- a decoder that reads words


class CaptionedConfig(TokenizerConfig):
    family: str = "test_captioned"


class CaptionedTokenizer(SmallTokenizer):
    """The overall brightness is not in the codes: the decoder reads it in the caption, "dark" or "light"."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = CaptionedConfig
    segments = (("image", 16),)
    tokens_per_item = 16
    picture_size = (16, 16)
    decode_conditions = frozenset({"text"})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        patches = to_patches(x)
        return Codes.whole(to_ids(patches - patches.mean(1, keepdim=True)), (1, 4, 4))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        values = to_values(codes.ids[..., 0])
        if options.condition is not None:
            assert options.condition.text is not None
            shifts = [{"dark": -0.5, "light": 0.5}.get(word, 0.0) for word in options.condition.text]
            values = values + torch.tensor(shifts)[:, None]
        return to_picture(values.clamp(-1, 1), 4, 16)


# ---- a decoder that begins from noise


class FlowConfig(TokenizerConfig):
    family: str = "test_flow"
    frame: int = 8


class FlowTokenizer(SmallTokenizer):
    """Sound by a straight flow from noise to the codes' values; the published rule scales by the loudest of a batch."""

    modality: ClassVar[str] = "audio"
    config_class: ClassVar[type[TokenizerConfig]] = FlowConfig
    config: FlowConfig
    segments = (("audio", None),)
    sample_rate_hz = 1600
    decode_settings = frozenset({"noise", "steps", "guidance"})

    def __init__(self, config: FlowConfig):
        super().__init__(config)
        self.tokens_per_second = self.sample_rate_hz / config.frame

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return (num_positions * self.config.frame,)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        framed, mask = pad_frames(x, lengths, self.config.frame)
        return Codes(torch.where(mask, to_ids(framed.mean(-1)), 0)[..., None], mask, order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        assert options.noise is not None
        steps, guidance = options.steps or 4, 1.0 if options.guidance is None else options.guidance
        target = to_values(codes.ids[..., 0]).repeat_interleave(self.config.frame, dim=1)
        x = options.noise
        for step in range(steps):  # from σ = 1 to a rest of noise; the null condition is silence
            x = x + (guidance * target - x) / (steps + 1 - step)
        if options.published:
            x = x / x.abs().max().clamp_min(1e-6)
        real = codes.mask.repeat_interleave(self.config.frame, dim=1)
        return torch.where(real, x, torch.zeros_like(x))[:, None]


# ---- streams of rates of their own


class MultiRateConfig(TokenizerConfig):
    family: str = "test_multi_rate"


class MultiRateTokenizer(SmallTokenizer):
    """As SNAC: a code for a frame of 16 samples, two for the halves of what is left, four for the quarters of that."""

    modality: ClassVar[str] = "audio"
    config_class: ClassVar[type[TokenizerConfig]] = MultiRateConfig
    streams = InterleavedStreams((1, 2, 4))
    codebook_sizes = (LEVELS,) * 7
    segments = (("audio", None),)
    sample_rate_hz = 1600
    tokens_per_second = 100.0

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        framed, mask = pad_frames(x, lengths, 16)
        left, parts = framed.flatten(1), []
        for rate in self.streams.rates:
            ids = to_ids(left.unflatten(1, (-1, 16 // rate)).mean(-1))  # [B, F · rate]
            left = left - to_values(ids).repeat_interleave(16 // rate, dim=1)
            kept = mask.repeat_interleave(rate, dim=1)
            parts.append(Codes(torch.where(kept, ids, 0)[..., None], kept))
        return self.streams.join(parts)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        parts = zip(self.streams.split(codes), self.streams.rates, strict=True)
        wave = sum(to_values(part.ids[..., 0]).repeat_interleave(16 // rate, dim=1) for part, rate in parts)
        assert isinstance(wave, Tensor)
        return torch.where(codes.mask.repeat_interleave(16, dim=1), wave, torch.zeros_like(wave))[:, None]


class ScalesConfig(TokenizerConfig):
    family: str = "test_scales"


class ScalesTokenizer(SmallTokenizer):
    """As VAR: 1, 4 and 16 codes, each scale of what the coarser ones left; whole scales decode by themselves."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = ScalesConfig
    streams = ConcatenatedStreams(((1, 1, 1), (1, 2, 2), (1, 4, 4)))
    segments = (("image", 21),)
    tokens_per_item = 21
    picture_size = (16, 16)
    ordered = True

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        left, parts = to_patches(x).unflatten(1, (1, 4, 4)), []
        for grid in self.streams.grids:
            ids = to_ids(nn.functional.adaptive_avg_pool2d(left, grid[1:]))
            left = left - nn.functional.interpolate(to_values(ids), size=(4, 4))
            parts.append(Codes.whole(ids.flatten(1), grid))
        return self.streams.join(parts)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        scales = self.streams.split(codes)
        maps = [
            nn.functional.interpolate(to_values(part.ids[..., 0]).unflatten(1, (1, *grid[1:])), size=(4, 4))
            * part.mask.all(1)[:, None, None, None]
            for part, grid in zip(scales, self.streams.grids, strict=False)
        ]
        return to_picture(sum(maps, torch.zeros_like(maps[0])).flatten(1).clamp(-1, 1), 4, 16)


# ---- an encoder alone


class LabelsConfig(TokenizerConfig):
    family: str = "test_labels"

    @property
    def can_decode(self) -> bool:
        return False


class LabelsTokenizer(SmallTokenizer):
    """As BEATs: labels of a sound, 100 a second, that no decoder reads."""

    modality: ClassVar[str] = "audio"
    config_class: ClassVar[type[TokenizerConfig]] = LabelsConfig
    segments = (("audio", None),)
    sample_rate_hz = 1600
    tokens_per_second = 100.0

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        framed, mask = pad_frames(x, lengths, 16)
        return Codes(torch.where(mask, to_ids(framed.abs().mean(-1)), 0)[..., None], mask, order="time")


# ---- two frames in


class MotionConfig(TokenizerConfig):
    family: str = "test_motion"


class MotionTokenizer(SmallTokenizer):
    """As Moto: two frames → codes of what changed; the decoder is given the first frame and makes the second."""

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = MotionConfig
    segments = (("video", 16),)
    tokens_per_item = 16
    picture_size = (16, 16)
    num_frames = 2
    frames_per_second = 4.0
    decode_conditions = frozenset({"medium"})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(to_ids((to_patches(x[:, :, 1]) - to_patches(x[:, :, 0])) / 2), (1, 4, 4))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if options.condition is None or options.condition.medium is None:
            raise ValueError("motion is decoded from a frame; give the one before as the condition's medium")
        before = options.condition.medium
        change = nn.functional.interpolate(to_values(codes.ids[..., 0]).unflatten(1, (1, 4, 4)), size=(16, 16))
        return torch.stack([before, (before + change).clamp(0, 1)], dim=2)


# ---- continuous latents


class LatentConfig(TokenizerConfig):
    family: str = "test_latents"
    width: int = 8


class PatchLatents(LatentTokenizer):
    """As a VAE's mean: an orthonormal projection of 4×4 patches, and back."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = LatentConfig
    config: LatentConfig
    picture_size = (16, 16)
    tokens_per_item = 16

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.width = config.width
        basis, _ = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))
        self.basis = nn.Parameter(basis[: config.width].clone())

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        values = nn.functional.unfold(x * 2 - 1, 4, stride=4).transpose(1, 2) @ self.basis.T
        return Latents(values, torch.ones(values.shape[:2], dtype=torch.bool), (1, 4, 4))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        return (nn.functional.fold((coded.values @ self.basis).transpose(1, 2), (16, 16), 4, stride=4) + 1) / 2


CODES: dict[str, type[MediaTokenizer]] = {
    "captioned": CaptionedTokenizer,
    "flow": FlowTokenizer,
    "multi_rate": MultiRateTokenizer,
    "scales": ScalesTokenizer,
    "labels": LabelsTokenizer,
    "motion": MotionTokenizer,
}


def make(name: str) -> MediaTokenizer:
    """One of `CODES`, ready to encode."""
    kind = CODES[name]
    return kind(kind.config_class()).eval()
