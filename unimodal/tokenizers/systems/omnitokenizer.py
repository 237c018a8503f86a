"""OmniTokenizer: one network for pictures and clips, by attention in space and, causal, in time (arXiv 2406.09399).

A picture is a clip of one frame. `omnitokenizer` codes pictures and `omnitokenizer_video` clips, with the same weights.

Shapes: B batch, T frames, H/W height and width, t/h/w steps, rows and columns of codes, D width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.rows import decode_rows, find_picture_grid, group_by_size, pad_media
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemModule, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.omnitokenizer_networks import OmniDecoder, OmniEncoder, OmniSizes


class OmniConfig(SystemConfig):
    """encoder_blocks, decoder_blocks: 't' attends to a whole frame, 'w' within windows. biased: add the position
    biases that torch before 2.1 added; the authors' code on a newer torch leaves them out, and does not say which way
    the released weights were trained. scrambled: keep the authors' order of tokens in the convolution over time."""

    image_size: int = Field(256, ge=4)
    width: int = 512
    num_heads: int = 8
    head_width: int = 64
    expansion: float = 4.0
    encoder_blocks: str = Field("ttww", pattern="^[tw]+$")
    decoder_blocks: str = Field("tttt", pattern="^[tw]+$")
    time_depth: int = 4
    window: int = 8
    patch: int = 8
    time_patch: int = 4
    positions: Literal["rope", "relative"] = "rope"
    causal: bool = True
    causal_convolution: bool = True
    biased: bool = False
    scrambled: bool = True
    codebook_size: int = 8192
    code_width: int = 8
    normalize_latents: bool = True


class OmniImageConfig(OmniConfig):
    family: Literal["omnitokenizer"] = "omnitokenizer"


class OmniVideoConfig(OmniConfig):
    family: Literal["omnitokenizer_video"] = "omnitokenizer_video"
    num_frames: int = Field(17, ge=1)
    fps: float = Field(8.0, gt=0)


class OmniNetwork(SystemModule):
    """The network that pictures and clips share."""

    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"quantizer\.codebook", r"codebook.embeddings"),
            (r"(pre|post)_vq\.(.*)", r"\1_vq_conv.1.\2"),
        ),
        ignored=(
            r"codebook\.(N|z_avg|codebook_usage)",
            r"(image_discriminator|video_discriminator|perceptual_model)\..*",
        ),
    )
    config: OmniConfig

    def build(self) -> None:
        """Makes the modules. Raises ValueError for sizes that do not divide."""
        config = self.config
        if config.image_size % config.patch:
            raise ValueError(f"image_size {config.image_size} is no multiple of the patch {config.patch}")
        side = config.image_size // config.patch
        if "w" in config.encoder_blocks + config.decoder_blocks and side % config.window:
            raise ValueError(f"{side} patches a side are no multiple of the window {config.window}")
        sizes = OmniSizes(
            config.width, config.num_heads, config.head_width, config.expansion, config.window, config.positions,
            config.causal, config.causal_convolution, config.biased, config.scrambled,
        )  # fmt: skip
        self.encoder = OmniEncoder(sizes, config.encoder_blocks, config.time_depth, config.patch, config.time_patch)
        self.decoder = OmniDecoder(sizes, config.decoder_blocks, config.time_depth, config.patch, config.time_patch)
        self.pre_vq = nn.Linear(config.width, config.code_width)
        self.post_vq = nn.Linear(config.code_width, config.width)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.code_width, normalize_latents=config.normalize_latents
        )

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, T, H, W] in [0, 1] → [B, t, h, w, D], before they are normalised and quantized."""
        return self.pre_vq(self.encoder(x - 0.5))

    def decode_latents(self, z: Tensor) -> Tensor:
        """z: [B, t, h, w, D], quantized → [B, 3, T, H, W] in about [0, 1], not clamped."""
        return self.decoder(self.post_vq(z)) + 0.5

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        self.check_sides(x)
        if x.dim() == 5 and (x.shape[2] - 1) % self.config.time_patch:
            raise ValueError(f"a clip has 1 + a multiple of {self.config.time_patch} frames; got {x.shape[2]}")
        clip = x.unsqueeze(2) if x.dim() == 4 else x
        z = self.encode_latents(clip)
        made = self.quantizer(z.flatten(1, 3))
        decoded = self.decode_latents(made.values.unflatten(1, z.shape[1:4]))
        return Reconstruction(decoded.reshape(x.shape), made.loss, made.ids)

    def check_sides(self, x: Tensor) -> None:
        """ValueError for pictures or frames whose sides are no multiples of the patch and of its windows."""
        config = self.config
        unit = config.patch * (config.window if "w" in config.encoder_blocks + config.decoder_blocks else 1)
        dims = 4 if self.modality == "image" else 5
        if x.dim() != dims or x.shape[1] != 3 or any(side < 1 or side % unit for side in x.shape[-2:]):
            what = "pictures [B, 3, H, W]" if dims == 4 else "clips [B, 3, T, H, W]"
            raise ValueError(f"this OmniTokenizer takes {what}, H and W multiples of {unit}; got {tuple(x.shape)}")

    modality: ClassVar[str]

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SystemConfig:
        """The arguments of their training, as `hyper_parameters`.args holds them. ValueError for its other forms."""
        for name, wanted in (
            ("use_vae", False), ("use_external_codebook", False), ("patch_embed", "linear"), ("image_channels", 3),
            ("defer_temporal_pool", False), ("defer_spatial_pool", False), ("gen_upscale", None),
        ):  # fmt: skip
            if fields.get(name, wanted) != wanted:
                raise ValueError(f"an OmniTokenizer with {name} {fields[name]} is not read; {wanted} is")
        names = {
            "resolution": "image_size", "embedding_dim": "width", "heads": "num_heads", "dim_head": "head_width",
            "ff_mult": "expansion", "enc_block": "encoder_blocks", "dec_block": "decoder_blocks",
            "temporal_depth": "time_depth", "twod_window_size": "window", "patch_size": "patch",
            "temporal_patch_size": "time_patch", "causal_in_temporal_transformer": "causal",
            "causal_in_peg": "causal_convolution", "n_codes": "codebook_size", "codebook_dim": "code_width",
            "l2_code": "normalize_latents", "sequence_length": "num_frames",
        }  # fmt: skip
        found = {ours: fields[theirs] for theirs, ours in names.items() if theirs in fields}
        found["positions"] = {"rel": "relative"}.get(str(fields.get("spatial_pos", "rel")), "rope")
        if "num_frames" not in cls.config_class.model_fields:
            found.pop("num_frames", None)
        settings = cls.config_class.model_validate(found)
        assert isinstance(settings, SystemConfig)
        return settings


class OmniImageTokenizer(OmniNetwork, SystemTokenizer):
    """OmniTokenizer's pictures: a code for every patch.

    ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, h·w, 1].
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = OmniImageConfig
    config: OmniImageConfig

    def __init__(self, config: OmniImageConfig):
        super().__init__(config)
        self.build()
        side = config.image_size // config.patch
        self.codebook_sizes, self.columns = (config.codebook_size,), {"image": side}
        self.segments, self.tokens_per_item = (("image", side * side),), side * side
        self.picture_size = (config.image_size, config.image_size)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        self.check_sides(x)
        z = self.encode_latents(x.unsqueeze(2))
        return Codes.whole(self.quantizer(z.flatten(1, 3)).ids, (1, z.shape[2], z.shape[3]))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        def decode(ids: Tensor) -> Tensor:
            grid = find_picture_grid(ids.shape[1], codes.grid)
            return self.decode_latents(self.quantizer.look_up(ids).unflatten(1, (1, *grid)))[:, :, 0]

        return pad_media(decode_rows(codes, decode)).clamp(0, 1)


