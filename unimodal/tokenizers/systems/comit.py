"""COMiT (arXiv 2602.20731): a message of N codes that is written again with each crop that is seen. One transformer
does both sides: it reads a crop and the message and writes the next message; and it reads a noisy picture and the
message and gives the velocity of a flow to the picture.

Crops overlap and come in raster order; each step is told how far the crop lies from the last one. Before the first crop
every code is the middle one of the codebook, which is also the message that guidance leaves out.

Shapes: B batch, N codes, K quantized dimensions, D width, C channels of the map, h and w its sides.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.flow import Guidance, draw_flow_step, sample_flow
from unimodal.tokenizers.parts.kl_vae import KlVae, VaeSettings
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks.flex import FlexBlock, PatchLayer, TimeEmbedding, norm_plain
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.flextok import FlexSize


class COMiTConfig(SystemConfig):
    """crop_size: pixels of a crop's side. crops: of a side of the picture. vae: its maps are read and drawn; None where
    pixels are. trunk: the one transformer. steps and guidance: of decoding, where the caller names none. null_dropout:
    in training, the share of pictures that are drawn without their message."""

    family: str = "comit"
    image_size: int = Field(default=256, ge=1)
    crop_size: int = Field(default=96, ge=1)
    crops: int = Field(default=3, ge=2)
    vae: VaeSettings | None = None
    patch_size: int = Field(default=2, ge=1)
    num_tokens: int = Field(default=256, ge=1)
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    trunk: FlexSize = FlexSize()
    head_width: int = Field(default=64, ge=1)
    num_waves: int = Field(default=256, ge=2)
    steps: int = Field(default=10, ge=1)
    guidance: float = Field(default=6.0, ge=0)
    guidance_kind: Guidance = "apg"
    null_dropout: float = Field(default=0.1, ge=0, le=1)

    @property
    def channels(self) -> int:
        return 3 if self.vae is None else self.vae.channels

    @property
    def map_side(self) -> int:
        return self.image_size // (1 if self.vae is None else self.vae.factor)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for sizes that are not whole patches, and for heads that do not divide."""
        pixels = self.patch_size * (1 if self.vae is None else self.vae.factor)
        for name, side in (("image_size", self.image_size), ("crop_size", self.crop_size)):
            if side % pixels or side > self.image_size:
                raise ValueError(f"{name} {side} is not whole patches of {pixels} pixels within image_size")
        if self.trunk.width % self.head_width or self.trunk.width % 4:
            raise ValueError(f"trunk: a width of {self.trunk.width} is not whole heads of head_width {self.head_width}")
        return self


