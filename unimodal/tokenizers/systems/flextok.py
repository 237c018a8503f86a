"""FlexTok (arXiv 2502.13967): registers read a map of a picture in order, each is a finite-scalar code, and a rectified
flow makes the map again from any number of them: the more codes, the nearer.

The map is that of a frozen variational autoencoder (`vae`), or the picture itself. Dropped codes become a learned
vector; in training all are sometimes replaced by another one, which guidance needs.

Shapes: B batch, N codes, K quantized dimensions, D width, C channels of the map, h and w its sides, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.flow import Guidance, draw_flow_step, sample_flow
from unimodal.tokenizers.parts.kl_vae import KlVae, VaeSettings
from unimodal.tokenizers.parts.prefix import PrefixPolicy, make_prefix_mask
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks.flex import FlexBlock, Modulation, PatchLayer, TimeEmbedding, norm_plain
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.flextok_names import KEY_MAP, read_flextok_settings, reshape_attention
from unimodal.tokenizers.systems.key_map import KeyMap


class FlexSize(BaseModel):
    """width and layers of one side; all heads have the width that `FlexTokConfig` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(default=768, ge=4)
    num_layers: int = Field(default=12, ge=1)


class FlexTokConfig(SystemConfig):
    """medium: "pictures" [B, 3, H, W] in [0, 1], or "maps" [B, C, h, w] that a VAE elsewhere has made. vae: that of
    pictures; None where the flow works on their pixels. channels: C. largest_grid: rows and columns of patches that
    positions are stored for. separate_modulation: the time scales and shifts patches and registers apart. num_waves and
    max_time: see `TimeEmbedding`. steps, guidance and guidance_kind: of decoding, where the caller names none.
    prefixes: in training a length is drawn for each picture, see `PrefixPolicy`. null_dropout: the share of
    pictures all of whose codes are left out, for guidance.
    """

    family: str = "flextok"
    medium: Literal["pictures", "maps"] = "pictures"
    image_size: int = Field(default=256, ge=1)
    vae: VaeSettings | None = None
    channels: int = Field(default=16, ge=1)
    patch_size: int = Field(default=2, ge=1)
    largest_grid: tuple[int, int] = (16, 16)
    num_tokens: int = Field(default=256, ge=1)
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    encoder: FlexSize = FlexSize()
    decoder: FlexSize = FlexSize()
    head_width: int = Field(default=64, ge=1)
    separate_modulation: bool = True
    num_waves: int = Field(default=256, ge=2)
    max_time: float = 1.0
    steps: int = Field(default=20, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    guidance_kind: Guidance = "apg"
    prefixes: Literal["uniform", "powers", "rounded"] = "uniform"
    null_dropout: float = Field(default=0.1, ge=0, le=1)

    @property
    def map_size(self) -> tuple[int, int]:
        """h and w of the map of a picture of image_size."""
        side = self.image_size // (1 if self.vae is None else self.vae.factor)
        return side, side

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for channels, heads and sizes that do not fit each other."""
        channels = 3 if self.vae is None else self.vae.channels
        if self.medium == "maps" and self.vae is not None:
            raise ValueError("medium: maps are made elsewhere; leave vae out")
        if self.medium == "pictures" and channels != self.channels:
            owner = "pixels have" if self.vae is None else "the vae has"
            raise ValueError(
                f"channels is {self.channels} where {owner} {channels}; for maps made elsewhere set medium: maps"
            )
        for name, size in (("encoder", self.encoder), ("decoder", self.decoder)):
            if size.width % self.head_width or size.width % 4:
                raise ValueError(f"{name}: a width of {size.width} is not whole heads of head_width {self.head_width}")
        rows = self.map_size[0] / self.patch_size
        if rows != int(rows) or rows > min(self.largest_grid):
            raise ValueError(
                f"image_size {self.image_size} is a map of {self.map_size[0]}, which is not whole patches of "
                f"patch_size {self.patch_size} within largest_grid {self.largest_grid}"
            )
        return self


class FlexEncoder(nn.Module):
    """Maps → one vector a register: patches see patches, a register sees patches and the registers up to itself."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        width = config.encoder.width
        self.patches = PatchLayer(config.channels, config.patch_size, width, config.largest_grid)
        self.registers = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        self.blocks = nn.ModuleList([FlexBlock(width, config.head_width) for _ in range(config.encoder.num_layers)])
        self.out = nn.Linear(width, len(config.levels))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: float [B, C, h, w] → [B, N, K]."""
        patches = self.patches(maps)
        num, total = patches.shape[1], patches.shape[1] + len(self.registers)
        mask = torch.ones(total, total, dtype=torch.bool, device=maps.device).tril()
        mask[:, :num] = True
        x = torch.cat([patches, self.registers.expand(len(maps), -1, -1)], 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.out(norm_plain(x[:, num:]))


class FlexDecoder(nn.Module):
    """A noisy map, its time and the codes → the velocity of the flow there."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        width, kinds = config.decoder.width, 2 if config.separate_modulation else 1
        self.channels, self.patch_size = config.channels, config.patch_size
        self.tokens = nn.Linear(len(config.levels), width)
        self.token_positions = nn.Parameter(0.02 * torch.randn(1, 1, width, config.num_tokens))
        self.dropped = nn.Parameter(0.02 * torch.randn(width))
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.patches = PatchLayer(config.channels, config.patch_size, width, config.largest_grid)
        self.time = TimeEmbedding(width, config.num_waves, max_time=config.max_time)
        self.blocks = nn.ModuleList(
            [FlexBlock(width, config.head_width, kinds) for _ in range(config.decoder.num_layers)]
        )
        self.modulation = Modulation(width, 2)
        self.out = nn.Linear(width, config.channels * config.patch_size**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, noisy: Tensor, time: Tensor, values: Tensor, kept: Tensor | None = None, null: Tensor | None = None
    ) -> Tensor:
        """noisy: [B, C, h, w], time: [B], values: quantized [B, N, K] → velocity [B, C, h, w].

        kept: bool [B, N], False where a code is not known. null: bool [B], True where none is, as guidance needs it.
        """
        tokens = self.tokens(values) + self.token_positions[0].transpose(1, 2)
        if kept is not None:
            tokens = torch.where(kept.unsqueeze(-1), tokens, self.dropped)
        if null is not None:
            tokens = torch.where(null[:, None, None], self.null, tokens)
        rows, columns = self.patches.measure(noisy)
        embedded, num = self.time(time), rows * columns
        x = torch.cat([self.patches(noisy), tokens], 1)
        for block in self.blocks:
            x = block(x, time=embedded, counts=(num, tokens.shape[1]))
        shift, scale = self.modulation(embedded, (num,))
        patches = self.out(norm_plain(x[:, :num]) * (1 + scale) + shift)
        size = self.patch_size
        made = patches.view(len(noisy), rows, columns, size, size, self.channels).permute(0, 5, 1, 3, 2, 4)
        return made.reshape(len(noisy), self.channels, rows * size, columns * size)


class FlexTokTokenizer(SystemTokenizer):
    """Pictures or maps ⇄ up to N codes, coarse to fine."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[FlexTokConfig]] = FlexTokConfig
    key_map: ClassVar[KeyMap] = KEY_MAP
    config: FlexTokConfig

    def __init__(self, config: FlexTokConfig):
        super().__init__(config)
        self.encoder, self.decoder = FlexEncoder(config), FlexDecoder(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.vae = None if config.vae is None else KlVae(config.vae).requires_grad_(False)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = ((self.modality, config.num_tokens),)
        self.code_levels = {self.modality: config.levels}
        self.tokens_per_item = config.num_tokens
        self.ordered = True
        self.picture_size = (config.image_size, config.image_size)
        self.decode_settings = frozenset({"noise", "steps", "guidance"})

    # ---- pictures and maps

    def to_maps(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → maps [B, C, h, w], with the VAE's mean (its authors draw around it); maps
        stay. ValueError for another number of channels."""
        channels = self.config.channels if self.config.medium == "maps" else 3
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"flextok takes [B, {channels}, H, W] of {self.config.medium}; got {tuple(x.shape)}")
        if self.config.medium == "maps":
            return x
        with torch.no_grad():
            return 2 * x - 1 if self.vae is None else self.vae.encode(2 * x - 1)

    def to_media(self, maps: Tensor) -> Tensor:
        """The inverse of ``to_maps``, not clamped."""
        if self.config.medium == "maps":
            return maps
        return ((maps if self.vae is None else self.vae.decode(maps)) + 1) / 2

    # ---- flow

    def sample(
        self,
        values: Tensor,
        noise: Tensor,
        kept: Tensor | None = None,
        steps: int | None = None,
        scale: float | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """values: quantized [B, N, K], noise: [B, C, h, w] → maps [B, C, h, w]; what is None is the config's."""
        everything = torch.ones(len(values), dtype=torch.bool, device=values.device)
        return sample_flow(
            lambda x, time: self.decoder(x, time, values, kept),
            noise,
            self.config.steps if steps is None else steps,
            self.config.guidance if scale is None else scale,
            lambda x, time: self.decoder(x, time, values, kept, everything),
            self.config.guidance_kind if guidance is None else guidance,
        )

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """`decoded` is what the velocity at one drawn time points at; `loss` holds that of the flow."""
        maps = self.to_maps(x)
        quantized = self.quantizer(self.encoder(maps))
        kept = null = None
        if self.training:
            kept = self.draw_prefixes(len(x), generator)
            null = torch.rand(len(x), generator=generator).to(maps.device) < self.config.null_dropout
        step = draw_flow_step(maps, generator)
        velocity = self.decoder(step.noisy, step.time, quantized.values, kept, null)
        flow = (velocity - step.target).square().mean()
        numbers = {"flow": float(flow.detach()), **quantized.numbers}
        decoded = self.to_media(step.estimate(velocity))
        return Reconstruction(decoded, flow + quantized.loss, quantized.ids, numbers, {"tokens": quantized.values})

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of the flow alone."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    def draw_prefixes(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Which codes are kept, bool [B, N], from 1 to all."""
        lengths = PrefixPolicy(self.config.prefixes).draw(batch, self.config.num_tokens, generator)
        assert lengths is not None
        return make_prefix_mask(lengths.to(self.decoder.null.device), self.config.num_tokens)

    # ---- the contract

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return (self.config.channels, *self.config.map_size)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encoder(self.to_maps(x))).ids, order="coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """The sides of the noise are those of the map that is made."""
        num = self.config.num_tokens
        if not all(1 <= count <= num for count in codes.counts):
            raise ValueError(f"a picture of flextok is 1 to {num} codes; got {codes.counts}")
        assert options.noise is not None
        missing = num - codes.ids.shape[1]
        ids = nn.functional.pad(codes.ids[:, :num], (0, 0, 0, max(0, missing)))
        kept = nn.functional.pad(codes.mask[:, :num], (0, max(0, missing)))
        maps = self.sample(
            self.quantizer.look_up(ids),
            options.noise,
            None if bool(kept.all()) else kept,
            options.steps,
            options.guidance,
        )
        made = self.to_media(maps)
        return made if self.config.medium == "maps" else made.clamp(0, 1)

    # ---- what its authors write

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> FlexTokConfig:
        """From the settings of the chains of modules, as a checkpoint's config.json has them (their names are partly an
        assumption, see `flextok_names`). ValueError for what is not there."""
        return FlexTokConfig.model_validate(read_flextok_settings(fields))

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        return super().from_authors(reshape_attention(weights, square=False), config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        return reshape_attention(super().collect_authors_state(), square=True)
