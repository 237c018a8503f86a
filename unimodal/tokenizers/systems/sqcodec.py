"""SQ-Codec (arXiv 2406.02328), as UniAudio 2 (2602.04683) uses it: sound ⇄ rounded scalars.

A convolutional encoder ends in a tanh; each of its channels is rounded to one of 19 values, so a frame has as many
codes as channels. All is causal but the decoder's first convolution, which looks (kernel - 1) / 2 frames ahead. One
PReLU is shared by the encoder's down-sampling layers of all blocks.

A sound that is no whole number of frames is filled up with silence. The authors' average over `pool` samples drops the
last few instead: with `published=True` a sound may so have one frame less.

Shapes: B batch, T samples, N frames, D channels, which are the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.quantizers.rounded import RoundedQuantizer
from unimodal.tokenizers.parts.streaming import (
    BlockStage,
    ChainStage,
    ConvStage,
    PointwiseStage,
    Stage,
    SumStage,
    TransposedStage,
)
from unimodal.tokenizers.sounds import pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import WEIGHT_NORM, KeyMap, MisfitError
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer

DILATIONS = (1, 3, 5, 7, 9)


class SQCodecConfig(SoundConfig):
    """pool: samples that are averaged at the start and repeated at the end; 1 for none. strides, kernels: of the
    encoder's levels, from the sound on; up_strides and up_kernels those of the decoder, by default the same backwards.
    ahead_kernel: of the decoder's first convolution. half_levels: a value is one of 2 · half_levels + 1."""

    family: Literal["sqcodec"] = "sqcodec"
    sample_rate_hz: int = Field(default=24000, gt=0)
    num_bands: int = Field(default=1, ge=1)
    causal: bool = True
    pool: int = Field(default=2, ge=1)
    strides: tuple[int, ...] = (2, 4, 4)
    kernels: tuple[int, ...] = (4, 8, 8)
    up_strides: tuple[int, ...] = ()
    up_kernels: tuple[int, ...] = ()
    width: int = Field(default=4, ge=2)
    num_channels: int = Field(default=12, ge=1)
    kernel: int = 7
    residual_kernel: int = 7
    ahead_kernel: int = 5
    half_levels: int = 9

    @model_validator(mode="after")
    def check_levels(self) -> Self:
        """ValueError for kernels that are not one a stride, and for a decoder that gives back another rate."""
        if len(self.strides) != len(self.kernels) or len(self.list_up()) != len(self.strides):
            raise ValueError("give a kernel for each stride, and as many up_strides and up_kernels")
        if prod(stride for stride, _ in self.list_up()) != prod(self.strides):
            raise ValueError(f"up_strides {self.up_strides} do not give back the rate that {self.strides} take")
        if self.causal and any(kernel != 2 * stride for stride, kernel in self.list_up()):
            raise ValueError("a causal decoder has kernels of twice its strides")
        if self.num_bands != 1:
            raise ValueError(f"only sounds of one band are read; got num_bands {self.num_bands}")
        return self

    def list_up(self) -> list[tuple[int, int]]:
        """(stride, kernel) of each level of the decoder."""
        strides = self.up_strides or self.strides[::-1]
        kernels = self.up_kernels or self.kernels[::-1]
        return list(zip(strides, kernels, strict=False)) if len(strides) == len(kernels) else []

    @property
    def samples_per_frame(self) -> int:
        return self.pool * prod(self.strides)


class PaddedConv(nn.Conv1d):
    """A convolution with all its padding before the sound, or half of it on both sides."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, dilation: int = 1, causal: bool = True):
        margin = (kernel - 1) * dilation
        super().__init__(inner, outer, kernel, stride, padding=0 if causal else margin // 2, dilation=dilation)
        self.before = margin if causal else 0

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, T] → [B, outer, ⌈T / stride⌉]."""
        return super().forward(pad(x, (self.before, 0)))


class GrowingConv(nn.ConvTranspose1d):
    """A transposed convolution that gives `stride` frames for one."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, causal: bool):
        super().__init__(inner, outer, kernel, stride, padding=0 if causal else (kernel - stride) // 2)
        self.cut = stride if causal else 0

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x: [B, C, N] → [B, outer, N · stride]."""
        grown = super().forward(x, output_size)
        return grown[..., : grown.shape[-1] - self.cut]


class PReLUUnit(nn.Module):
    """Two convolutions, each behind a weight norm and before a PReLU of its own, beside a skip."""

    def __init__(self, width: int, kernel: int, dilation: int, causal: bool):
        super().__init__()
        self.conv1 = weight_norm(PaddedConv(width, width, kernel, dilation=dilation, causal=causal))
        self.conv2 = weight_norm(PaddedConv(width, width, 1, causal=causal))
        self.activation1, self.activation2 = nn.PReLU(), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation2(self.conv2(self.activation1(self.conv1(x))))


