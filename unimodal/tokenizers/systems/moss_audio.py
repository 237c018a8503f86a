"""MOSS-Audio-Tokenizer: causal transformers over patches of the waveform, and residual codes (its authors call the
architecture CAT). No convolution over time: all is attention that looks back a fixed time.

Where the authors' code differs from ours, ``published=True`` follows theirs:

- A sound that is no whole number of codes: theirs leaves the last, partly filled code out; ours keeps it.
- Streaming: theirs keeps the keys of exactly as many steps as attention looks back and writes those of a piece before
  it reads, so that results hang on how the stream is cut; theirs takes no piece longer than that. Ours keeps what the
  whole would see.

Shapes: B batch, T samples, N codes, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.projected import ProjectedQuantizer
from unimodal.tokenizers.parts.quantizers.residual import ResidualQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.parts.streaming import BlockStage, ChainStage, PointwiseStage, Stage
from unimodal.tokenizers.parts.trunks.causal import CausalTransformer, PatchFold, PatchUnfold
from unimodal.tokenizers.sounds import pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer


class CausalSizes(BaseModel):
    """A transformer and the patch beside it: before it in the encoder, behind it in the decoder. output_width: channels
    of its output, which a decoder's patch divides among its steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    patch: int = Field(ge=1)
    width: int = 768
    num_heads: int = 12
    num_layers: int = 12
    inner: int = 3072
    output_width: int = Field(ge=1)


ENCODER = (
    CausalSizes(patch=240, output_width=384),
    CausalSizes(patch=2, output_width=384),
    CausalSizes(patch=2, output_width=640),
    CausalSizes(patch=2, width=1280, num_heads=20, num_layers=32, inner=5120, output_width=768),
)
DECODER = (
    CausalSizes(patch=2, width=1280, num_heads=20, num_layers=32, inner=5120, output_width=1280),
    CausalSizes(patch=2, output_width=768),
    CausalSizes(patch=2, output_width=768),
    CausalSizes(patch=240, output_width=240),
)


class MossAudioConfig(SoundConfig):
    """context_s: how far attention looks back, at every rate. num_codebooks: how many of the `num_books` are used.
    search: how the nearest code is found; "cosine" in the released weights. dropout: share of sounds that keep a random
    number of books in training."""

    family: Literal["moss_audio"] = "moss_audio"
    sample_rate_hz: int = 24000
    context_s: float = Field(default=10.0, gt=0)
    encoder: tuple[CausalSizes, ...] = ENCODER
    decoder: tuple[CausalSizes, ...] = DECODER
    max_period: float = 10000.0
    layer_scale: float = 0.01
    book_width: int = 512
    num_books: int = Field(default=32, ge=1)
    num_codebooks: int = Field(default=32, ge=1)
    codebook_size: int = 1024
    codebook_width: int = 8
    search: Literal["cosine", "euclidean"] = "cosine"
    commitment: float = 0.25
    dropout: float = 0.0


