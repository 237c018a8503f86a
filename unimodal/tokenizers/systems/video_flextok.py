"""VideoFlexTok (arXiv 2604.12887): FlexTok's ordered registers for every step of a clip, causal in time.

A step is the first frame, then every `frames_per_step` frames. A clip is coded in chunks that share a frame: the
registers of that frame are left out of the later chunk, which is drawn given the last frame decoded so far. So clips of
any number of chunks are coded as a stream, and every step decodes from any number of its first codes.

Its authors' flow makes maps of VidTok's causal VAE; here it makes the frames of a step, which lie side by side.

Shapes: B batch, M chunks, S steps of a chunk, T frames, F frames a step, K codes a step, P patches a step, C = 3 F
channels of a step's map, D width, H and W height and width.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.flow import Guidance, draw_flow_step, sample_flow
from unimodal.tokenizers.parts.prefix import PrefixPolicy, make_prefix_mask
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.trunks.flex import norm_plain
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.flextok import FlexDecoder, FlexEncoder, FlexSize, FlexTokConfig


class VideoFlexTokConfig(SystemConfig):
    """frames_per_step: F. steps_per_chunk: S, the first of which is one frame. num_frames: of a clip as a language
    model reads it; other numbers of whole chunks are coded too. num_tokens: K. conditioned: in training, the share of
    chunks whose first frame is given. Everything else is as `FlexTokConfig` has it."""

    family: str = "video_flextok"
    image_size: int = Field(default=256, ge=1)
    fps: float = Field(default=8.0, gt=0)
    num_frames: int = Field(default=81, ge=1)
    frames_per_step: int = Field(default=4, ge=1)
    steps_per_chunk: int = Field(default=5, ge=2)
    num_tokens: int = Field(default=256, ge=1)
    patch_size: int = Field(default=2, ge=1)
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    encoder: FlexSize = FlexSize()
    decoder: FlexSize = FlexSize()
    head_width: int = Field(default=64, ge=1)
    num_waves: int = Field(default=256, ge=2)
    steps: int = Field(default=20, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    guidance_kind: Guidance = "apg"
    null_dropout: float = Field(default=0.1, ge=0, le=1)
    conditioned: float = Field(default=0.5, ge=0, le=1)

    @property
    def stride(self) -> int:
        """New frames of every chunk but the first, which has one more."""
        return self.frames_per_step * (self.steps_per_chunk - 1)

    @property
    def networks(self) -> FlexTokConfig:
        """The settings of the networks, as they read one step."""
        side = self.image_size // self.patch_size
        return FlexTokConfig(
            medium="maps",
            image_size=self.image_size,
            channels=3 * self.frames_per_step,
            patch_size=self.patch_size,
            largest_grid=(side, side),
            num_tokens=self.num_tokens,
            levels=self.levels,
            encoder=self.encoder,
            decoder=self.decoder,
            head_width=self.head_width,
            num_waves=self.num_waves,
        )

    def count_steps(self, num_frames: int) -> int:
        """Steps of a clip of so many frames. ValueError for frames that are not whole chunks."""
        chunks, rest = divmod(num_frames - 1, self.stride)
        if rest or chunks < 1:
            raise ValueError(
                f"a clip is 1 + n · {self.stride} frames with n from 1 on, as chunks of {self.stride + 1} overlap by "
                f"one; got {num_frames}"
            )
        return 1 + chunks * (self.steps_per_chunk - 1)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for sizes that do not fit each other, and for a clip that is not whole chunks."""
        self.count_steps(self.num_frames)
        _ = self.networks
        return self


def build_step_mask(num_steps: int, num_patches: int, num_tokens: int, ordered: bool) -> Tensor:
    """Who sees whom among the patches of all steps, then the registers of all steps: bool [S·(P + K), S·(P + K)].

    Nothing sees a later step. ordered: within a step, patches see no register and a register only those up to itself.
    """
    step = torch.cat([torch.arange(num_steps).repeat_interleave(each) for each in (num_patches, num_tokens)])
    place = torch.cat([torch.full((num_steps * num_patches,), -1), torch.arange(num_tokens).repeat(num_steps)])
    earlier, same = step[:, None] > step, step[:, None] == step
    return earlier | (same & (place[:, None] >= place)) if ordered else earlier | same