class SamplePool(nn.Module):
    """A convolution and a PReLU, then the mean of each `pool` samples."""

    def __init__(self, width: int, pool: int, kernel: int, causal: bool):
        super().__init__()
        self.conv, self.activation = PaddedConv(width, width, kernel, causal=causal), nn.PReLU()
        self.pooling = nn.AvgPool1d(pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooling(self.activation(self.conv(x)))


class SampleRepeat(nn.Module):
    """Each frame `pool` times, then a convolution and a PReLU."""

    def __init__(self, width: int, pool: int, kernel: int, causal: bool):
        super().__init__()
        self.pool = pool
        self.conv, self.activation = PaddedConv(width, width, kernel, causal=causal), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x.repeat_interleave(self.pool, dim=-1)))


class EncoderLevel(nn.Module):
    """Units of growing dilation, then a convolution with a stride; the activation behind it is the encoder's."""

    def __init__(self, inner: int, outer: int, stride: int, kernel: int, residual_kernel: int, causal: bool):
        super().__init__()
        self.convs = nn.Sequential(*[PReLUUnit(inner, residual_kernel, each, causal) for each in DILATIONS])
        self.down = weight_norm(PaddedConv(inner, outer, kernel, stride, causal=causal))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.convs(x))


class DecoderLevel(nn.Module):
    """A transposed convolution, then units of growing dilation."""

    def __init__(self, inner: int, outer: int, stride: int, kernel: int, residual_kernel: int, causal: bool):
        super().__init__()
        self.up = weight_norm(GrowingConv(inner, outer, kernel, stride, causal))
        self.convs = nn.Sequential(*[PReLUUnit(outer, residual_kernel, each, causal) for each in DILATIONS])

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(self.up(x))


class SQEncoder(nn.Module):
    """[B, 1, T] → [B, D, N] in (-1, 1)."""

    def __init__(self, config: SQCodecConfig):
        super().__init__()
        causal, widths = config.causal, [config.width * 2**level for level in range(len(config.strides) + 1)]
        self.layers = nn.ModuleList([weight_norm(PaddedConv(1, config.width, config.kernel, causal=causal))])
        if config.pool > 1:
            self.layers.append(SamplePool(config.width, config.pool, config.kernel, causal))
        sizes = zip(pairwise(widths), config.strides, config.kernels, strict=True)
        self.layers.extend(
            EncoderLevel(inner, outer, stride, kernel, config.residual_kernel, causal)
            for (inner, outer), stride, kernel in sizes
        )
        self.layers.append(weight_norm(PaddedConv(widths[-1], config.num_channels, config.kernel, causal=causal)))
        self.shared_activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.shared_activation(layer(x)) if isinstance(layer, EncoderLevel) else layer(x)
        return x.tanh()


