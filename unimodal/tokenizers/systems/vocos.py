"""Vocos (arXiv 2306.00814): a vocoder, of mel bands and of EnCodec's codes.

- `VocosMel` takes its bands as continuous latents: it computes them from a sound and turns them, or those of another
  model, back to sound.
- `VocosEncodec` is EnCodec's frozen encoder and books with Vocos in its decoder's place. The number of books of a code
  chooses the scale and shift of the decoder's norms.

Shapes: B batch, T samples, N frames or codes, M mel bands, G groups, D latent width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.parts.heads.spectrum import SpectrumPadding
from unimodal.tokenizers.parts.mel_bands import MelBands
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
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
from unimodal.tokenizers.systems.sound import SoundConfig, SoundLatents, SoundTokenizer

QUIETEST = 1e-7
ENCODEC = "feature_extractor.encodec."


class VocosMelConfig(SoundConfig):
    """decoder: its channels_in are the mel bands, its window and hop theirs too."""

    family: Literal["vocos_mel"] = "vocos_mel"
    sample_rate_hz: int = Field(default=24000, gt=0)
    decoder: VocosSettings = VocosSettings()


class VocosMel(SoundLatents):
    """Sound ⇄ log-mel bands [B, N, M]. With padding "center", N frames are (N − 1) hops of sound."""

    config_class: ClassVar[type[TokenizerConfig]] = VocosMelConfig
    key_map = KeyMap(
        rules=(
            (r"mel\.window", "feature_extractor.mel_spec.spectrogram.window"),
            (r"mel\.bands", "feature_extractor.mel_spec.mel_scale.fb"),
            *list_vocos_rules("decoder"),
        )
    )
    config: VocosMelConfig

    def __init__(self, config: VocosMelConfig):
        super().__init__(config)
        sizes = config.decoder
        self.decoder = VocosDecoder(sizes)
        self.mel = MelBands(
            config.sample_rate_hz,
            sizes.window_size,
            sizes.hop,
            sizes.channels_in,
            padding=sizes.padding,
            persistent=True,
        )
        self.describe(sizes.channels_in, sizes.hop, config.sample_rate_hz)
        self.fewest_samples = max(self.mel.fewest_samples, sizes.hop)

    def count_samples(self, num_codes: int) -> int:
        return (num_codes - (self.config.decoder.padding == "center")) * self.samples_per_code

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.mel(x[:, 0]).clamp_min(QUIETEST).log().transpose(1, 2)

    def decode_equal(self, values: Tensor) -> Tensor:
        if self.count_samples(values.shape[1]) < 1:
            raise ValueError("one frame of mel bands is no sound; give at least two")
        return self.decoder(values.transpose(1, 2))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        return Reconstruction(self.decode_equal(self.encode_equal(self.pad_equal(x, False))), x.new_zeros(()))

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> VocosMelConfig:
        own, decoder = _read_vocos(fields)
        features = own.open("feature_extractor", "init_args")
        if features.take_integer("n_fft", decoder.window_size) != decoder.window_size:
            raise ValueError("the mel bands and the head of this Vocos have windows of different lengths")
        return VocosMelConfig(decoder=decoder, sample_rate_hz=features.take_integer("sample_rate", 24000))


class VocosEncodecConfig(ResidualBooks):
    """trunk: of EnCodec's encoder. books_of_conditions: how many books each condition of the decoder stands for; a
    code of a number between is decoded by the next condition. train_codebooks: of the decoder's copy of the rows."""

    family: Literal["vocos_encodec"] = "vocos_encodec"
    sample_rate_hz: int = Field(default=24000, gt=0)
    trunk: SeanetSettings = SeanetSettings(causal=True)
    decoder: VocosSettings = VocosSettings(
        channels_in=128, width=384, inner_width=1152, num_conditions=4, window_size=1280, hop=320, padding="same"
    )
    num_codebooks: int = Field(default=16, ge=1)
    books_of_conditions: tuple[int, ...] = Field(default=(2, 4, 8, 16), min_length=1)
    train_codebooks: bool = False

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        if len(self.books_of_conditions) != self.decoder.num_conditions:
            raise ValueError(f"{self.decoder.num_conditions} conditions need as many books_of_conditions")
        if max(self.books_of_conditions) != self.num_codebooks:
            raise ValueError(f"the richest condition has all {self.num_codebooks} books")
        if self.decoder.channels_in != self.trunk.latent_width or self.decoder.hop != self.trunk.samples_per_code:
            raise ValueError(
                "the decoder takes the latents of the trunk: the same width, and a hop of a code's samples"
            )
        return self


