"""BigCodec (arXiv 2409.05377): speech at 80 codes a second of one codebook, searched by cosine in 8 dimensions.

The authors fill the last code up with silence, and a sound of whole codes with one code more (`published=True`).

Shapes: B batch, T samples, N codes, G groups, D latent width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.quantizers.projected import ProjectedQuantizer
from unimodal.tokenizers.parts.quantizers.residual import ResidualQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.parts.trunks.snake import AntiAliased
from unimodal.tokenizers.sounds import pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.bigcodec_networks import BigCodecSettings, BigDecoder, BigEncoder
from unimodal.tokenizers.systems.key_map import WEIGHT_NORM, KeyMap
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer

SIZES = BigCodecSettings()


class BigCodecConfig(SoundConfig):
    """networks: of encoder and decoder. code_width: dimensions of the codebook. commitment: of the quantizer's loss."""

    family: Literal["bigcodec"] = "bigcodec"
    networks: BigCodecSettings = SIZES
    num_codebooks: int = Field(default=1, ge=1)
    codebook_size: int = Field(default=8192, ge=2)
    code_width: int = Field(default=8, ge=1)
    commitment: float = Field(default=0.25, ge=0)

    @model_validator(mode="after")
    def check_rates(self) -> Self:
        there, back = self.networks.strides, self.networks.decoder_strides
        if math.prod(there) != math.prod(back):
            raise ValueError(f"strides {there} and decoder_strides {back} multiply to different numbers")
        return self


class BigCodec(SoundTokenizer):
    """Speech ⇄ codes of one codebook."""

    config_class: ClassVar[type[TokenizerConfig]] = BigCodecConfig
    key_map = KeyMap(
        rules=(
            (r"encoder\.(.*)", r"CodecEnc.\1"),
            (r"decoder\.(.*)", r"generator.\1"),
            (r"quantizer\.books\.(\d+)\.book\.codebook", r"generator.quantizer.layers.\1._codebook.weight"),
            (r"quantizer\.books\.(.*)", r"generator.quantizer.layers.\1"),
        ),
        ignored=(r".*\.filter", r"model\.(spec_)?discriminator\..*"),
        endings=WEIGHT_NORM,
    )
    config: BigCodecConfig
    residual = True

    def __init__(self, config: BigCodecConfig):
        super().__init__(config)
        networks, width = config.networks, config.networks.latent_width
        self.encoder, self.decoder = BigEncoder(networks), BigDecoder(networks)
        books = [
            ProjectedQuantizer(
                VectorQuantizer(config.codebook_size, config.code_width, "cosine", commitment=config.commitment),
                width,
                weight_norm(nn.Linear(width, config.code_width)),
                weight_norm(nn.Linear(config.code_width, width)),
            )
            for _ in range(config.num_codebooks)
        ]
        for book in books:
            inner = book.book
            assert isinstance(inner, VectorQuantizer)
            nn.init.normal_(inner.codebook)
        self.quantizer = ResidualQuantizer(books, through_levels=True)
        self.describe((config.codebook_size,) * config.num_codebooks, networks.samples_per_code, config.sample_rate_hz)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        spare = -x.shape[-1] % self.samples_per_code
        if published and not spare:
            spare = self.samples_per_code
        return pad_samples(x, x.shape[-1] + spare)

    def encode_latents(self, x: Tensor) -> Tensor:
        """[B, 1, T] → [B, N, D]."""
        return self.encoder(x).transpose(1, 2)

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decoder(self.quantizer.look_up(ids).transpose(1, 2))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        made = self.quantizer(self.encode_latents(self.pad_equal(x, False)), generator=generator)
        return Reconstruction(self.decoder(made.values.transpose(1, 2)), made.loss, made.ids, made.numbers)

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> BigCodecConfig:
        own = AuthorsFields(fields)
        encoder, decoder = own.open("codec_encoder", "encoder"), own.open("codec_decoder", "decoder")
        layers = encoder.take_integer("rnn_num_layers", SIZES.lstm_layers)
        networks = BigCodecSettings(
            width=encoder.take_integer("ngf", SIZES.width),
            latent_width=encoder.take_integer("out_channels", SIZES.latent_width),
            decoder_width=decoder.take_integer("upsample_initial_channel", SIZES.decoder_width),
            strides=encoder.take_integers("up_ratios", SIZES.strides),
            decoder_strides=decoder.take_integers("up_ratios", SIZES.decoder_strides),
            dilations=encoder.take_integers("dilations", SIZES.dilations),
            lstm_layers=layers if encoder.take_flag("use_rnn", True) else 0,
            bidirectional=encoder.take_flag("rnn_bidirectional", False),
        )
        return BigCodecConfig(
            networks=networks,
            num_codebooks=decoder.take_integer("vq_num_quantizers", 1),
            codebook_size=decoder.take_integer("codebook_size", 8192),
            code_width=decoder.take_integer("codebook_dim", 8),
            commitment=decoder.take_number("vq_commit_weight", 0.25),
        )

    def collect_authors_state(self) -> dict[str, Tensor]:
        """With the low-pass filters, which the authors' code stores beside every activation."""
        state = super().collect_authors_state()
        for ours, theirs in (("encoder", "CodecEnc"), ("decoder", "generator")):
            for name, module in self.get_submodule(ours).named_modules(prefix=theirs):
                if isinstance(module, AntiAliased):
                    for place in ("upsample", "downsample.lowpass"):
                        state[f"{name}.{place}.filter"] = module.kernel.clone()
        return state