class SQDecoder(nn.Module):
    """[B, D, N] → [B, 1, N · samples_per_frame]."""

    def __init__(self, config: SQCodecConfig):
        super().__init__()
        causal, widths = config.causal, [config.width * 2**level for level in range(len(config.strides), -1, -1)]
        self.layers = nn.ModuleList(
            [weight_norm(PaddedConv(config.num_channels, widths[0], config.ahead_kernel, causal=False))]
        )
        sizes = zip(pairwise(widths), config.list_up(), strict=True)
        self.layers.extend(
            DecoderLevel(inner, outer, stride, kernel, config.residual_kernel, causal)
            for (inner, outer), (stride, kernel) in sizes
        )
        if config.pool > 1:
            self.layers.append(SampleRepeat(config.width, config.pool, config.kernel, causal))
        self.layers.append(weight_norm(PaddedConv(config.width, 1, config.kernel, causal=causal)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def open_layer(layer: nn.Module) -> Stage:
    """A stream of one layer of a causal encoder or decoder."""
    if isinstance(layer, PaddedConv):
        around = layer.padding[0]
        return ConvStage(layer, layer.before or int(around), int(around))
    if isinstance(layer, GrowingConv):
        return TransposedStage(layer, 0, layer.cut)
    if isinstance(layer, PReLUUnit):
        inner = (layer.conv1, layer.activation1, layer.conv2, layer.activation2)
        return SumStage(PointwiseStage(nn.Identity()), ChainStage([open_layer(part) for part in inner]))
    if isinstance(layer, SamplePool):
        pooled = [BlockStage(int(layer.pooling.kernel_size[0])), PointwiseStage(layer.pooling)]
        return ChainStage([open_layer(layer.conv), PointwiseStage(layer.activation), *pooled])
    if isinstance(layer, SampleRepeat):
        repeat = PointwiseStage(lambda x: x.repeat_interleave(layer.pool, dim=-1))
        return ChainStage([repeat, open_layer(layer.conv), PointwiseStage(layer.activation)])
    if isinstance(layer, EncoderLevel):
        return ChainStage([*map(open_layer, layer.convs), open_layer(layer.down)])
    if isinstance(layer, DecoderLevel):
        return ChainStage([open_layer(layer.up), *map(open_layer, layer.convs)])
    return PointwiseStage(layer)


class SQCodecTokenizer(SoundTokenizer):
    """Sound ⇄ D codes of 19 values a frame."""

    config_class: ClassVar[type[TokenizerConfig]] = SQCodecConfig
    config: SQCodecConfig
    quantizer: RoundedQuantizer

    def __init__(self, config: SQCodecConfig):
        super().__init__(config)
        self.encoder, self.decoder = SQEncoder(config), SQDecoder(config)
        self.quantizer = RoundedQuantizer(config.num_channels, config.half_levels)
        self.describe(self.quantizer.codebook_sizes, config.samples_per_frame, config.sample_rate_hz)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        size = self.config.pool if published else self.samples_per_code
        return x if published and x.shape[-1] >= size else pad_samples(x, -(-x.shape[-1] // size) * size)

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 1, T] → float [B, N, D] in (-1, 1), before they are rounded."""
        return self.encoder(x).transpose(1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents: float [B, N, D], which are rounded first → [B, 1, N · samples_per_code]."""
        return self.decoder(self.quantizer(latents).values.transpose(1, 2))

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decoder(self.quantizer.look_up(ids).transpose(1, 2))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        made = self.quantizer(self.encode_latents(self.pad_equal(x, False)))
        return Reconstruction(self.decoder(made.values.transpose(1, 2)), made.loss, made.ids)

    # ---- piece by piece

    @property
    def can_stream(self) -> bool:
        return self.config.causal

    def open_encoder(self, published: bool) -> Stage:
        def quantize(latents: Tensor) -> Tensor:
            return self.quantizer(latents.tanh().transpose(1, 2)).ids

        stages: list[Stage] = [BlockStage(self.samples_per_code)]
        for layer in self.encoder.layers:
            stages.append(open_layer(layer))
            if isinstance(layer, EncoderLevel):
                stages.append(PointwiseStage(self.encoder.shared_activation))
        return ChainStage([*stages, PointwiseStage(quantize, self.make_no_codes())])

    def open_decoder(self, published: bool) -> Stage:
        def look_up(ids: Tensor) -> Tensor:
            return self.quantizer.look_up(ids).transpose(1, 2)

        nothing = next(self.parameters()).new_zeros(1, self.config.num_channels, 0)
        return ChainStage([PointwiseStage(look_up, nothing), *map(open_layer, self.decoder.layers)])

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SQCodecConfig:
        """Their sqcodec_config.yaml, whole or its `generator.config`."""
        own = AuthorsFields(fields).open("generator", "config")
        plain = SQCodecConfig()
        return SQCodecConfig(
            sample_rate_hz=own.take_integer("sample_rate", plain.sample_rate_hz),
            num_bands=own.take_integer("num_bands", 1),
            causal=own.take_flag("causal", True),
            pool=own.take_integer("num_samples", plain.pool),
            strides=own.take_integers("downsample_factors", plain.strides),
            kernels=own.take_integers("downsample_kernel_sizes", plain.kernels),
            up_strides=own.take_integers("upsample_factors", ()),
            up_kernels=own.take_integers("upsample_kernel_sizes", ()),
            width=own.take_integer("init_channel", plain.width),
            num_channels=own.take_integer("latent_hidden_dim", plain.num_channels),
            kernel=own.take_integer("default_kernel_size", plain.kernel),
            residual_kernel=own.take_integer("res_kernel_size", plain.residual_kernel),
            ahead_kernel=own.take_integer("delay_kernel_size", plain.ahead_kernel),
        )

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, SQCodecConfig)
        names = _list_shared_names(config)
        return KeyMap(
            rules=((r"encoder\.shared_activation\.weight", names[0]), *_LEVELS),
            endings=WEIGHT_NORM,
            ignored=tuple(name.replace(".", r"\.") for name in names[1:]),
        )

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        assert isinstance(config, SQCodecConfig)
        first, *others = (weights.get(name) for name in _list_shared_names(config))
        if any(other is None or first is None or not torch.equal(other, first) for other in others):
            raise MisfitError(f"{source} lacks the PReLU that all levels of the encoder share, or has several")
        return super().from_authors(weights, config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        state = super().collect_authors_state()
        return {**state, **{name: self.encoder.shared_activation.weight for name in _list_shared_names(self.config)}}


def _list_shared_names(config: SQCodecConfig) -> list[str]:
    """What the authors call the encoder's one activation: a name for each level."""
    first = 2 if config.pool > 1 else 1
    return [f"encoder.{first + level}.down_conv.activation.weight" for level in range(len(config.strides))]


#: levels by number
_LAYER = r"(encoder|decoder)\.layers\.(\d+)\."
_LEVELS = (
    (_LAYER + r"down\.(.*)", r"\1.\2.down_conv.layer.\3"),
    (_LAYER + r"up\.(.*)", r"\1.\2.up_conv.layer.\3"),
    (_LAYER + r"(.*)", r"\1.\2.\3"),
)