class StepEncoder(FlexEncoder):
    """Maps of S steps → a vector for each register of each step, blind to later steps."""

    def __init__(self, config: VideoFlexTokConfig):
        super().__init__(config.networks)
        self.step_positions = nn.Parameter(0.02 * torch.randn(config.steps_per_chunk, config.encoder.width))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: float [B, S, C, H, W] → [B, S, K, dimensions of a code]."""
        batch, num_steps = maps.shape[:2]
        places = self.step_positions[:num_steps, None]
        patches = self.patches(maps.flatten(0, 1)).unflatten(0, (batch, num_steps)) + places  # [B, S, P, D]
        registers = (self.registers + places).expand(batch, -1, -1, -1)
        x = torch.cat([patches.flatten(1, 2), registers.flatten(1, 2)], 1)
        mask = build_step_mask(num_steps, patches.shape[2], registers.shape[2], ordered=True).to(x.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.out(norm_plain(x[:, num_steps * patches.shape[2] :])).unflatten(1, (num_steps, -1))


class TimeStepDecoder(FlexDecoder):
    """Noisy maps of S steps, their time and the codes → the velocity of the flow, blind to later steps."""

    def __init__(self, config: VideoFlexTokConfig):
        super().__init__(config.networks)
        self.step_positions = nn.Parameter(0.02 * torch.randn(config.steps_per_chunk, config.decoder.width))

    def forward(
        self, noisy: Tensor, time: Tensor, values: Tensor, kept: Tensor | None = None, null: Tensor | None = None
    ) -> Tensor:
        """noisy: [B, S, C, H, W], time: [B], values: [B, S, K, dimensions of a code] → velocity [B, S, C, H, W].

        kept: bool [B, S, K], False where a code is not known. null: bool [B], True where none is.
        """
        batch, num_steps = noisy.shape[:2]
        places = self.step_positions[:num_steps, None]
        tokens = self.tokens(values) + self.token_positions[0].transpose(1, 2)
        if kept is not None:
            tokens = torch.where(kept.unsqueeze(-1), tokens, self.dropped)
        if null is not None:
            tokens = torch.where(null[:, None, None, None], self.null, tokens)
        flat = noisy.flatten(0, 1)
        rows, columns = self.patches.measure(flat)
        patches = self.patches(flat).unflatten(0, (batch, num_steps)) + places
        counts = (num_steps * rows * columns, num_steps * tokens.shape[2])
        x = torch.cat([patches.flatten(1, 2), (tokens + places).flatten(1, 2)], 1)
        mask = build_step_mask(num_steps, rows * columns, tokens.shape[2], ordered=False).to(x.device)
        embedded, size = self.time(time), self.patch_size
        for block in self.blocks:
            x = block(x, mask, time=embedded, counts=counts)
        shift, scale = self.modulation(embedded, counts[:1])
        made = self.out(norm_plain(x[:, : counts[0]]) * (1 + scale) + shift)
        made = made.view(batch, num_steps, rows, columns, size, size, self.channels).permute(0, 1, 6, 2, 4, 3, 5)
        return made.reshape(batch, num_steps, self.channels, rows * size, columns * size)


class VideoFlexTokTokenizer(SystemTokenizer):
    """Clips ⇄ K codes a step. ``encode``: float [B, 3, T, H, W] in [0, 1] → Codes [B, steps · K, 1], step by step.

    ``decode`` takes codes whose mask leaves out the last ones of each step, as ``shorten`` makes them.
    """

    modality: ClassVar[str] = "video"
    takes_lengths = False
    config_class: ClassVar[type[VideoFlexTokConfig]] = VideoFlexTokConfig
    config: VideoFlexTokConfig

    def __init__(self, config: VideoFlexTokConfig):
        super().__init__(config)
        self.encoder, self.decoder = StepEncoder(config), TimeStepDecoder(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_sizes = self.quantizer.codebook_sizes
        num_steps = config.count_steps(config.num_frames)
        self.segments = ((self.modality, config.num_tokens),) * num_steps
        self.frame_marks = True
        self.code_levels = {self.modality: config.levels}
        self.tokens_per_item = num_steps * config.num_tokens
        self.picture_size = (config.image_size, config.image_size)
        self.num_frames, self.frames_per_second = config.num_frames, config.fps
        self.decode_settings = frozenset({"noise", "steps", "guidance"})

    # ---- clips and chunks

    def split_chunks(self, x: Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [0, 1] → maps of chunks in [-1, 1], [B·M, S, C, H, W], whose first frame is that of
        the chunk, F times. ValueError for another shape."""
        config, size = self.config, self.config.image_size
        if x.dim() != 5 or x.shape[1] != 3 or tuple(x.shape[3:]) != (size, size):
            raise ValueError(f"video_flextok takes [B, 3, T, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        config.count_steps(x.shape[2])
        chunks = (2 * x - 1).unfold(2, config.stride + 1, config.stride)  # [B, 3, M, H, W, frames of a chunk]
        chunks = chunks.permute(0, 2, 5, 1, 3, 4).flatten(0, 1)
        first = chunks[:, :1].expand(-1, config.frames_per_step - 1, -1, -1, -1)
        frames = torch.cat([first, chunks], 1)
        return frames.unflatten(1, (config.steps_per_chunk, config.frames_per_step)).flatten(2, 3)

    def join_frames(self, maps: Tensor) -> Tensor:
        """Maps of a chunk [B, S, C, H, W] → its frames [B, 3, 1 + (S - 1) · F, H, W], not clamped."""
        frames = maps.unflatten(2, (self.config.frames_per_step, 3)).flatten(1, 2)
        return (frames[:, self.config.frames_per_step - 1 :].transpose(1, 2) + 1) / 2

    def join_chunks(self, chunks: Tensor, batch: int) -> Tensor:
        """Frames of all chunks [B·M, 3, frames, H, W] → clips [B, 3, T, H, W]; the shared frame is the earlier one."""
        apart = chunks.unflatten(0, (batch, -1))
        later = apart[:, :, :, 1:].transpose(1, 2).flatten(2, 3)
        return torch.cat([apart[:, 0, :, :1], later], 2)

    # ---- flow

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """`decoded` is what the velocity at one drawn time points at; `loss` is that of the flow."""
        maps, config = self.split_chunks(x), self.config
        z = self.encoder(maps)
        quantized = self.quantizer(z.flatten(1, 2))
        values = quantized.values.view_as(z)
        kept = null = None
        step = draw_flow_step(maps, generator)
        given = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
        if self.training:
            num = PrefixPolicy("powers").draw(len(maps), config.num_tokens, generator)
            assert num is not None
            null = torch.rand(len(maps), generator=generator).to(maps.device) < config.null_dropout
            given = torch.rand(len(maps), generator=generator).to(maps.device) < config.conditioned
            kept = make_prefix_mask(num.to(maps.device), config.num_tokens)[:, None].repeat(1, z.shape[1], 1)
            kept[:, 0] &= ~given[:, None]
        known = given[:, None] & (torch.arange(z.shape[1], device=maps.device) == 0)  # [B·M, S]
        noisy = torch.where(known[:, :, None, None, None], maps, step.noisy)
        velocity = self.decoder(noisy, step.time, values, kept, null)
        flow = (velocity - step.target).square().mean((2, 3, 4))[~known].mean()
        decoded = self.join_chunks(self.join_frames(step.estimate(velocity)), len(x))
        numbers = {"flow": float(flow.detach()), **quantized.numbers}
        return Reconstruction(decoded, flow + quantized.loss, quantized.ids, numbers, {"tokens": quantized.values})

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of the flow alone."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    def draw_chunk(self, values: Tensor, kept: Tensor, past: Tensor | None, options: CodingOptions) -> Tensor:
        """values: [B, S, K, dimensions of a code], kept: bool [B, S, K], past: frame [B, 3, H, W] in [0, 1] before the
        chunk, or None → maps [B, S, C, H, W]. What is given stays as it is at every step of the flow."""
        assert options.noise is not None
        nothing = torch.ones(len(values), dtype=torch.bool, device=values.device)
        given = None if past is None else (2 * past - 1).repeat(1, self.config.frames_per_step, 1, 1)[:, None]

        def hold(x: Tensor) -> Tensor:
            return x if given is None else torch.cat([given, x[:, 1:]], 1)

        made = sample_flow(
            lambda x, time: self.decoder(hold(x), time, values, kept),
            options.noise,
            self.config.steps if options.steps is None else options.steps,
            self.config.guidance if options.guidance is None else options.guidance,
            lambda x, time: self.decoder(hold(x), time, values, kept, nothing),
            self.config.guidance_kind,
        )
        return hold(made)

    # ---- the contract

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        """Every chunk of a clip begins from the same noise."""
        size, config = self.config.image_size, self.config
        return (config.steps_per_chunk, 3 * config.frames_per_step, size, size)

    def shorten(self, codes: Codes, num_tokens: int) -> Codes:
        """The same codes without those of each step behind the first num_tokens. ValueError for none or too many."""
        if not 1 <= num_tokens <= self.config.num_tokens:
            raise ValueError(f"a step keeps 1 to {self.config.num_tokens} codes; got {num_tokens}")
        mask = codes.mask & (torch.arange(codes.ids.shape[1]) % self.config.num_tokens < num_tokens).to(
            codes.ids.device
        )
        return Codes(codes.ids * mask[..., None], mask, codes.grid, codes.order)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        z = self.encoder(self.split_chunks(x))
        ids = self.quantizer(z.flatten(1, 2)).ids[..., 0].view(len(x), -1, *z.shape[1:3])  # [B, M, S, K]
        joined = torch.cat([ids[:, 0, :1], ids[:, :, 1:].flatten(1, 2)], 1)  # a shared frame is coded once
        return Codes.whole(joined.flatten(1), order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        num, per_chunk = self.config.num_tokens, self.config.steps_per_chunk - 1
        num_steps, rest = divmod(codes.ids.shape[1], num)
        if rest or num_steps <= 1 or (num_steps - 1) % per_chunk:
            raise ValueError(
                f"a clip of video_flextok is 1 + n · {per_chunk} steps of {num} codes each; got {codes.ids.shape[1]} "
                "codes (mask the last ones of each step to leave them out)"
            )
        values = self.quantizer.look_up(codes.ids).unflatten(1, (num_steps, num))
        kept = codes.mask.unflatten(1, (num_steps, num))
        clip: list[Tensor] = []
        for start in range(0, num_steps - 1, per_chunk):
            chosen = kept[:, start : start + per_chunk + 1].clone()
            past = clip[-1][:, :, -1] if clip else None
            if past is not None:
                chosen[:, 0] = False  # the frame itself is there
            maps = self.draw_chunk(values[:, start : start + per_chunk + 1], chosen, past, options)
            frames = self.join_frames(maps).clamp(0, 1)
            clip.append(frames if past is None else frames[:, :, 1:])
        return torch.cat(clip, 2)
