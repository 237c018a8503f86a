"""BEATs' acoustic tokenizer: labels of any sound, learned from a teacher's features (arXiv 2212.09058).

A transformer reads patches of a filter bank, and the direction of a small vector at each patch picks the nearest row of
a table. There is no decoder: the labels are what an audio model is trained to predict.

Shapes: B batch, T samples, F frames, M mel bands, P side of a patch, N = ⌊F / P⌋ · ⌊M / P⌋ codes, D width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions
from unimodal.tokenizers.parts.mel import KaldiFbank
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, select_real
from unimodal.tokenizers.parts.quantizers.upkeep import CodebookUpkeep
from unimodal.tokenizers.parts.ranks import add_over_ranks
from unimodal.tokenizers.parts.trunks.beats import BeatsEncoder, BeatsSizes
from unimodal.tokenizers.parts.windows import encode_windows
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer

NUM_MELS = 128
#: of Kaldi's filter bank over the authors' sounds, which are scaled to 16 bits
SCALE, MEAN, DEVIATION = 2**15, 15.41663, 6.55582
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
COUNTERS = r"quantize\.(embedding\.)?(cluster_size|embed_avg)"


class BeatsConfig(SoundConfig):
    """The settings of the authors' `TokenizersConfig`. embed_width: of a patch before the projection to width.
    commitment, decay: of the quantizer. window_frames, overlap_frames: of long sounds, 100 a second."""

    family: Literal["beats"] = "beats"
    patch_size: int = Field(default=16, ge=1)
    embed_width: int = Field(default=512, ge=1)
    embed_bias: bool = False
    width: int = Field(default=768, ge=1)
    num_layers: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    inner: int = Field(default=3072, ge=1)
    conv_positions: int = Field(default=128, ge=1)
    conv_groups: int = Field(default=16, ge=1)
    num_buckets: int = Field(default=320, ge=0)
    max_distance: int = Field(default=1280, ge=1)
    gated: bool = True
    norm_first: bool = False
    deep: bool = True
    codebook_size: int = Field(default=1024, ge=2)
    code_width: int = Field(default=256, ge=1)
    commitment: float = 1.0
    decay: float = Field(default=0.99, gt=0, lt=1)
    window_frames: int = Field(default=3008, ge=1)
    overlap_frames: int = Field(default=416, ge=0)

    @property
    def can_decode(self) -> bool:
        return False

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for what does not divide, and for another rate."""
        for what, count in (("num_heads", self.num_heads), ("conv_groups", self.conv_groups)):
            if self.width % count:
                raise ValueError(f"{what} {count} does not divide a width of {self.width}")
        if NUM_MELS % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide {NUM_MELS} bands")
        unit = 2 * self.patch_size
        if self.window_frames % unit or self.overlap_frames % unit or self.overlap_frames >= self.window_frames:
            raise ValueError(
                f"window_frames {self.window_frames} and overlap_frames {self.overlap_frames} are not two multiples of "
                f"{unit}, the first larger"
            )
        if self.sample_rate_hz != KaldiFbank.sample_rate_hz:
            raise ValueError(f"BEATs hears sounds of {KaldiFbank.sample_rate_hz} Hz; sample_rate_hz is not to be set")
        return self