class VocosEncodec(SoundTokenizer):
    """Sound ⇄ EnCodec's residual codes, drawn by Vocos."""

    config_class: ClassVar[type[TokenizerConfig]] = VocosEncodecConfig
    key_map = KeyMap(
        rules=(
            *list_seanet_rules("encoder", ENCODEC + "encoder"),
            *list_book_rules(ENCODEC + "quantizer"),
            (r"codebook_weights", "feature_extractor.codebook_weights"),
            *list_vocos_rules("decoder"),
        ),
        # EnCodec's own decoder, and books that Vocos does not use
        ignored=(re.escape(ENCODEC) + r"decoder\..*", re.escape(ENCODEC) + r"quantizer\.vq\.layers\..*"),
        endings=WEIGHT_NORM,
    )
    config: VocosEncodecConfig
    residual = True

    def __init__(self, config: VocosEncodecConfig):
        super().__init__(config)
        self.encoder, self.decoder = SeanetEncoder(config.trunk), VocosDecoder(config.decoder)
        self.quantizer = config.make_quantizer(config.trunk.latent_width)
        for parameter in (*self.encoder.parameters(), *self.quantizer.parameters()):
            parameter.requires_grad_(False)
        rows = torch.cat([self._read_rows(level) for level in range(config.num_codebooks)])
        self.codebook_weights = nn.Parameter(rows, requires_grad=config.train_codebooks)  # [G · C, D]
        sizes = (config.codebook_size,) * config.num_codebooks
        self.describe(sizes, config.trunk.samples_per_code, config.sample_rate_hz)

    def _read_rows(self, level: int) -> Tensor:
        book = self.quantizer.book(level)
        assert isinstance(book, VectorQuantizer)
        return book.codebook.detach()

    def train(self, mode: bool = True) -> Self:
        """EnCodec's part stays in eval mode: it is frozen."""
        super().train(mode)
        self.encoder.eval()
        self.quantizer.eval()
        return self

    def choose_condition(self, num_books: int) -> int:
        """The condition of so many books, or of the next larger number."""
        offered = self.config.books_of_conditions
        return offered.index(min(count for count in offered if count >= num_books))

    def encode_latents(self, x: Tensor) -> Tensor:
        """[B, 1, T] → [B, N, D]."""
        return self.encoder(x).transpose(1, 2)

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids

    def look_up(self, ids: Tensor) -> Tensor:
        """Codes int64 [B, N, G'] → the sum of the decoder's own rows, [B, N, D]."""
        starts = torch.arange(ids.shape[-1], device=ids.device) * self.config.codebook_size
        return nn.functional.embedding(ids + starts, self.codebook_weights).sum(-2)

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decoder(self.look_up(ids).transpose(1, 2), self.choose_condition(ids.shape[-1]))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        """In training with the books of a condition that is drawn."""
        with torch.no_grad():
            ids = self.encode_equal(x)
        offered = self.config.books_of_conditions
        drawn = int(torch.randint(len(offered), (), generator=generator)) if self.training else len(offered) - 1
        return Reconstruction(self.decode_equal(ids[..., : offered[drawn]]), x.new_zeros(()), ids)

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> VocosEncodecConfig:
        own, decoder = _read_vocos(fields)
        features = own.open("feature_extractor", "init_args")
        encodec = own.open("encodec") if own.has("encodec") else AuthorsFields({})
        if features.take_text("encodec_model", "encodec_24khz") != "encodec_24khz":
            raise ValueError("this Vocos is one of EnCodec of 48 kHz, which has two channels; use that of 24 kHz")
        trunk = SeanetSettings(
            width=encodec.take_integer("n_filters", 32),
            latent_width=encodec.take_integer("dimension", decoder.channels_in),
            strides=encodec.take_integers("ratios", (8, 5, 4, 2)),
            lstm_layers=encodec.take_integer("lstm", 2),
            causal=encodec.take_flag("causal", True),
        )
        rate, size = encodec.take_integer("sample_rate", 24000), encodec.take_integer("bins", 1024)
        bits = -(-rate // trunk.samples_per_code) * (size - 1).bit_length()  # a second of one book
        most = encodec.take_integer("n_q", 32)
        bandwidths = _read_numbers(features.fields.get("bandwidths", [1.5, 3.0, 6.0, 12.0]))
        books = tuple(min(most, max(1, int(kilobits * 1000 // bits))) for kilobits in bandwidths)
        return VocosEncodecConfig(
            sample_rate_hz=rate,
            trunk=trunk,
            decoder=decoder,
            num_codebooks=max(books),
            codebook_size=size,
            books_of_conditions=books,
            train_codebooks=features.take_flag("train_codebooks", False),
        )

    @classmethod
    def lacks_companion(cls, weights: Mapping[str, Tensor]) -> bool:
        return not any(name.startswith(ENCODEC) for name in weights)

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """companion: EnCodec's weights, by its authors' names or by transformers'."""
        return {**weights, **{ENCODEC + _rename_encodec(name): tensor for name, tensor in companion.items()}}

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        return super().from_authors(read_started(weights), config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        return write_started(super().collect_authors_state())


def _rename_encodec(name: str) -> str:
    """A name of transformers' EnCodec as its authors have it; theirs stay."""
    name = re.sub(r"^(encoder|decoder)\.layers\.(.*\.)?conv\.", r"\1.model.\2conv.conv.", name)
    name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
    return re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)


def _read_numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, int | float) for each in value):
        raise ValueError(f"the authors' config has bandwidths {value!r} where a list of numbers belongs")
    return tuple(float(each) for each in value)


def _read_vocos(fields: Mapping[str, object]) -> tuple[AuthorsFields, VocosSettings]:
    """The model's own fields and the settings of trunk and head, of a config.yaml or of a training config."""
    own = AuthorsFields(fields).open("model", "init_args")
    backbone, head = own.open("backbone", "init_args"), own.open("head", "init_args")
    plain = VocosSettings()
    padding: SpectrumPadding = "center" if head.take_text("padding", "same") == "center" else "same"
    return own, VocosSettings(
        channels_in=backbone.take_integer("input_channels", plain.channels_in),
        width=backbone.take_integer("dim", plain.width),
        inner_width=backbone.take_integer("intermediate_dim", plain.inner_width),
        num_layers=backbone.take_integer("num_layers", plain.num_layers),
        num_conditions=backbone.take_integer("adanorm_num_embeddings", 0),
        window_size=head.take_integer("n_fft", plain.window_size),
        hop=head.take_integer("hop_length", plain.hop),
        padding=padding,
    )
