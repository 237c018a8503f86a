"""SNAC: sound ⇄ codes at several rates, coarse ones seldom and fine ones often (arXiv 2410.14411).

A place of the codes is one frame of the coarsest book: its groups are all codes of that frame, in the order in which
Orpheus writes them (0 1 2 2 1 2 2 for strides 4 2 1), so that a vocabulary has a block for each.

A sound is filled up with silence to whole frames, and to whole windows of attention where the network has that; the
codes of this silence are part of the sound's, as in the authors' code. Codes of any number of frames decode: ours fills
their latents up with zeros to whole windows, where the authors' code fails.

Shapes: B batch, T samples, F frames, G codes of a frame, N latents, D width, S samples of noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions
from unimodal.tokenizers.parts.quantizers.projected import ProjectedQuantizer
from unimodal.tokenizers.parts.quantizers.strided_residual import StridedResidualQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.rows import group_by_size
from unimodal.tokenizers.sounds import join_waves, pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.snac_networks import HEAD_WIDTH, SnacDecoder, SnacEncoder
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer


class SnacConfig(SoundConfig):
    """encoder_width: channels at the sample rate. decoder_width: at the rate of latents. window: steps of attention,
    None for none. strides: latents that a code of each book stands for, the coarsest first. noise: whether the decoder
    adds noise. dropout: share of sounds that lose their finer books in training."""

    family: Literal["snac"] = "snac"
    sample_rate_hz: int = 24000
    encoder_width: int = 48
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    latent_width: int | None = None
    decoder_width: int = 1024
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    window: int | None = Field(default=None, ge=1)
    codebook_size: int = 4096
    codebook_width: int = 8
    strides: tuple[int, ...] = (4, 2, 1)
    noise: bool = True
    depthwise: bool = True
    commitment: float = 0.25
    dropout: float = 0.0


class SnacTokenizer(SoundTokenizer):
    """``encode``: float [B, 1, T] → Codes [B, F, G]; ``decode`` → [B, 1, F · samples_per_code]."""

    config_class: ClassVar[type[TokenizerConfig]] = SnacConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"quantizer\.books\.(\d+)\.book\.codebook", r"quantizer.quantizers.\1.codebook.weight"),
            (r"quantizer\.books\.(.*)", r"quantizer.quantizers.\1"),
        )
    )
    config: SnacConfig

    def __init__(self, config: SnacConfig):
        super().__init__(config)
        top = config.encoder_width * 2 ** len(config.encoder_rates)
        width = top if config.latent_width is None else config.latent_width
        if prod(config.encoder_rates) != prod(config.decoder_rates):
            raise ValueError(f"encoder and decoder rates multiply to the same hop; got {config.encoder_rates} and "
                             f"{config.decoder_rates}")  # fmt: skip
        if config.window is not None and (top % HEAD_WIDTH or config.decoder_width % HEAD_WIDTH):
            raise ValueError(f"attention has heads of width {HEAD_WIDTH}; widths {top} and {config.decoder_width} are "
                             "no multiples of it")  # fmt: skip
        self.encoder = SnacEncoder(config.encoder_width, config.encoder_rates, config.depthwise, config.window)
        books = [
            VectorQuantizer(config.codebook_size, config.codebook_width, "cosine", commitment=config.commitment)
            for _ in config.strides
        ]
        for book in books:
            nn.init.normal_(book.codebook)  # the authors' beginning: shorter rows say little to the decoder
        self.quantizer = StridedResidualQuantizer(
            [ProjectedQuantizer(book, width) for book in books], config.strides, config.dropout
        )
        self.decoder = SnacDecoder(
            width, config.decoder_width, config.decoder_rates, config.noise, config.depthwise, config.window
        )
        self.streams = self.quantizer.layout
        self.hop = prod(config.encoder_rates)
        self.describe(self.quantizer.codebook_sizes, self.hop * config.strides[0], config.sample_rate_hz)
        self.decode_settings = frozenset({"noise"} if config.noise else ())

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        whole = self.hop * math.lcm(self.config.strides[0], self.config.window or 1)
        return pad_samples(x, -(-x.shape[-1] // whole) * whole)

    @property
    def coarser_groups(self) -> tuple[tuple[int, ...], ...]:
        return self.quantizer.list_coarser()

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encoder(x).transpose(1, 2)).ids

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        """[S]: the noise of all blocks of the decoder, one behind the other."""
        steps = self._count_whole_steps(num_positions * self.config.strides[0])
        return (sum(self.decoder.list_noise_lengths(steps)),)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        waves: dict[int, Tensor] = {}
        for count, items in group_by_size(codes.counts).items():
            noise = None if options.noise is None else options.noise[items, None, : self.noise_shape(count)[0]]
            values = self.quantizer.look_up(torch.stack([codes.row(item) for item in items]))
            waves.update(zip(items, self.decode_latents(values, noise), strict=True))
        lengths = [count * self.samples_per_code for count in codes.counts]
        longest = codes.ids.shape[1] * self.samples_per_code
        return join_waves([waves[item] for item in range(len(codes))], lengths, longest)

    def decode_latents(self, values: Tensor, noise: Tensor | None) -> Tensor:
        """Quantized vectors [B, N, D] → [B, 1, N · hop]. noise: [B, 1, S]; None for none."""
        missing = self._count_whole_steps(values.shape[1]) - values.shape[1]
        whole = torch.nn.functional.pad(values.transpose(1, 2), (0, missing))
        return self.decoder(whole, noise)[..., : values.shape[1] * self.hop]

    def _count_whole_steps(self, steps: int) -> int:
        window = self.config.window or 1
        return -(-steps // window) * window

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        made = self.quantizer(self.encoder(self.pad_equal(x, False)).transpose(1, 2), generator=generator)
        noise = None
        if self.config.noise:
            shape = (len(x), 1, sum(self.decoder.list_noise_lengths(made.values.shape[1])))
            noise = torch.randn(shape, generator=generator).to(x.device)
        return Reconstruction(self.decode_latents(made.values, noise), made.loss, made.ids, made.numbers)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SnacConfig:
        """The arguments of their class, as config.json beside released weights has them."""
        own = AuthorsFields(fields)
        latent, window = own.take_integer("latent_dim", 0), own.take_integer("attn_window_size", 0)
        if "attn_window_size" not in fields:
            window = 32
        return SnacConfig(
            sample_rate_hz=own.take_integer("sampling_rate", 44100),
            encoder_width=own.take_integer("encoder_dim", 64),
            encoder_rates=own.take_integers("encoder_rates", (3, 3, 7, 7)),
            latent_width=latent or None,
            decoder_width=own.take_integer("decoder_dim", 1536),
            decoder_rates=own.take_integers("decoder_rates", (7, 7, 3, 3)),
            window=window or None,
            codebook_size=own.take_integer("codebook_size", 4096),
            codebook_width=own.take_integer("codebook_dim", 8),
            strides=own.take_integers("vq_strides", (8, 4, 2, 1)),
            noise=own.take_flag("noise", True),
            depthwise=own.take_flag("depthwise", True),
        )

    def write_authors_config(self) -> dict[str, object] | None:
        own = self.config
        return {
            "sampling_rate": own.sample_rate_hz,
            "encoder_dim": own.encoder_width,
            "encoder_rates": list(own.encoder_rates),
            "latent_dim": own.latent_width,
            "decoder_dim": own.decoder_width,
            "decoder_rates": list(own.decoder_rates),
            "attn_window_size": own.window,
            "codebook_size": own.codebook_size,
            "codebook_dim": own.codebook_width,
            "vq_strides": list(own.strides),
            "noise": own.noise,
            "depthwise": own.depthwise,
        }