class MeanDirections(VectorQuantizer):
    """Rows that are learned without a gradient: each goes a little toward the mean of the unit vectors that chose it,
    and is brought back to length 1. They begin as cluster means of the first vectors of training, by cosine."""

    def __init__(self, codebook_size: int, num_dims: int, commitment: float, decay: float):
        super().__init__(codebook_size, num_dims, normalize_latents=True, commitment=commitment)
        self.codebook.requires_grad_(False)
        self.learned_by_gradient, self.decay = False, decay
        self.register_buffer("started", torch.zeros(1))

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        if self.training and not bool(self.get_buffer("started")):
            upkeep = CodebookUpkeep(self.codebook_size, self.num_dims, kmeans_start=True, unit=True).to(z.device)
            upkeep.start(self.codebook.data, select_real(self.prepare(z.detach()), mask), options.generator)
            self.get_buffer("started").copy_(upkeep.get_buffer("started"))
        return super().quantize_batch(z, mask, options)

    @torch.no_grad()
    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        if not self.training:
            return
        chosen, rows = ids[:, 0], self.codebook
        counts = add_over_ranks(torch.bincount(chosen, minlength=len(rows)).to(rows.dtype))
        sums = add_over_ranks(torch.zeros_like(rows).index_add_(0, chosen, self.prepare(z)))
        means = torch.where(counts[:, None] > 0, normalize(sums, dim=-1), rows)
        rows.copy_(normalize(self.decay * rows + (1 - self.decay) * means, dim=-1))


