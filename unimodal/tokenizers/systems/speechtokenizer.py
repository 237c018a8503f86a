"""SpeechTokenizer (arXiv 2308.16692): SEANet and residual codes, the first of which is distilled to say what is said.

DM-Codec (arXiv 2410.15017) is the same network, distilled from a language model's features too. The authors' code has
bidirectional LSTMs in the encoder alone.

Shapes: B batch, T samples, N codes, G groups, D latent width, S width of a teacher's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import pass_straight_through
from unimodal.tokenizers.parts.trunks.seanet import SeanetDecoder, SeanetEncoder, SeanetSettings
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import WEIGHT_NORM, KeyMap
from unimodal.tokenizers.systems.residual_books import ResidualBooks
from unimodal.tokenizers.systems.seanet_names import (
    list_book_rules,
    list_seanet_rules,
    read_started,
    write_started,
)
from unimodal.tokenizers.systems.sound import SoundTokenizer

SIZES = SeanetSettings(width=64, latent_width=1024, bidirectional=True)


class SpeechTokenizerConfig(ResidualBooks):
    """trunk: of encoder and decoder. semantic_width: S, what the first book's vectors are projected to beside a
    teacher's; None for features of the latent width as they are."""

    family: Literal["speechtokenizer"] = "speechtokenizer"
    trunk: SeanetSettings = SIZES
    semantic_width: int | None = Field(default=768, ge=1)


class SpeechTokenizer(SoundTokenizer):
    """Speech ⇄ residual codes; the first of a step says what is said, the others how it sounds."""

    config_class: ClassVar[type[TokenizerConfig]] = SpeechTokenizerConfig
    key_map = KeyMap(
        rules=(
            *list_seanet_rules("encoder", "encoder"),
            *list_seanet_rules("decoder", "decoder"),
            *list_book_rules("quantizer"),
        ),
        endings=WEIGHT_NORM,
    )
    config: SpeechTokenizerConfig
    residual = True

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__(config)
        trunk = config.trunk
        self.encoder, self.decoder = SeanetEncoder(trunk), SeanetDecoder(trunk)
        self.quantizer = config.make_quantizer(trunk.latent_width)
        same = config.semantic_width is None
        self.transform = nn.Identity() if same else nn.Linear(trunk.latent_width, config.semantic_width or 0)
        self.describe((config.codebook_size,) * config.num_codebooks, trunk.samples_per_code, config.sample_rate_hz)

    def encode_latents(self, x: Tensor) -> Tensor:
        """[B, 1, T] → [B, N, D]."""
        return self.encoder(x).transpose(1, 2)

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decoder(self.quantizer.look_up(ids).transpose(1, 2))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        """features: "semantic", what the first book says, [B, N, S]: to be compared with a teacher's."""
        z = self.encode_latents(x)
        made = self.quantizer(z, generator=generator)
        first = pass_straight_through(z, self.quantizer.look_up(made.ids[..., :1]))
        decoded = self.decoder(made.values.transpose(1, 2))
        return Reconstruction(decoded, made.loss, made.ids, made.numbers, {"semantic": self.transform(first)})

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SpeechTokenizerConfig:
        own = AuthorsFields(fields)
        activation = own.take_text("activation", "ELU").lower()
        if activation not in ("elu", "snake"):
            raise ValueError(f"the authors' config has the activation {activation!r}; ELU and Snake are known")
        trunk = SeanetSettings(
            width=own.take_integer("n_filters", SIZES.width),
            latent_width=own.take_integer("dimension", SIZES.latent_width),
            strides=own.take_integers("strides", SIZES.strides),
            num_blocks=own.take_integer("n_residual_layers", SIZES.num_blocks),
            dilation_base=own.take_integer("dilation_base", SIZES.dilation_base),
            block_kernel=own.take_integer("residual_kernel_size", SIZES.block_kernel),
            lstm_layers=own.take_integer("lstm_layers", SIZES.lstm_layers),
            bidirectional=own.take_flag("bidirectional", SIZES.bidirectional),
            activation="snake" if activation == "snake" else "elu",
        )
        semantic = own.take_integer("semantic_dimension", 768)
        return SpeechTokenizerConfig(
            trunk=trunk,
            semantic_width=None if semantic == trunk.latent_width else semantic,
            sample_rate_hz=own.take_integer("sample_rate", 16000),
            num_codebooks=own.take_integer("n_q", 8),
            codebook_size=own.take_integer("codebook_size", 1024),
        )

    def write_authors_config(self) -> dict[str, object] | None:
        config, trunk = self.config, self.config.trunk
        said = {"padding", "causal", "normalized", "true_skip", "compress", "kernel", "last_kernel"}
        if any(getattr(trunk, name) != getattr(SIZES, name) for name in said):
            return None
        return {
            "n_filters": trunk.width,
            "strides": list(trunk.strides),
            "dimension": trunk.latent_width,
            "semantic_dimension": config.semantic_width or trunk.latent_width,
            "bidirectional": trunk.bidirectional,
            "dilation_base": trunk.dilation_base,
            "residual_kernel_size": trunk.block_kernel,
            "n_residual_layers": trunk.num_blocks,
            "lstm_layers": trunk.lstm_layers,
            "activation": "Snake" if trunk.activation == "snake" else "ELU",
            "codebook_size": config.codebook_size,
            "n_q": config.num_codebooks,
            "sample_rate": config.sample_rate_hz,
        }

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        return super().from_authors(read_started(weights), config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        return write_started(super().collect_authors_state())
