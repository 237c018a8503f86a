"""D-AR (Diffusion via Autoregressive Models): codes in the order of a flow's steps; the first ones draw a preview.

Queries read the picture and those before them, and become codes; a causal transformer makes each code a condition. At
each time the flow reads one window of the conditions alone, the first ones where all is noise and the last ones at the
end. Decoding takes one step a window; where only a prefix of the codes is known, the last whole window's step goes
straight to the end. The network, its sampler and its loss are those of showlab/D-AR @3fb0f2d, with whose modules they
were compared; perceptual and alignment losses are a bag's (`losses`), as everywhere here.

Shapes: B batch, N codes, T width of a code, D width, h and w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.d_ar_networks import ScaledBlock, WindowFlow, norm_freely, rotate_map
from unimodal.tokenizers.systems.key_map import KeyMap


class DArConfig(SystemConfig):
    """steps: of the flow, each with `window` codes. query_width: of the learned queries, which a linear layer widens.
    num_places: rows of the tables of queries and places, of which the first N are used. flow_patch: pixels of the
    flow's squares. data_scale: what pixels in [-1, 1] are multiplied with. time_shift: above 1, more of the flow's time
    is near the noise. align_layer, align_widths: see `WindowFlow`; the released model has them."""

    family: Literal["d_ar"] = "d_ar"
    image_size: int = Field(default=256, ge=1)
    patch_size: int = Field(default=16, ge=1)
    num_tokens: int = Field(default=256, ge=1)
    window: int = Field(default=32, ge=1)
    steps: int = Field(default=8, ge=1)
    codebook_size: int = Field(default=16384, ge=2)
    token_width: int = Field(default=8, ge=1)
    width: int = Field(default=768, ge=1)
    head_width: int = Field(default=64, ge=4, multiple_of=4)
    encoder_layers: int = Field(default=8, ge=1)
    decoder_layers: int = Field(default=8, ge=0)
    flow_layers: int = Field(default=12, ge=1)
    flow_patch: int = Field(default=8, ge=1)
    query_width: int = Field(default=8, ge=1)
    num_places: int = Field(default=1024, ge=1)
    data_scale: float = Field(default=0.6, gt=0)
    time_shift: float = Field(default=2.0, gt=0)
    commitment: float = Field(default=0.25, ge=0)
    align_layer: int = Field(default=8, ge=0)
    align_widths: tuple[int, int] = (2048, 768)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for pictures that are no whole patches, heads that do not divide, and codes that do not fit into
        windows or tables."""
        for size in (self.patch_size, self.flow_patch):
            if self.image_size % size:
                raise ValueError(f"image_size {self.image_size} is not whole patches of {size}")
        if self.width % self.head_width:
            raise ValueError(f"heads of {self.head_width} do not divide a width of {self.width}")
        if self.num_tokens != self.steps * self.window or self.num_tokens > self.num_places:
            raise ValueError(
                f"num_tokens {self.num_tokens} must be {self.steps} steps of {self.window} codes, and no more than "
                f"num_places {self.num_places}"
            )
        return self


