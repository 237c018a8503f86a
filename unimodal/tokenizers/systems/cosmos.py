"""Cosmos-Tokenizer's four kinds: pictures and causal clips, to codes or to latents (NVIDIA, arXiv 2501.03575).

A Haar transform, a convolutional encoder, a 1×1 convolution to the code's dimensions, and the mirror of that; codes are
finite scalar quantized. Clips are causal: the codes of the first frame are those of that frame alone.

The authors run the released weights in bfloat16, which rounds latents, codes' vectors and the wavelet; here all is
float32, and the setting `wavelet` gives theirs.

Shapes: B batch, T frames, H/W height and width, D code dimensions, N positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.tokenizers.codes import Codes, Grid, Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks.haar import COEFFICIENT, CausalHaarPatcher, HaarPatcher
from unimodal.tokenizers.rows import decode_rows, find_picture_grid, group_by_size, pad_media
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents, SystemModule, SystemTokenizer
from unimodal.tokenizers.systems.cosmos_networks import (
    ClipLayers,
    CosmosDecoder,
    CosmosEncoder,
    CosmosSizes,
    Layers,
    PictureLayers,
)
from unimodal.tokenizers.systems.key_map import KeyMap

#: constants of the wavelets and of the quantizer, which some of the released archives carry
CONSTANTS = (r"(encoder|decoder)\.(un)?patcher(3d)?\..*", r"(quantizer|inv_quant)\..*")


class CosmosConfig(SystemConfig):
    """Sizes of the network, and of what is taken of a file."""

    image_size: int = Field(256, ge=8)
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32,)
    resolution: int = 1024
    patch: int = 4
    spatial_compression: int = 16
    temporal_compression: int = 1
    latent_channels: int = 256
    #: of the Haar filters; the authors run their weights in bfloat16, which rounds it to 0.70703125
    wavelet: float = COEFFICIENT

    @property
    def sizes(self) -> CosmosSizes:
        return CosmosSizes(
            self.channels, self.multipliers, self.num_blocks, self.attention_resolutions, self.resolution, self.patch,
            self.spatial_compression, max(self.temporal_compression, self.patch), self.latent_channels,
        )  # fmt: skip


class CosmosImageConfig(CosmosConfig):
    family: Literal["cosmos_image"] = "cosmos_image"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    num_groups: int = 32


class CosmosImageLatentsConfig(CosmosConfig):
    family: Literal["cosmos_image_latents"] = "cosmos_image_latents"
    latent_channels: int = 16
    width: int = 16
    num_groups: int = 32


class CosmosVideoConfig(CosmosConfig):
    family: Literal["cosmos_video"] = "cosmos_video"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    latent_channels: int = 16
    spatial_compression: int = 8
    temporal_compression: int = 8
    num_frames: int = Field(17, ge=1)
    fps: float = Field(8.0, gt=0)


class CosmosVideoLatentsConfig(CosmosConfig):
    family: Literal["cosmos_video_latents"] = "cosmos_video_latents"
    latent_channels: int = 16
    width: int = 16
    spatial_compression: int = 8
    temporal_compression: int = 8
    num_frames: int = Field(17, ge=1)
    fps: float = Field(8.0, gt=0)


class CosmosNetwork(SystemModule):
    """What the four kinds share: patches, encoder, decoder, and the way to D dimensions and back."""

    key_map: ClassVar[KeyMap] = KeyMap(ignored=CONSTANTS)
    config: CosmosConfig
    patcher: HaarPatcher

    def build(self, layers: Layers, patcher: HaarPatcher, width: int) -> None:
        """Makes the modules. layers: of pictures or clips. width: D."""
        config, sizes = self.config, self.config.sizes
        if config.image_size % config.spatial_compression:
            raise ValueError(f"image_size {config.image_size} is no multiple of {config.spatial_compression}")
        clips = isinstance(patcher, CausalHaarPatcher)
        self._check_levels(layers)
        channels = 3 * config.patch ** (3 if clips else 2)
        self.patcher = patcher
        self.encoder = CosmosEncoder(layers, sizes, channels)
        self.decoder = CosmosDecoder(layers, sizes, channels)
        self.quant_conv = layers.make_point_conv(sizes.latent_channels, width)
        self.post_quant_conv = layers.make_point_conv(width, sizes.latent_channels)

    def _check_levels(self, layers: Layers) -> None:
        """ValueError unless the decoder doubles as often as the encoder halves."""
        config, sizes = self.config, self.config.sizes
        scale = {"down": [1, 1], "up": [1, 1]}
        for level in range(sizes.num_levels):
            for way, change in (("down", layers.find_down(sizes, level)), ("up", layers.find_up(sizes, level))):
                for axis in range(2):
                    scale[way][axis] *= 2 if change[axis] else 1
        wanted = [config.spatial_compression // config.patch, sizes.temporal_compression // config.patch]
        if not layers.has_time:
            wanted[1] = 1
        for way, found in scale.items():
            if found != wanted:
                raise ValueError(
                    f"{sizes.num_levels} multipliers scale {way} by {found[0]} in space and {found[1]} in time, where "
                    f"compression and patch want {wanted[0]} and {wanted[1]}; give another number of multipliers"
                )

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, …] in [0, 1] → [B, D, …], before quantization."""
        return self.quant_conv(self.encoder(self.patcher.split(x * 2 - 1)))

    def decode_latents(self, z: Tensor) -> Tensor:
        """z: [B, D, …], as quantized → [B, 3, …] in about [0, 1], not clamped."""
        return self.patcher.join(self.decoder(self.post_quant_conv(z))) / 2 + 0.5

    def check_whole(self, x: Tensor) -> None:
        """ValueError unless every item of x is real from its first to its last pixel or frame."""
        self.check_media(x, clips=False)

    def check_media(self, x: Tensor, clips: bool) -> None:
        unit = self.config.spatial_compression
        if x.dim() != (5 if clips else 4) or x.shape[1] != 3 or any(side < 1 or side % unit for side in x.shape[-2:]):
            what = "clips [B, 3, T, H, W]" if clips else "pictures [B, 3, H, W]"
            raise ValueError(f"this Cosmos tokenizer takes {what}, H and W multiples of {unit}; got {tuple(x.shape)}")

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        self.check_whole(x)
        return Reconstruction(self.decode_latents(self.encode_latents(x)), x.new_zeros(()))

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SystemConfig:
        """The dictionaries of their networks/configs.py. ValueError for another quantizer or a variational form."""
        for name, wanted in (("quantizer", "FSQ"), ("formulation", "AE"), ("z_factor", 1), ("patch_method", "haar")):
            if fields.get(name, wanted) != wanted:
                raise ValueError(f"{name} {fields[name]} is not read; the released Cosmos tokenizers have {wanted}")
        names = {
            "channels": "channels", "channels_mult": "multipliers", "num_res_blocks": "num_blocks",
            "attn_resolutions": "attention_resolutions", "resolution": "resolution", "patch_size": "patch",
            "spatial_compression": "spatial_compression", "temporal_compression": "temporal_compression",
            "z_channels": "latent_channels", "levels": "levels", "group_norm_groups": "num_groups",
        }  # fmt: skip
        found = {ours: fields[theirs] for theirs, ours in names.items() if theirs in fields}
        found = {name: value for name, value in found.items() if name in cls.config_class.model_fields}
        if "width" in cls.config_class.model_fields:
            found["width"] = fields["latent_channels"]
        settings = cls.config_class.model_validate({"image_size": fields["resolution"], **found})
        assert isinstance(settings, SystemConfig)
        return settings


