"""What a codec around Whisper's encoder has of its own: content, prosody and voice of a sound as a few scalars, and the
way back to log-mel frames. All is masked at the true end of each item, which so gives the same in any batch.

Shapes: B batch, M mel bands, F frames, N codes, P prosody codes, W width of what a trunk hears for a code, D width,
K scalars.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from unimodal.tokenizers.nano.audio_head import MaskedConvNeXt

EXPANSION = 3


class ScalarHead(nn.Module):
    """[..., D] → [..., K] of about unit spread, so that all levels of the scalars are used from the start."""

    def __init__(self, width: int, num_scalars: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, num_scalars)
        nn.init.normal_(self.out.weight, std=width**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x))


class BandNetwork(nn.Module):
    """Log-mel [B, M, F] → [B, D, F]."""

    def __init__(self, num_mels: int, width: int, num_blocks: int):
        super().__init__()
        self.stem = nn.Conv1d(num_mels, width, 5, padding=2)
        self.blocks = nn.ModuleList(MaskedConvNeXt(width, EXPANSION) for _ in range(num_blocks))

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, F], 1 where a frame is real."""
        h = self.stem(log_mel * mask) * mask
        for block in self.blocks:
            h = block(h, mask)
        return h


class ContentEncoder(nn.Module):
    """What a trunk hears [B, N, W] and log-mel frames [B, M, F] → what is quantized of each code, [B, N, K].

    joined: how many codes are of `frames` frames together.
    """

    def __init__(
        self, heard_width: int, num_mels: int, width: int, num_blocks: int, joined: int, frames: int, num_scalars: int
    ):
        super().__init__()
        self.joined, self.frames = joined, frames
        self.listen = nn.Linear(heard_width, width)
        self.stem = nn.Conv1d(num_mels, width // 2, 5, padding=2)
        self.merge = nn.Linear(frames * (width // 2), joined * width)
        self.blocks = nn.ModuleList(MaskedConvNeXt(width, EXPANSION) for _ in range(num_blocks))
        self.head = ScalarHead(width, num_scalars)

    def forward(self, heard: Tensor, log_mel: Tensor, mask: Tensor) -> Tensor:
        """mask: bool [B, N]; an item has a multiple of `joined` codes."""
        real = mask.unsqueeze(1).float()
        frame_mask = real[..., :: self.joined].repeat_interleave(self.frames, -1)
        bands = relu(self.stem(log_mel * frame_mask)).transpose(1, 2).unflatten(1, (-1, self.frames)).flatten(2)
        near = self.merge(bands).unflatten(2, (self.joined, -1)).flatten(1, 2)
        h = (self.listen(heard) + near).transpose(1, 2) * real
        for block in self.blocks:
            h = block(h, real)
        return self.head(h.transpose(1, 2))


class VoiceEncoder(nn.Module):
    """Log-mel [B, M, F] → what is quantized of the whole item, [B, codes, K]: mean and deviation over its frames."""

    def __init__(self, num_mels: int, width: int, num_codes: int, num_scalars: int):
        super().__init__()
        self.num_codes = num_codes
        self.bands = BandNetwork(num_mels, width, 2)
        self.join = nn.Linear(2 * width, width)
        self.head = ScalarHead(width, num_codes * num_scalars)

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        h, count = self.bands(log_mel, mask), mask.sum(-1)
        mean = h.sum(-1) / count
        spread = (((h - mean.unsqueeze(-1)) * mask).square().sum(-1) / count + 1e-5).sqrt()
        return self.head(gelu(self.join(torch.cat([mean, spread], -1)))).unflatten(-1, (self.num_codes, -1))


class ProsodyEncoder(nn.Module):
    """Log-mel [B, M, F] → what is quantized, [B, P, K], of frames_per_code frames each."""

    def __init__(self, num_mels: int, width: int, frames_per_code: int, num_scalars: int):
        super().__init__()
        self.frames_per_code = frames_per_code
        self.bands = BandNetwork(num_mels, width, 2)
        self.merge = nn.Conv1d(width, width, frames_per_code, stride=frames_per_code)
        self.block = MaskedConvNeXt(width, EXPANSION)
        self.head = ScalarHead(width, num_scalars)

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, F]; an item has whole codes."""
        coarse = mask[..., :: self.frames_per_code]
        h = self.block(self.merge(self.bands(log_mel, mask)) * coarse, coarse)
        return self.head(h.transpose(1, 2))


class MelDecoder(nn.Module):
    """Scalars of the content and of the prosody for each code, and of the voice → log-mel frames.

    joined: how many codes become `frames` frames together.
    """

    def __init__(
        self,
        scalars: tuple[int, int, int],
        width: int,
        frame_width: int,
        dilations: tuple[int, ...],
        num_frame_blocks: int,
        joined: int,
        frames: int,
        num_mels: int,
    ):
        """scalars: of the content of a code, of its prosody, of the voice."""
        super().__init__()
        self.joined, self.frames = joined, frames
        self.enter = nn.Linear(scalars[0] + scalars[1], width)
        self.voice = nn.Sequential(nn.Linear(scalars[2], width), nn.GELU(), nn.Linear(width, width + frame_width))
        self.code_blocks = nn.ModuleList(MaskedConvNeXt(width, EXPANSION, dilation=size) for size in dilations)
        self.split = nn.Linear(joined * width, frames * frame_width)
        self.frame_blocks = nn.ModuleList(MaskedConvNeXt(frame_width, EXPANSION) for _ in range(num_frame_blocks))
        self.norm, self.out = nn.LayerNorm(frame_width), nn.Linear(frame_width, num_mels)

    def forward(self, content: Tensor, prosody: Tensor, voice: Tensor, mask: Tensor) -> Tensor:
        """content: [B, N, K], prosody: [B, N, K'], voice: [B, K''], mask: bool [B, N], N a multiple of `joined` →
        [B, M, F]."""
        real = mask.unsqueeze(1).float()
        wide = self.voice(voice).unsqueeze(-1)
        coarse, fine = wide.split([self.enter.out_features, self.norm.normalized_shape[0]], 1)
        h = (self.enter(torch.cat([content, prosody], -1)).transpose(1, 2) + coarse) * real
        for block in self.code_blocks:
            h = block(h, real)
        groups = h.transpose(1, 2).unflatten(1, (-1, self.joined)).flatten(2)
        frame_mask = real[..., :: self.joined].repeat_interleave(self.frames, -1)
        h = (self.split(groups).unflatten(-1, (self.frames, -1)).flatten(1, 2).transpose(1, 2) + fine) * frame_mask
        for block in self.frame_blocks:
            h = block(h, frame_mask)
        return self.out(self.norm(h.transpose(1, 2))).transpose(1, 2)