class DArTokenizer(SystemTokenizer):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ up to N codes, a window for each step of the flow."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = DArConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=((r"quantizer\.codebook", "quantize.embedding.weight"), (r"flow\.(.*)", r"diff_decoder.net.\1")),
        ignored=(r"quantize\.codebook_used",),
    )
    config: DArConfig

    def __init__(self, config: DArConfig):
        super().__init__(config)
        width, head = config.width, config.head_width
        self.patchify = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.query_embedding = nn.Embedding(config.num_places, config.query_width)
        self.query_linear = nn.Linear(config.query_width, width)
        self.encoder_layers = nn.ModuleList(ScaledBlock(width, head) for _ in range(config.encoder_layers))
        self.quant_in_conv = nn.Conv2d(width, config.token_width, 1, bias=False)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.token_width, "euclidean", True, True, commitment=config.commitment
        )
        self.quant_out_conv = nn.Conv2d(config.token_width, width, 1, bias=False)
        self.decoder_embedding = nn.Embedding(config.num_places, width)
        self.decoder_layers = nn.ModuleList(ScaledBlock(width, head) for _ in range(config.decoder_layers))
        self.flow = WindowFlow(
            width, head, config.flow_layers, config.flow_patch, config.align_layer, config.align_widths,
            config.image_size // config.patch_size,
        )  # fmt: skip
        nn.init.trunc_normal_(self.query_embedding.weight, std=1.0)
        nn.init.trunc_normal_(self.decoder_embedding.weight, std=0.02)
        self.codebook_sizes, self.tokens_per_item = self.quantizer.codebook_sizes, config.num_tokens
        self.segments, self.ordered = ((self.modality, config.num_tokens),), True
        self.shortest_prefix = config.window
        self.picture_size = (config.image_size, config.image_size)
        self.decode_settings = frozenset({"noise"})

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 3, S, S] in [0, 1] → vectors before quantization [B, N, T]. ValueError for another size."""
        size, num = self.config.image_size, self.config.num_tokens
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"d_ar takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        maps = self.patchify(x * 2 - 1)
        patches, grid = maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])
        queries = self.query_linear(self.query_embedding.weight[:num]).expand(len(x), -1, -1)
        tokens = torch.cat([norm_freely(patches), queries], 1)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:, : patches.shape[1]] = True
        rotation = rotate_map(grid, self.config.head_width, num, x.device)
        for layer in self.encoder_layers:
            tokens = layer(tokens, rotation, mask)
        read = norm_freely(tokens[:, -num:]).transpose(1, 2).unsqueeze(2)
        return self.quant_in_conv(read).squeeze(2).transpose(1, 2)

    def make_conditions(self, vectors: Tensor) -> Tensor:
        """Codes' vectors [B, n ≤ N, T] → conditions [B, n, D], each of its code and those before it."""
        tokens = self.quant_out_conv(vectors.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        tokens = tokens + self.decoder_embedding.weight[: tokens.shape[1]]
        for layer in self.decoder_layers:
            tokens = layer(tokens, causal=True)
        return norm_freely(tokens)

    def find_window(self, time: Tensor) -> Tensor:
        """time: float [B], 0 where all is noise → where the codes that are read there begin, int64 [B]."""
        groups = (time * self.config.steps + 0.5).floor().clamp(max=self.config.steps - 1)
        return groups.long() * self.config.window

    def take_window(self, conditions: Tensor, start: Tensor) -> Tensor:
        """Conditions [B, n, D] and where each item's window begins [B] → [B, window, D]."""
        places = start[:, None] + torch.arange(self.config.window, device=start.device)
        return conditions.gather(1, places.unsqueeze(-1).expand(-1, -1, conditions.shape[-1]))

    def shift_time(self, time: Tensor) -> Tensor:
        """Times of windows → times of the flow."""
        return time / (time + self.config.time_shift * (1 - time))

    # ---- the contract

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return 3, self.config.image_size, self.config.image_size

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """One drawn time an item: `decoded` is what its velocity points at, `loss` that of the flow and of the codes up
        to its window's end. features: `flow`, of the layer that is aligned."""
        scale = self.config.data_scale
        time = torch.rand(len(x), generator=generator).to(x)
        start = self.find_window(time)
        used = torch.arange(self.config.num_tokens, device=x.device) < start[:, None] + self.config.window
        quantized = self.quantizer(self.encode_tokens(x), used)
        told = self.take_window(self.make_conditions(quantized.values), start)
        data, noise = (x * 2 - 1) * scale, torch.randn(x.shape, generator=generator).to(x)
        shifted = self.shift_time(time)[:, None, None, None]
        noisy = shifted * data + (1 - shifted) * noise
        velocity, features = self.flow(noisy, shifted.flatten(), told)
        flow = (velocity - (data - noise)).square().mean() / scale**2
        decoded = (noisy + (1 - shifted) * velocity) / scale / 2 + 0.5
        numbers = {"flow": float(flow.detach()), **quantized.numbers}
        named = {} if features is None else {"flow": features}
        return Reconstruction(decoded, flow + quantized.loss, quantized.ids, numbers, named)

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The losses of the flow and of the codes alone."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_tokens(x)).ids, order="coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        steps, window, num = self.config.steps, self.config.window, self.config.num_tokens
        if not all(window <= count <= num for count in codes.counts):
            raise ValueError(f"a picture of d_ar is {window} to {num} codes, {window} a step; got {codes.counts}")
        assert options.noise is not None
        known = codes.mask.sum(1) // window  # steps whose window is whole
        conditions = self.make_conditions(self.quantizer.look_up(codes.ids[:, : int(known.max()) * window]))
        x, before = options.noise, None
        drawn = torch.zeros_like(x)
        times = self.shift_time(torch.arange(steps + 1, device=x.device) / steps)
        for step in range(int(known.max())):
            told = conditions[:, step * window : (step + 1) * window]
            velocity, _ = self.flow(x, times[step].expand(len(x)), told)
            ahead = velocity if before is None else 1.5 * velocity - 0.5 * before  # Adams–Bashforth's second order
            last = (known == step + 1)[:, None, None, None]
            drawn = torch.where(last, x + (1 - times[step]) * ahead, drawn)
            x, before = x + (times[step + 1] - times[step]) * ahead, velocity
        return (drawn / self.config.data_scale / 2 + 0.5).clamp(0, 1)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> DArConfig:
        """Their configs/tokenizer_v1.yaml. ValueError for two widths, and for parts that the released model has not."""
        own = AuthorsFields(fields).open("model")
        flow = own.open("diff_decoder")
        width = own.take_integer("encoder_dim", 768)
        widths = [
            own.take_integer("decoder_dim", 768),
            flow.take_integer("dim", 768),
            flow.take_integer("cond_dim", 768),
        ]
        if any(each != width for each in widths):
            raise ValueError(f"a D-AR tokenizer of the widths {[width, *widths]} is not read; they must be one")
        if flow.take_flag("mlp_head", False) or flow.take_flag("share_time_encoding", False):
            raise ValueError("a D-AR tokenizer with mlp_head or share_time_encoding is not read")
        if not own.take_flag("vq_enable", True) or not own.take_flag("query_low_rank", True):
            raise ValueError("a D-AR tokenizer without a codebook or with wide queries is not read")
        return DArConfig(
            patch_size=own.take_integer("encoder_patch_size", 16),
            num_tokens=own.take_integer("num_all_queries", 256),
            window=own.take_integer("queries_per_step", 32),
            steps=own.take_integer("num_denoising_steps", 8),
            codebook_size=own.take_integer("vq_codebook_size", 16384),
            token_width=own.take_integer("vq_dim", 8),
            width=width,
            encoder_layers=own.take_integer("num_encoder_layers", 8),
            decoder_layers=own.take_integer("num_decoder_layers", 8),
            flow_layers=flow.take_integer("depth", 12),
            flow_patch=flow.take_integer("patch_size", 8),
            data_scale=flow.take_number("data_std", 1.0),
            time_shift=flow.take_number("time_shift", 1.0),
            align_layer=flow.take_integer("repa_layer", 8),
        )