class CosmosCodes(CosmosNetwork):
    """What the two kinds with codes share."""

    quantizer: FiniteScalarQuantizer

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        self.check_whole(x)
        z = self.encode_latents(x)
        made = self.quantizer(z.flatten(2).transpose(1, 2))
        decoded = self.decode_latents(made.values.transpose(1, 2).unflatten(2, z.shape[2:]))
        return Reconstruction(decoded, made.loss, made.ids)


# ---- pictures


class CosmosImageTokenizer(CosmosCodes, SystemTokenizer):
    """Cosmos DI: a code of 64,000 values for every 8×8 or 16×16 pixels.

    ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, H/s · W/s, 1].
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = CosmosImageConfig
    config: CosmosImageConfig

    def __init__(self, config: CosmosImageConfig):
        super().__init__(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.build(PictureLayers(config.num_groups), HaarPatcher(config.patch, config.wavelet), self.quantizer.num_dims)
        self.picture_size = (config.image_size, config.image_size)
        side = config.image_size // config.spatial_compression
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments, self.tokens_per_item = (("image", side * side),), side * side
        self.columns, self.code_levels = {"image": side}, {"image": config.levels}

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        self.check_media(x, clips=False)
        z = self.encode_latents(x)
        return Codes.whole(self.quantizer(z.flatten(2).transpose(1, 2)).ids, (1, *z.shape[2:]))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        def decode(ids: Tensor) -> Tensor:
            grid = find_picture_grid(ids.shape[1], codes.grid)
            return self.decode_latents(self.quantizer.look_up(ids).transpose(1, 2).unflatten(2, grid))

        return pad_media(decode_rows(codes, decode)).clamp(0, 1)


class CosmosImageLatents(CosmosNetwork, SystemLatents):
    """Cosmos CI: D continuous values for every 8×8 or 16×16 pixels: float [B, 3, H, W] → Latents [B, N, D]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = CosmosImageLatentsConfig
    config: CosmosImageLatentsConfig

    def __init__(self, config: CosmosImageLatentsConfig):
        super().__init__(config)
        self.width = config.width
        self.build(PictureLayers(config.num_groups), HaarPatcher(config.patch, config.wavelet), config.width)
        self.picture_size = (config.image_size, config.image_size)
        self.tokens_per_item = (config.image_size // config.spatial_compression) ** 2

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        self.check_media(x, clips=False)
        z = self.encode_latents(x)
        values = z.flatten(2).transpose(1, 2)
        return Latents(values, torch.ones(values.shape[:2], dtype=torch.bool, device=x.device), (1, *z.shape[2:]))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        def decode(values: Tensor) -> Tensor:
            grid = find_picture_grid(values.shape[1], coded.grid)
            return self.decode_latents(values.transpose(1, 2).unflatten(2, grid))

        return pad_media(decode_rows(coded, decode)).clamp(0, 1)


# ---- clips


class CosmosClips(CosmosNetwork):
    """What codes and latents of clips share: a clip has 1 + k · t frames, t being the compression in time."""

    def count_steps(self, frames: int) -> int:
        """Positions in time of so many frames. ValueError for a number that is not 1 + k · t."""
        step = self.config.temporal_compression
        if (frames - 1) % step:
            raise ValueError(f"a clip has 1 + a multiple of {step} frames; got {frames}")
        return 1 + (frames - 1) // step

    def check_whole(self, x: Tensor) -> None:
        self.check_media(x, clips=True)
        self.count_steps(x.shape[2])

    def encode_rows(self, x: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Grid]:
        """Clips of different lengths → each [D, t, h, w], and the grid of the longest."""
        self.check_media(x, clips=True)
        frames = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        for count in frames:
            self.count_steps(count)
        found: dict[int, Tensor] = {}
        for count, items in group_by_size(frames).items():
            found.update(zip(items, self.encode_latents(x[items, :, :count]), strict=True))
        rows = [found[item] for item in range(len(x))]
        return rows, (max(row.shape[1] for row in rows), rows[0].shape[2], rows[0].shape[3])

    def unflatten_time(self, values: Tensor, grid: Grid | None) -> Tensor:
        """values: [b, n, D] → [b, D, t, h, w]; without a grid the frames are squares of `image_size`."""
        side = self.config.image_size // self.config.spatial_compression
        height, width = (side, side) if grid is None else grid[1:]
        if values.shape[1] % (height * width):
            raise ValueError(f"a clip is a multiple of {height * width} codes; got {values.shape[1]}")
        return values.transpose(1, 2).unflatten(2, (-1, height, width))


class CosmosVideoTokenizer(CosmosClips, CosmosCodes, SystemTokenizer):
    """Cosmos DV: a code of 64,000 values for every s×s pixels of t frames; the first frame has codes of its own.

    ``encode``: float [B, 3, T, H, W] in [0, 1], T = 1 + k · t → Codes [B, (1 + k) · H/s · W/s, 1].
    """

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = CosmosVideoConfig
    config: CosmosVideoConfig

    def __init__(self, config: CosmosVideoConfig):
        super().__init__(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.build(ClipLayers(), CausalHaarPatcher(config.patch, config.wavelet), self.quantizer.num_dims)
        self.picture_size = (config.image_size, config.image_size)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames
        side = config.image_size // config.spatial_compression
        steps = self.count_steps(config.num_frames)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments, self.frame_marks = (("video", side * side),) * steps, True
        self.tokens_per_item = side * side * steps
        self.columns, self.code_levels = {"video": side}, {"video": config.levels}

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        rows, grid = self.encode_rows(x, lengths)
        ids = [self.quantizer(row.flatten(1).T[None]).ids[0].cpu() for row in rows]
        return Codes.from_rows(ids, grid, "time+raster").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        def decode(ids: Tensor) -> Tensor:
            return self.decode_latents(self.unflatten_time(self.quantizer.look_up(ids), codes.grid))

        return pad_media(decode_rows(codes, decode)).clamp(0, 1)


class CosmosVideoLatents(CosmosClips, SystemLatents):
    """Cosmos CV: D continuous values for every s×s pixels of t frames: float [B, 3, T, H, W] → Latents [B, N, D]."""

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = CosmosVideoLatentsConfig
    config: CosmosVideoLatentsConfig

    def __init__(self, config: CosmosVideoLatentsConfig):
        super().__init__(config)
        self.width = config.width
        self.build(ClipLayers(), CausalHaarPatcher(config.patch, config.wavelet), config.width)
        self.picture_size = (config.image_size, config.image_size)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames
        side = config.image_size // config.spatial_compression
        self.tokens_per_item = side * side * self.count_steps(config.num_frames)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        rows, grid = self.encode_rows(x, lengths)
        values = pad_media([row.flatten(1).T for row in rows])
        counts = torch.tensor([row[0].numel() for row in rows], device=x.device)
        return Latents(values, torch.arange(values.shape[1], device=x.device) < counts[:, None], grid, "time+raster")

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        def decode(values: Tensor) -> Tensor:
            return self.decode_latents(self.unflatten_time(values, coded.grid))

        return pad_media(decode_rows(coded, decode)).clamp(0, 1)
