"""A system small enough for every test: patches of a picture or of a clip's frames by VQ, with what losses need."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unimodal.tokenizers import Codes, CodingOptions, register
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer


class TinyConfig(SystemConfig):
    family: Literal["tiny_system"] = "tiny_system"
    patch: int = 8
    width: int = 16
    codebook_size: int = 32
    dims: int = 4


class TinySystem(SystemTokenizer):
    """Pictures of any size: a code for every patch."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = TinyConfig
    config: TinyConfig

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        patch, width = config.patch, config.width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, patch, stride=patch), nn.GELU(), nn.Conv2d(width, config.dims, 1)
        )
        self.quantizer = VectorQuantizer(config.codebook_size, config.dims)
        nn.init.normal_(self.quantizer.codebook)
        self.decoder = nn.Sequential(nn.Conv2d(config.dims, width, 1), nn.GELU())
        self.out = nn.ConvTranspose2d(width, 3, patch, stride=patch)
        self.codebook_sizes = (config.codebook_size,)
        self.segments = (("image", None),)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        if x.shape[-1] % self.config.patch or x.shape[-2] % self.config.patch:
            raise ValueError(f"tiny_system takes sides in steps of {self.config.patch}; got {tuple(x.shape)}")
        h = self.encoder(x * 2 - 1)
        made = self.quantizer(h.flatten(2).transpose(1, 2))
        return made.values, made.ids, made.loss, (h.shape[2], h.shape[3])

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        values, ids, loss, grid = self.quantize(x)
        h = self.decoder(values.transpose(1, 2).unflatten(2, grid))
        features = {"codes": values, "decoder": h.flatten(2).transpose(1, 2)}
        return Reconstruction(self.out(h) / 2 + 0.5, loss, ids, {}, features)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        _, ids, _, grid = self.quantize(x)
        return Codes.whole(ids, grid=(1, *grid))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        assert codes.grid is not None
        values = self.quantizer.look_up(codes.ids).transpose(1, 2).unflatten(2, codes.grid[1:])
        return (self.out(self.decoder(values)) / 2 + 0.5).clamp(0, 1)


class TinyClipsConfig(TinyConfig):
    family: Literal["tiny_clips"] = "tiny_clips"  # type: ignore[assignment]


class TinyClips(TinySystem):
    """Films of four frames, or of one: every frame as a picture of its own."""

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = TinyClipsConfig

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.frames_per_second, self.num_frames = 8.0, 4
        self.segments = (("video", None),)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        made = super().reconstruct(x.transpose(1, 2).flatten(0, 1))
        decoded = made.decoded.unflatten(0, (len(x), -1)).transpose(1, 2)
        return Reconstruction(decoded, made.loss, made.ids)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        codes = super().encode_batch(x.transpose(1, 2).flatten(0, 1), lengths, options)
        assert codes.grid is not None
        return Codes.whole(codes.ids.unflatten(0, (len(x), -1)).flatten(1, 2), (x.shape[2], *codes.grid[1:]))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        assert codes.grid is not None
        count, *grid = codes.grid
        frames = Codes.whole(codes.ids.unflatten(1, (count, -1)).flatten(0, 1), (1, *grid))
        return super().decode_batch(frames, options).unflatten(0, (len(codes), -1)).transpose(1, 2)


register(TinySystem)
register(TinyClips)
