"""The condensed tokens of clips (TokensGen, arXiv 2507.15728): queries read a short clip and become a few continuous
tokens; a long film is the tokens of its clips, one clip behind the other.

The networks are TiTok's on the frames of a clip, one below the other. The authors draw a clip of its tokens by a video
diffusion model; here pixels are predicted.

Shapes: B batch, M clips, F frames of a clip, N tokens of a clip, T width of a token, H and W height and width.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.pixels import PatchHead
from unimodal.tokenizers.parts.query_networks import QueryDecoder, QueryEncoder, TransformerSize
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents


class ClipTokensConfig(SystemConfig):
    """frames_per_clip: F. num_tokens: N. num_frames: of the films that files are read as; other numbers of whole clips
    are coded too. kl_weight: of the divergence from a standard normal, in training."""

    family: str = "clip_tokens"
    image_size: int = Field(default=256, ge=1)
    patch_size: int = Field(default=16, ge=1)
    fps: float = Field(default=8.0, gt=0)
    num_frames: int = Field(default=16, ge=1)
    frames_per_clip: int = Field(default=8, ge=1)
    num_tokens: int = Field(default=32, ge=1)
    token_width: int = Field(default=16, ge=1)
    encoder: TransformerSize
    decoder: TransformerSize
    kl_weight: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for frames that patches do not fill, films that clips do not fill, heads that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not whole patches of patch_size {self.patch_size}")
        if self.num_frames % self.frames_per_clip:
            raise ValueError(f"num_frames {self.num_frames} is not whole clips of {self.frames_per_clip} frames")
        for name, size in (("encoder", self.encoder), ("decoder", self.decoder)):
            if size.width % size.num_heads:
                raise ValueError(f"{name}: {size.num_heads} heads do not divide a width of {size.width}")
        return self


class ClipTokensLatents(SystemLatents):
    """Films ⇄ N tokens a clip. ``encode``: float [B, 3, M·F, H, W] in [0, 1] → Latents [B, M·N, T]."""

    modality: ClassVar[str] = "video"
    takes_lengths = False
    config_class: ClassVar[type[ClipTokensConfig]] = ClipTokensConfig
    config: ClipTokensConfig

    def __init__(self, config: ClipTokensConfig):
        super().__init__(config)
        rows, columns = config.grid
        stacked = (config.frames_per_clip * rows, columns)
        self.encoder = QueryEncoder(
            config.encoder, config.patch_size, stacked, config.num_tokens, 2 * config.token_width
        )
        self.decoder = QueryDecoder(config.decoder, stacked, config.num_tokens, config.token_width)
        self.head = PatchHead(config.decoder.width, config.patch_size)
        self.width = config.token_width
        self.tokens_per_item = config.num_tokens * (config.num_frames // config.frames_per_clip)
        self.picture_size = (config.image_size, config.image_size)
        self.num_frames, self.frames_per_second = config.num_frames, config.fps

    def encode_clips(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: float [B, 3, M·F, H, W] → mean and log-variance (in [-30, 20]) of each token, float [B, M·N, T] each. No
        clip knows of another. ValueError for another size."""
        size, frames = self.config.image_size, self.config.frames_per_clip
        if x.dim() != 5 or x.shape[1] != 3 or tuple(x.shape[3:]) != (size, size) or x.shape[2] % frames:
            raise ValueError(
                f"clip_tokens takes [B, 3, whole clips of {frames} frames, {size}, {size}] in [0, 1]; got "
                f"{tuple(x.shape)}"
            )
        clips = x.transpose(1, 2).unflatten(1, (-1, frames)).flatten(0, 1)  # [B·M, F, 3, H, W]
        tokens = self.encoder(clips.transpose(1, 2).flatten(2, 3))
        mean, log_variance = tokens.unflatten(0, (len(x), -1)).flatten(1, 2).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-30, 20)

    def decode_clips(self, tokens: Tensor) -> Tensor:
        """tokens: float [B, M·N, T] → films [B, 3, M·F, H, W], not clamped."""
        clips = tokens.unflatten(1, (-1, self.config.num_tokens)).flatten(0, 1)
        patches = self.decoder(clips).unflatten(1, (self.config.frames_per_clip, -1)).flatten(0, 1)
        return self.head(patches, self.config.grid).unflatten(0, (len(tokens), -1)).transpose(1, 2)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        mean, log_variance = self.encode_clips(x)
        tokens = mean
        if self.training:
            tokens = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
        numbers = {"divergence": float(divergence.detach())}
        loss = self.config.kl_weight * divergence
        return Reconstruction(self.decode_clips(tokens), loss, None, numbers, {"tokens": tokens})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        mean = self.encode_clips(x)[0]
        return Latents(mean, torch.ones(mean.shape[:2], dtype=torch.bool, device=mean.device), order="time")

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        """Films of different lengths are decoded to the longest; what lies behind a shorter one is 0."""
        num = self.config.num_tokens
        if any(count % num for count in coded.counts) or coded.values.shape[2] != self.width:
            raise ValueError(
                f"a clip is {num} tokens of width {self.width}; got {coded.counts} of width {coded.values.shape[2]}"
            )
        longest = max(coded.counts)
        made = self.decode_clips(coded.values[:, :longest]).clamp(0, 1)
        real = coded.mask[:, :longest:num].repeat_interleave(self.config.frames_per_clip, 1)
        return made * real[:, None, :, None, None]