class MessageTransformer(nn.Module):
    """A map, its time, a message and where the map lies → the velocity of the flow, and the next message."""

    def __init__(self, config: COMiTConfig):
        super().__init__()
        width, num_dims = config.trunk.width, len(config.levels)
        side = config.map_side // config.patch_size
        self.channels, self.patch_size = config.channels, config.patch_size
        self.patches = PatchLayer(config.channels, config.patch_size, width, (side, side))
        self.message_in = nn.Linear(num_dims, width)
        self.message_positions = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        self.time = TimeEmbedding(width, config.num_waves)
        self.offset = nn.Linear(2, width)
        self.blocks = nn.ModuleList([FlexBlock(width, config.head_width, 2) for _ in range(config.trunk.num_layers)])
        self.velocity_out = nn.Linear(width, config.channels * config.patch_size**2)
        self.message_out = nn.Linear(width, num_dims)

    def forward(self, maps: Tensor, time: Tensor, message: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """maps: [B, C, h, w], time: [B], 0 of a crop as it is; message: [B, N, K]; offset: [B, 2] across and down from
        the crop before, in halves of the picture → velocity [B, C, h, w], message [B, N, K] before quantization."""
        rows, columns = self.patches.measure(maps)
        tokens = self.message_in(message) + self.message_positions
        x, num = torch.cat([self.patches(maps), tokens], 1), rows * columns
        told = self.time(time) + self.offset(offset)
        for block in self.blocks:
            x = block(x, time=told, counts=(num, tokens.shape[1]))
        x, size = norm_plain(x), self.patch_size
        made = self.velocity_out(x[:, :num]).view(len(maps), rows, columns, size, size, self.channels)
        velocity = made.permute(0, 5, 1, 3, 2, 4).reshape(len(maps), self.channels, rows * size, columns * size)
        return velocity, self.message_out(x[:, num:])


class COMiTTokenizer(SystemTokenizer):
    """Pictures ⇄ a message of N codes. ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, N, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[COMiTConfig]] = COMiTConfig
    config: COMiTConfig

    def __init__(self, config: COMiTConfig):
        super().__init__(config)
        self.trunk = MessageTransformer(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.vae = None if config.vae is None else KlVae(config.vae).requires_grad_(False)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = ((self.modality, config.num_tokens),)
        self.code_levels = {self.modality: config.levels}
        self.tokens_per_item = config.num_tokens
        self.picture_size = (config.image_size, config.image_size)
        self.decode_settings = frozenset({"noise", "steps", "guidance"})

    # ---- pictures, crops and messages

    def to_maps(self, x: Tensor) -> Tensor:
        """Pictures or crops [B, 3, H, W] in [0, 1] → maps [B, C, h, w]."""
        with torch.no_grad():
            return 2 * x - 1 if self.vae is None else self.vae.encode(2 * x - 1)

    def to_media(self, maps: Tensor) -> Tensor:
        """The inverse of ``to_maps``, not clamped."""
        return ((maps if self.vae is None else self.vae.decode(maps)) + 1) / 2

    def list_places(self) -> list[tuple[int, int]]:
        """First row and column of every crop, in raster order."""
        config = self.config
        step = (config.image_size - config.crop_size) // (config.crops - 1)
        return [(row * step, column * step) for row in range(config.crops) for column in range(config.crops)]

    def locate_middles(self) -> Tensor:
        """Where the crops' middles lie, across and down from that of the picture, in halves of it: float [crops, 2]."""
        half = self.config.image_size / 2
        corners = torch.tensor([(column, row) for row, column in self.list_places()])
        return (corners + self.config.crop_size / 2) / half - 1

    def begin_message(self, batch: int) -> Tensor:
        """The message before anything is seen: float [B, N, K]."""
        middle = torch.full((batch, self.config.num_tokens, 1), self.codebook_sizes[0] // 2)
        return self.quantizer.look_up(middle.to(self.trunk.message_positions.device))

    def write_message(self, x: Tensor, num_crops: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x: float [B, 3, H, W] → the message after so many crops, all by default: values [B, N, K], ids int64 [B, N,
        1], and how far the middle of the picture lies from the last crop [B, 2]. ValueError for another size."""
        size, config = self.config.image_size, self.config
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"comit takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        places, middles = self.list_places(), self.locate_middles().to(x)
        if num_crops is not None and not 1 <= num_crops <= len(places):
            raise ValueError(f"there are 1 to {len(places)} crops; got {num_crops}")
        message, before, now = self.begin_message(len(x)), middles[0], x.new_zeros(len(x))
        ids = torch.zeros(len(x), config.num_tokens, 1, dtype=torch.int64, device=x.device)
        for (row, column), middle in zip(places[:num_crops], middles, strict=False):
            crop = self.to_maps(x[:, :, row : row + config.crop_size, column : column + config.crop_size])
            written = self.trunk(crop, now, message, (middle - before).expand(len(x), 2))[1]
            quantized = self.quantizer(written)
            message, ids, before = quantized.values, quantized.ids, middle
        return message, ids, (-before).expand(len(x), 2)

    # ---- the contract

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """In training a number of crops is drawn for the batch. `decoded` is what the velocity at one drawn time points
        at; `loss` is that of the flow."""
        num = self.config.crops**2
        if self.training:
            num = int(torch.randint(1, num + 1, (1,), generator=generator))
        message, ids, offset = self.write_message(x, num)
        seen = message
        if self.training:
            null = torch.rand(len(x), generator=generator).to(x.device) < self.config.null_dropout
            message = torch.where(null[:, None, None], self.begin_message(len(x)), message)
        step = draw_flow_step(self.to_maps(x), generator)
        velocity = self.trunk(step.noisy, step.time, message, offset)[0]
        flow = (velocity - step.target).square().mean()
        decoded = self.to_media(step.estimate(velocity))
        return Reconstruction(decoded, flow, ids, {"flow": float(flow.detach())}, {"tokens": seen})

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of the flow alone; the authors add an alignment (`unimodal.tokenizers.losses.alignment`)."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return (self.config.channels, self.config.map_side, self.config.map_side)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.write_message(x)[1], order="message")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """As after the last crop."""
        if any(count != self.config.num_tokens for count in codes.counts):
            raise ValueError(f"a message of comit is {self.config.num_tokens} codes; got {codes.counts}")
        assert options.noise is not None
        message, empty = self.quantizer.look_up(codes.ids), self.begin_message(len(codes))
        offset = -self.locate_middles()[-1].to(message).expand(len(codes), 2)
        maps = sample_flow(
            lambda x, time: self.trunk(x, time, message, offset)[0],
            options.noise,
            self.config.steps if options.steps is None else options.steps,
            self.config.guidance if options.guidance is None else options.guidance,
            lambda x, time: self.trunk(x, time, empty, offset)[0],
            self.config.guidance_kind,
        )
        return self.to_media(maps).clamp(0, 1)