class OmniVideoTokenizer(OmniNetwork, SystemTokenizer):
    """OmniTokenizer's clips: a code for every patch of the first frame and of every `time_patch` frames after it.

    ``encode``: float [B, 3, 1 + k·t, H, W] in [0, 1] → Codes [B, (1 + k)·h·w, 1].
    """

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = OmniVideoConfig
    config: OmniVideoConfig

    def __init__(self, config: OmniVideoConfig):
        super().__init__(config)
        self.build()
        side, steps = config.image_size // config.patch, self.count_steps(config.num_frames)
        self.codebook_sizes, self.columns = (config.codebook_size,), {"video": side}
        self.segments, self.frame_marks = (("video", side * side),) * steps, True
        self.tokens_per_item = side * side * steps
        self.picture_size = (config.image_size, config.image_size)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames

    def count_steps(self, frames: int) -> int:
        """Steps of time of so many frames. ValueError for a number that is not 1 + k · time_patch."""
        if (frames - 1) % self.config.time_patch:
            raise ValueError(f"a clip has 1 + a multiple of {self.config.time_patch} frames; got {frames}")
        return 1 + (frames - 1) // self.config.time_patch

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        self.check_sides(x)
        frames = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        steps = [self.count_steps(count) for count in frames]
        found: dict[int, Tensor] = {}
        for count, items in group_by_size(frames).items():
            z = self.encode_latents(x[items, :, :count])
            found.update(zip(items, self.quantizer(z.flatten(1, 3)).ids.cpu(), strict=True))
        grid = (max(steps), x.shape[3] // self.config.patch, x.shape[4] // self.config.patch)
        return Codes.from_rows([found[item] for item in range(len(x))], grid, "time+raster").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        side = self.config.image_size // self.config.patch
        height, width = (side, side) if codes.grid is None else codes.grid[1:]

        def decode(ids: Tensor) -> Tensor:
            if ids.shape[1] % (height * width):
                raise ValueError(f"a clip is a multiple of {height * width} codes; got {ids.shape[1]}")
            return self.decode_latents(self.quantizer.look_up(ids).unflatten(1, (-1, height, width)))

        return pad_media(decode_rows(codes, decode)).clamp(0, 1)
