"""Open-MAGVIT2's tokenizer of clips (arXiv 2409.04410): signs of 18 channels at every step, row and column.

Its norms see the whole clip: items of different lengths are coded apart, so that a clip has the same codes alone.

Shapes: B batch, T frames, H and W height and width, t, h and w steps, rows and columns of codes, Z channels, N codes,
G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import make_quantizer
from unimodal.tokenizers.parts.trunks.vqgan import ConvSettings
from unimodal.tokenizers.parts.trunks.vqgan_video import ClipDecoder, ClipEncoder
from unimodal.tokenizers.rows import decode_rows, group_by_size, pad_media
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.conv_names import list_conv_rules
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.vqgan import VqganTokenizer, check_group_sizes


class VqganVideoConfig(SystemConfig, ConvSettings):
    """Of the settings of the convolutions, width, multipliers, blocks, latent_width and groups are read here; the
    conventions are Open-MAGVIT2's. image_size, num_frames and fps: of what files are fitted to. quantizer: its kind and
    settings; it takes `latent_width` dimensions. flat_ids: allow a group of more than 65,536 values.
    """

    family: Literal["vqgan_video"] = "vqgan_video"
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_blocks: int = Field(default=4, ge=1)
    middle_blocks: int = Field(default=4, ge=1)
    block_biases: bool = False
    upsampling: Literal["nearest", "shuffle"] = "shuffle"
    latent_width: int = Field(default=18, ge=1)
    image_size: int = Field(default=128, ge=1)
    num_frames: int = Field(default=17, ge=1)
    fps: float = Field(default=8.0, gt=0)
    quantizer: dict[str, JsonValue]
    flat_ids: bool = False

    @property
    def time_factor(self) -> int:
        """Frames of a step, but for the first, which is one frame."""
        return prod(1 if multiplier == 1 else 2 for multiplier in self.multipliers[:-1])

    @model_validator(mode="after")
    def check_size(self) -> Self:
        """ValueError for frames that are no whole number of positions."""
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.factor}, what the levels halve to")
        return self


class VqganVideoTokenizer(SystemTokenizer):
    """Clips float [B, 3, 1 + k · time_factor, H, W] in [0, 1] ⇄ codes [B, (1 + k) · h · w, G]."""

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = VqganVideoConfig
    config: VqganVideoConfig

    def __init__(self, config: VqganVideoConfig):
        super().__init__(config)
        self.encoder, self.decoder = ClipEncoder(config), ClipDecoder(config)
        self.quantizer = make_quantizer(config.quantizer)
        if self.quantizer.num_dims != config.latent_width:
            raise ValueError(
                f"the quantizer takes {self.quantizer.num_dims} dimensions and latent_width is {config.latent_width}: "
                "make them equal"
            )
        self.codebook_sizes = check_group_sizes(self.quantizer.codebook_sizes, (), config.flat_ids)
        side, steps = config.image_size // config.factor, self.count_steps(config.num_frames)
        self.segments, self.frame_marks = (("video", side**2),) * steps, True
        self.tokens_per_item, self.columns = steps * side**2, {"video": side}
        self.picture_size = (config.image_size, config.image_size)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames

    def count_steps(self, frames: int) -> int:
        """Steps of so many frames. ValueError for a number that is not 1 + k · time_factor."""
        if (frames - 1) % self.config.time_factor:
            raise ValueError(f"a clip has 1 + a multiple of {self.config.time_factor} frames; got {frames}")
        return 1 + (frames - 1) // self.config.time_factor

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, VqganVideoConfig)
        rules = list_conv_rules(config, "magvit2")
        return KeyMap(rules, (r"loss\..*", r"model_ema\.(decay|num_updates)"), averages="model_ema.")

    def embed(self, x: Tensor) -> Tensor:
        """x: [B, 3, T, H, W] in [0, 1] → maps before the quantizer [B, Z, t, h, w]. ValueError for other shapes."""
        factor = self.config.factor
        if x.dim() != 5 or x.shape[1] != 3 or not len(x) or x.shape[3] % factor or x.shape[4] % factor:
            raise ValueError(f"clips are [B, 3, T, H, W] with sides that {factor} divides; got {tuple(x.shape)}")
        if self.count_steps(x.shape[2]) * (x.shape[3] // factor) * (x.shape[4] // factor) < 2:
            raise ValueError("a clip of a single position has no deviation over positions; give a larger one")
        return self.encoder(x * 2 - 1)

    def paint(self, vectors: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Quantized vectors [B, N, Z] on a grid of steps, rows and columns → [B, 3, T, H, W] about [0, 1]."""
        return (self.decoder(vectors.transpose(1, 2).unflatten(2, grid)) + 1) / 2

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        frames = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        steps = [self.count_steps(count) for count in frames]
        found: dict[int, Tensor] = {}
        for count, items in group_by_size(frames).items():
            maps = self.embed(x[items, :, :count])
            found.update(zip(items, self.quantizer(maps.flatten(2).transpose(1, 2)).ids.cpu(), strict=True))
        grid = (max(steps), x.shape[3] // self.config.factor, x.shape[4] // self.config.factor)
        return Codes.from_rows([found[item] for item in range(len(x))], grid, "time+raster").to(x.device)

    def decode_batch(self, coded: Codes, options: CodingOptions) -> Tensor:
        side = self.config.image_size // self.config.factor
        rows, columns = (side, side) if coded.grid is None else coded.grid[1:]

        def decode(ids: Tensor) -> Tensor:
            steps, rest = divmod(ids.shape[1], rows * columns)
            if rest or ids.shape[2] != len(self.codebook_sizes):
                raise ValueError(
                    f"a clip is a multiple of {rows * columns} codes in {len(self.codebook_sizes)} groups; got "
                    f"{ids.shape[1]} in {ids.shape[2]}"
                )
            return self.paint(self.quantizer.look_up(ids), (steps, rows, columns))

        return pad_media([clip.clamp(0, 1) for clip in decode_rows(coded, decode)])

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """All clips of x are taken whole: their lengths are equal in training."""
        maps = self.embed(x)
        quantized = self.quantizer(maps.flatten(2).transpose(1, 2), generator=generator)
        steps, rows, columns = maps.shape[2:]
        decoded = self.paint(quantized.values, (steps, rows, columns))
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> VqganVideoConfig:
        """The YAML of Open-MAGVIT2's clips: that of its pictures, with a length."""
        whole = AuthorsFields(fields)
        arguments = whole.open("model", "init_args").fields
        data = whole.open("data", "init_args", "train", "params", "config")
        pictures = VqganTokenizer.read_authors_config(arguments)
        return VqganVideoConfig(
            width=pictures.width,
            multipliers=pictures.multipliers,
            num_blocks=pictures.num_blocks,
            middle_blocks=pictures.middle_blocks,
            latent_width=pictures.latent_width,
            num_norm_groups=pictures.num_norm_groups,
            quantizer=pictures.quantizer,
            image_size=data.take_integer("size", pictures.image_size),
            num_frames=data.take_integer("sequence_length", 17),
        )
