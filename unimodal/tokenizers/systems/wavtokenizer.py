"""WavTokenizer (arXiv 2408.16532): SEANet, one codebook at 40 or 75 codes a second, and Vocos with attention.

The authors' decoder chooses the scale and shift of its norms by the number of a bandwidth. All bandwidths are the same
one, and theirs and transformers' inference take number 0; training draws one.

Shapes: B batch, T samples, N codes, D latent width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unimodal.tokenizers.parts.trunks.seanet import SeanetEncoder, SeanetSettings
from unimodal.tokenizers.parts.trunks.vocos import VocosDecoder, VocosSettings
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import WEIGHT_NORM, KeyMap
from unimodal.tokenizers.systems.residual_books import ResidualBooks
from unimodal.tokenizers.systems.seanet_names import (
    list_book_rules,
    list_seanet_rules,
    list_vocos_rules,
    read_started,
    write_started,
)
from unimodal.tokenizers.systems.sound import SoundTokenizer

TRUNK = SeanetSettings(width=32, latent_width=512)
DECODER = VocosSettings(
    channels_in=512, width=768, inner_width=2304, num_layers=12, num_conditions=4, attended=True, window_size=1280,
    hop=320, padding="same",
)  # fmt: skip
MODEL_TYPE = "wavtokenizer"  # of transformers' config.json


class WavTokenizerConfig(ResidualBooks):
    family: Literal["wavtokenizer"] = "wavtokenizer"
    sample_rate_hz: int = Field(default=24000, gt=0)
    trunk: SeanetSettings = TRUNK
    decoder: VocosSettings = DECODER
    num_codebooks: int = Field(default=1, ge=1)
    codebook_size: int = Field(default=4096, ge=2)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        if self.decoder.channels_in != self.trunk.latent_width:
            raise ValueError(
                f"the trunk gives {self.trunk.latent_width} channels and the decoder takes {self.decoder.channels_in}"
            )
        if self.decoder.hop != self.trunk.samples_per_code or self.decoder.padding != "same":
            raise ValueError(
                f"a code is {self.trunk.samples_per_code} samples; the decoder's hop is {self.decoder.hop} and its "
                f'padding {self.decoder.padding!r}: give the same hop, and "same"'
            )
        return self


class WavTokenizer(SoundTokenizer):
    """Sound ⇄ codes of one codebook."""

    config_class: ClassVar[type[TokenizerConfig]] = WavTokenizerConfig
    key_map = KeyMap(
        rules=(
            *list_seanet_rules("encoder", "feature_extractor.encodec.encoder"),
            *list_book_rules("feature_extractor.encodec.quantizer"),
            *list_vocos_rules("decoder"),
        ),
        # their unused decoder, and what their trainer holds beside
        ignored=(r"feature_extractor\.encodec\.decoder\..*", r"(?!feature_extractor|backbone|head).*"),
        endings=WEIGHT_NORM,
    )
    config: WavTokenizerConfig
    residual = True

    def __init__(self, config: WavTokenizerConfig):
        super().__init__(config)
        self.encoder, self.decoder = SeanetEncoder(config.trunk), VocosDecoder(config.decoder)
        self.quantizer = config.make_quantizer(config.trunk.latent_width)
        sizes = (config.codebook_size,) * config.num_codebooks
        self.describe(sizes, config.trunk.samples_per_code, config.sample_rate_hz)

    def encode_latents(self, x: Tensor) -> Tensor:
        """[B, 1, T] → [B, N, D]."""
        return self.encoder(x).transpose(1, 2)

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decoder(self.quantizer.look_up(ids).transpose(1, 2))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        made = self.quantizer(self.encode_latents(x), generator=generator)
        conditions = self.config.decoder.num_conditions
        drawn = int(torch.randint(conditions, (), generator=generator)) if self.training and conditions else 0
        return Reconstruction(self.decoder(made.values.transpose(1, 2), drawn), made.loss, made.ids, made.numbers)

    # ---- the authors' files, and transformers'

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> WavTokenizerConfig:
        """The authors' YAML, or the config.json of transformers' class."""
        if fields.get("model_type") == MODEL_TYPE:
            return _read_transformers_config(AuthorsFields(fields))
        model = AuthorsFields(fields).open("model", "init_args")
        features = model.open("feature_extractor", "init_args")
        backbone, head = model.open("backbone", "init_args"), model.open("head", "init_args")
        strides = features.take_integers("dowmsamples", features.take_integers("ratios", TRUNK.strides))
        trunk = SeanetSettings(
            width=features.take_integer("n_filters", TRUNK.width),
            latent_width=features.take_integer("dimension", backbone.take_integer("input_channels", 512)),
            strides=strides,
        )
        decoder = VocosSettings(
            channels_in=backbone.take_integer("input_channels", DECODER.channels_in),
            width=backbone.take_integer("dim", DECODER.width),
            inner_width=backbone.take_integer("intermediate_dim", DECODER.inner_width),
            num_layers=backbone.take_integer("num_layers", DECODER.num_layers),
            num_conditions=backbone.take_integer("adanorm_num_embeddings", 0),
            attended=True,
            window_size=head.take_integer("n_fft", 4 * trunk.samples_per_code),
            hop=head.take_integer("hop_length", trunk.samples_per_code),
            padding="center" if head.take_text("padding", "same") == "center" else "same",
        )
        return WavTokenizerConfig(
            trunk=trunk,
            decoder=decoder,
            sample_rate_hz=model.take_integer("sample_rate", 24000),
            num_codebooks=features.take_integer("num_quantizers", 1),
            codebook_size=features.take_integer("vq_bins", 16384),
        )

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        return super().from_authors(read_started(_rename_transformers(weights, config)), config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        return write_started(super().collect_authors_state())


def _read_transformers_config(own: AuthorsFields) -> WavTokenizerConfig:
    if own.take_text("norm_type", "weight_norm") != "weight_norm":
        raise ValueError("this WavTokenizer has another norm than weight_norm, which no released one has")
    trunk = SeanetSettings(
        width=own.take_integer("num_filters", 32),
        latent_width=own.take_integer("hidden_size", 512),
        strides=own.take_integers("upsampling_ratios", (6, 5, 5, 4)),
        num_blocks=own.take_integer("num_residual_layers", 1),
        dilation_base=own.take_integer("dilation_growth_rate", 2),
        kernel=own.take_integer("kernel_size", 7),
        last_kernel=own.take_integer("last_kernel_size", 7),
        block_kernel=own.take_integer("residual_kernel_size", 3),
        compress=own.take_integer("compress", 2),
        true_skip=not own.take_flag("use_conv_shortcut", True),
        lstm_layers=own.take_integer("num_lstm_layers", 2),
        causal=own.take_flag("use_causal_conv", False),
    )
    decoder = VocosSettings(
        channels_in=trunk.latent_width,
        width=own.take_integer("decoder_hidden_size", 768),
        inner_width=own.take_integer("decoder_intermediate_size", 2304),
        num_layers=own.take_integer("decoder_num_layers", 12),
        num_conditions=own.take_integer("adanorm_num_embeddings", 4),
        attended=True,
        num_groups=own.take_integer("decoder_attention_num_groups", 32),
        window_size=4 * trunk.samples_per_code,
        hop=trunk.samples_per_code,
        padding="same",
    )
    return WavTokenizerConfig(
        trunk=trunk,
        decoder=decoder,
        sample_rate_hz=own.take_integer("sampling_rate", 24000),
        codebook_size=own.take_integer("codebook_size", 4096),
    )


def _rename_transformers(weights: Mapping[str, Tensor], config: SystemConfig) -> dict[str, Tensor]:
    """Weights of transformers' class under the authors' names; the authors' own as they are."""
    start = "encoder_model."
    if not any(name.startswith(start) for name in weights):
        return dict(weights)
    assert isinstance(config, WavTokenizerConfig)
    encodec, found = "feature_extractor.encodec.", {}
    for name, tensor in weights.items():
        if name.startswith(start + "encoder.layers."):
            name = name.replace(start + "encoder.layers.", encodec + "encoder.model.").replace(".conv.", ".conv.conv.")
        elif name.startswith(start + "quantizer.codebook."):
            name = name.replace(start + "quantizer.codebook.", encodec + "quantizer.vq.layers.0._codebook.")
        found[name.replace("head.linear.", "head.out.")] = tensor
    return {"head.istft.window": torch.hann_window(config.decoder.window_size), **found}