class MossAudioTokenizer(SoundTokenizer):
    """``encode``: float [B, 1, T] → Codes [B, N, G], coarse to fine; fewer groups decode to a coarser sound."""

    config_class: ClassVar[type[TokenizerConfig]] = MossAudioConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"(.*)\.layers\.(.*self_attn\.(?:in|out)_proj)\.weight", r"\1.transformer.layers.\2s.0.weight"),
            (r"(.*)\.layers\.(.*)", r"\1.transformer.layers.\2"),
            (r"quantizer\.(in|out)_proj\.(.*)", r"quantizer.\1put_proj.\2"),
            (r"quantizer\.book\.books\.(\d+)\.book\.codebook", r"quantizer.quantizers.\1.codebook.weight"),
            (r"quantizer\.book\.books\.(.*)", r"quantizer.quantizers.\1"),
        )
    )
    config: MossAudioConfig
    residual = True

    def __init__(self, config: MossAudioConfig):
        super().__init__(config)
        hop, up = prod(sizes.patch for sizes in config.encoder), prod(sizes.patch for sizes in config.decoder)
        if hop != up:
            raise ValueError(f"patches of the encoder multiply to {hop} samples a code and the decoder's to {up}")
        if config.num_codebooks > config.num_books:
            raise ValueError(f"num_codebooks is {config.num_codebooks}; there are {config.num_books} books")
        rate, width = float(config.sample_rate_hz), 1
        layers: list[nn.Module] = []
        for sizes in config.encoder:
            rate /= sizes.patch
            layers += [PatchFold(sizes.patch), self._make_transformer(width * sizes.patch, sizes, rate)]
            width = sizes.output_width
        self.encoder = nn.ModuleList(layers)
        latent_width, layers = width, []
        for sizes in config.decoder:
            layers += [self._make_transformer(width, sizes, rate), PatchUnfold(sizes.patch)]
            rate *= sizes.patch
            width = sizes.output_width // sizes.patch
        if width != 1:
            raise ValueError(f"the decoder ends with {width} channels; the last output_width is its patch")
        self.decoder = nn.ModuleList(layers)
        inner = config.book_width
        books = [
            self._project(VectorQuantizer(
                config.codebook_size, config.codebook_width, config.search, commitment=config.commitment
            ), inner)
            for _ in range(config.num_books)
        ]  # fmt: skip
        residual = ResidualQuantizer(books, dropout=config.dropout, through_levels=True)
        self.quantizer = self._project(residual, latent_width)
        self.describe((config.codebook_size,) * config.num_codebooks, hop, config.sample_rate_hz)

    def _make_transformer(self, input_width: int, sizes: CausalSizes, rate: float) -> CausalTransformer:
        context, own = int(rate * self.config.context_s), self.config
        return CausalTransformer(
            input_width, sizes.output_width, sizes.width, sizes.num_heads, sizes.num_layers, sizes.inner, context,
            own.max_period, own.layer_scale,
        )  # fmt: skip

    @staticmethod
    def _project(book: ResidualQuantizer | VectorQuantizer, width: int) -> ProjectedQuantizer:
        """A quantizer between maps, where its width is another."""
        same = book.num_dims == width
        return ProjectedQuantizer(book, width, *((nn.Identity(), nn.Identity()) if same else ()))

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        hop = self.samples_per_code
        if not published:
            return pad_samples(x, -(-x.shape[-1] // hop) * hop)
        if x.shape[-1] < hop:
            raise ValueError(
                f"a sound of {x.shape[-1]} samples has no whole code of {hop} samples; leave published out"
            )
        return x[..., : x.shape[-1] // hop * hop]

    def encode_latents(self, x: Tensor) -> Tensor:
        """Sounds of whole codes, float [B, 1, T] → [B, N, D]."""
        for layer in self.encoder:
            x = layer(x)
        return x.transpose(1, 2)

    def decode_latents(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, D] → [B, 1, T], not clamped."""
        x = values.transpose(1, 2)
        for layer in self.decoder:
            x = layer(x)
        return x

    def encode_equal(self, x: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(x)).ids[..., : self.config.num_codebooks]

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.decode_latents(self.quantizer.look_up(ids))

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        made = self.quantizer(self.encode_latents(self.pad_equal(x, False)), generator=generator)
        return Reconstruction(self.decode_latents(made.values), made.loss, made.ids, made.numbers)

    # ---- piece by piece

    @property
    def can_stream(self) -> bool:
        return True

    def open_encoder(self, published: bool) -> Stage:
        def quantize(latents: Tensor) -> Tensor:
            return self.quantizer(latents.transpose(1, 2)).ids[..., : self.config.num_codebooks]

        stages = [layer.open_stage(ring=published) for layer in self.encoder]
        whole = BlockStage(self.samples_per_code, drop_rest=published)
        return ChainStage([whole, *stages, PointwiseStage(quantize, self.make_no_codes())])

    def open_decoder(self, published: bool) -> Stage:
        def look_up(ids: Tensor) -> Tensor:
            return self.quantizer.look_up(ids).transpose(1, 2)

        nothing = next(self.parameters()).new_zeros(1, self.quantizer.num_dims, 0)
        stages = [layer.open_stage(ring=published) for layer in self.decoder]
        return ChainStage([PointwiseStage(look_up, nothing), *stages])

    # ---- the authors' checkpoint

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        renamed = {
            name.replace("in_proj_weight", "in_projs.0.weight").replace(
                "self_attn.out_proj.weight", "self_attn.out_projs.0.weight"
            ): tensor
            for name, tensor in weights.items()
        }  # their code reads these names too
        return super().from_authors(renamed, config, source)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> MossAudioConfig:
        """Their config.json. ValueError for another norm, position or gate than the released ones."""
        own = AuthorsFields(fields)
        quantizer = own.open("quantizer_kwargs")
        encoder, scales = _read_sizes(fields, "encoder_kwargs", first_is_patch=True)
        decoder, more_scales = _read_sizes(fields, "decoder_kwargs", first_is_patch=False)
        if len(scales | more_scales) > 1:
            raise ValueError("all its transformers have one max_period and one layer_scale")
        max_period, layer_scale = next(iter(scales), (10000.0, 0.01))
        kind = quantizer.take_text("quantizer_type", own.take_text("quantizer_type", "rlfq"))
        if kind not in SEARCHES:
            raise ValueError(f"quantizer_type {kind!r} is not read; {', '.join(SEARCHES)} are")
        if quantizer.take_integer("input_dim", 768) != quantizer.take_integer("output_dim", 768):
            raise ValueError("its quantizer has another width behind than before it, which is not read")
        num_books = quantizer.take_integer("num_quantizers", 32)
        return MossAudioConfig(
            sample_rate_hz=own.take_integer("sampling_rate", 24000),
            context_s=own.take_number("causal_transformer_context_duration", 10.0),
            encoder=encoder or ENCODER,
            decoder=decoder or DECODER,
            max_period=max_period,
            layer_scale=layer_scale,
            book_width=quantizer.take_integer("rvq_dim", 512),
            num_books=num_books,
            num_codebooks=num_books,
            codebook_size=quantizer.take_integer("codebook_size", 1024),
            codebook_width=quantizer.take_integer("codebook_dim", 8),
            search=SEARCHES[kind],
        )


#: their names of quantizers → how the nearest code is found
SEARCHES: dict[str, Literal["cosine", "euclidean"]] = {
    "rlfq": "cosine", "random_prefix_rlfq": "cosine", "rvq": "euclidean", "spec_rvq": "euclidean",
}  # fmt: skip


def _read_sizes(
    fields: Mapping[str, object], name: str, first_is_patch: bool
) -> tuple[tuple[CausalSizes, ...], set[tuple[float, float]]]:
    """Their list of modules, patches and transformers by turns, and the (max_period, layer_scale) among them."""
    modules = fields.get(name)
    if modules is None:
        return (), set()
    if not isinstance(modules, list) or not all(isinstance(one, Mapping) for one in modules) or len(modules) % 2:
        raise ValueError(f"{name} is no list of patches and transformers by turns")
    found, scales = [], set()
    for at in range(0, len(modules), 2):
        pair = [AuthorsFields(one, f"{name}.{at}.") for one in modules[at : at + 2]]
        patch, own = pair if first_is_patch else pair[::-1]
        kinds = [one.take_text("module_type", "") for one in (patch, own)]
        if kinds != ["PatchedPretransform", "Transformer"]:
            raise ValueError(f"{name} has {' and '.join(kinds)} where a patch and a transformer are by turns")
        for setting, known in (("norm", "layer_norm"), ("positional_embedding", "rope"), ("gating", "none")):
            if own.take_text(setting, known) != known:
                raise ValueError(f"{name} has the {setting} {own.take_text(setting, known)}; only {known} is read")
        scales.add((own.take_number("max_period", 10000.0), own.take_number("layer_scale", 0.01)))
        found.append(
            CausalSizes(
                patch=patch.take_integer("patch_size", 0),
                width=own.take_integer("d_model", 0),
                num_heads=own.take_integer("num_heads", 0),
                num_layers=own.take_integer("num_layers", 0),
                inner=own.take_integer("dim_feedforward", 2048),
                output_width=own.take_integer("output_dimension", 0),
            )
        )
    return tuple(found), scales