class BeatsTokenizer(SoundTokenizer):
    """Sounds of 16 kHz → a code for each patch of 160 ms and 16 bands: eight a step, low bands first.

    ``encode``: float [B, 1, T] → Codes [B, N, 1]; a sound that is shorter than a patch is filled up with silence, and
    one over 30 s is read in windows that overlap. ``published=True`` reads all sounds whole and, with lengths, encodes
    the batch as one, with padding masked by the authors' rule, which takes a patch to be as long as the N-th part of
    the sound. There is no ``decode``.
    """

    config_class: ClassVar[type[BeatsConfig]] = BeatsConfig
    taught_by = "losses={distillation: {feature: codes, network: FOLDER}}"
    no_decoder = "BEATs' codes are labels to train a model by; it has no decoder"
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"quantizer\.codebook", "quantize.embedding.weight"),
            (r"quantizer\.started", "quantize.embedding.initted"),
        ),
        ignored=(COUNTERS, r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight"),
    )
    config: BeatsConfig
    quantizer: MeanDirections

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        patch = config.patch_size
        self.bands = KaldiFbank(NUM_MELS)
        self.patch_embedding = nn.Conv2d(1, config.embed_width, patch, stride=patch, bias=config.embed_bias)
        self.layer_norm = nn.LayerNorm(config.embed_width)
        same = config.embed_width == config.width
        self.post_extract_proj = nn.Identity() if same else nn.Linear(config.embed_width, config.width)
        self.encoder = BeatsEncoder(
            BeatsSizes(
                config.width,
                config.num_layers,
                config.num_heads,
                config.inner,
                config.conv_positions,
                config.conv_groups,
                config.num_buckets,
                config.max_distance,
                config.gated,
                config.norm_first,
                config.deep,
            )
        )
        self.quantize_layer = nn.Sequential(
            nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, config.code_width)
        )
        self.quantizer = MeanDirections(config.codebook_size, config.code_width, config.commitment, config.decay)
        rows = NUM_MELS // patch
        self.describe((config.codebook_size,), self.bands.hop * patch // rows, self.bands.sample_rate_hz)
        self.fewest_samples = self.bands.window_size + (patch - 1) * self.bands.hop

    def read_bands(self, x: Tensor) -> Tensor:
        """x: [B, 1, T] → [B, F, M], scaled."""
        return (self.bands(x[:, 0] * SCALE) - MEAN) / (2 * DEVIATION)

    def encode_patches(self, bands: Tensor, mask: Tensor | None = None) -> Tensor:
        """bands: [B, F, M]; mask: bool [B, N] → [B, N, width] behind the last layer."""
        patches = self.patch_embedding(bands.unsqueeze(1)).flatten(2).transpose(1, 2)
        return self.encoder(self.post_extract_proj(self.layer_norm(patches)), mask)

    def encode_equal(self, x: Tensor) -> Tensor:
        config, bands = self.config, self.read_bands(x).transpose(1, 2)
        per_code = config.patch_size**2 // NUM_MELS  # frames
        return encode_windows(bands, self._encode_window, config.window_frames, config.overlap_frames, per_code)

    def _encode_window(self, bands: Tensor) -> Tensor:
        """[B, M, F] → [B, N, 1]."""
        return self.quantizer(self.quantize_layer(self.encode_patches(bands.transpose(1, 2)))).ids

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        if not options.published:
            return super().encode_batch(x, lengths, options)
        if lengths is None:
            whole = self.pad_equal(x.float(), published=True)
            return Codes.whole(self._encode_window(self.read_bands(whole).transpose(1, 2)), order="time")
        bands = self.read_bands(self.pad_equal(x.float(), published=True))
        mask = self.mask_as_published(x.shape[-1], lengths, bands.shape[1])
        ids = self.quantizer(self.quantize_layer(self.encode_patches(bands, mask))).ids
        return Codes(ids * mask.unsqueeze(-1), mask, order="time")

    def mask_as_published(self, num_samples: int, lengths: Tensor, num_frames: int) -> Tensor:
        """bool [B, N], True where a patch is real by the authors' rule: samples are padding, then frames whose every
        sample is, then patches whose every frame is, where each time what is left over at the end is cut off."""
        patch = self.config.patch_size
        padded = torch.arange(num_samples, device=lengths.device) >= lengths.unsqueeze(1)
        for count in (num_frames, num_frames // patch * (NUM_MELS // patch)):
            padded = padded[:, : padded.shape[1] // count * count].unflatten(1, (count, -1)).all(-1)
        return ~padded

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        """The codes' vectors as the features "codes", for losses of distillation; nothing is decoded."""
        hidden = self.encode_patches(self.read_bands(self.pad_equal(x, published=False)))
        made = self.quantizer(self.quantize_layer(hidden), generator=generator)
        return Reconstruction(None, made.loss, made.ids, made.numbers, {"codes": made.values})

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> BeatsConfig:
        """Their `TokenizersConfig`, which lies beside the weights. ValueError for another activation."""
        own, released = AuthorsFields(fields), BeatsConfig()
        if own.take_text("activation_fn", "gelu") != "gelu":
            raise ValueError(f"the activation {own.take_text('activation_fn', 'gelu')!r} is not read; BEATs has gelu")
        near = own.take_flag("relative_position_embedding", False)
        return BeatsConfig.model_validate(
            {
                "patch_size": own.take_integer("input_patch_size", released.patch_size),
                "embed_width": own.take_integer("embed_dim", released.embed_width),
                "embed_bias": own.take_flag("conv_bias", False),
                "width": own.take_integer("encoder_embed_dim", released.width),
                "num_layers": own.take_integer("encoder_layers", released.num_layers),
                "num_heads": own.take_integer("encoder_attention_heads", released.num_heads),
                "inner": own.take_integer("encoder_ffn_embed_dim", released.inner),
                "conv_positions": own.take_integer("conv_pos", released.conv_positions),
                "conv_groups": own.take_integer("conv_pos_groups", released.conv_groups),
                "num_buckets": own.take_integer("num_buckets", released.num_buckets) if near else 0,
                "max_distance": own.take_integer("max_distance", released.max_distance),
                "gated": own.take_flag("gru_rel_pos", False),
                "norm_first": own.take_flag("layer_norm_first", False),
                "deep": own.take_flag("deep_norm", False),
                "codebook_size": own.take_integer("quant_n", released.codebook_size),
                "code_width": own.take_integer("quant_dim", released.code_width),
            }
        )

    def collect_authors_state(self) -> dict[str, Tensor]:
        """The weights with the table of distances under every layer, as their module has it, and counters of no use."""
        state = super().collect_authors_state()
        rows = self.quantizer.codebook.detach()
        if self.config.num_buckets:
            state |= {TABLE.format(layer): state[TABLE.format(0)].clone() for layer in range(1, self.config.num_layers)}
        state["quantize.embedding.embed_avg"] = rows.clone()
        counters = ("quantize.embedding.cluster_size", "quantize.cluster_size")
        return {**state, **{name: rows.new_zeros(len(rows)) for name in counters}}
