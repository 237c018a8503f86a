"""HieraTok (arXiv 2509.23736): a picture as codes of several scales, the whole first and the patches last.

The encoder's map of patches is averaged to each scale; in all attention after it a scale sees itself and the coarser
ones, so that what is said of the whole does not hang on the details. The picture is made at the last scale. No source
that was read gives sizes, layers behind the pooling or the bottleneck: those are ours.

Shapes: B batch, P patches, N codes of all scales, D width, T width of a code.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.pixels import PatchHead
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.query_networks import init_weights
from unimodal.tokenizers.parts.resamplers import build_query_mask, pool_scales
from unimodal.tokenizers.parts.trunks.blocks import TransformerSize
from unimodal.tokenizers.parts.trunks.vit import VisionTransformer, VitBlock
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer


class HieraTokConfig(SystemConfig):
    """scales: sides of the square maps, coarse to fine; the last is that of the patches. scale_layers: of each side's
    blocks that see all scales. The rest as in `TiTokConfig`."""

    family: str = "hieratok"
    image_size: int = Field(default=256, ge=1)
    patch_size: int = Field(default=16, ge=1)
    scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    trunk: TransformerSize
    scale_layers: int = Field(default=4, ge=1)
    token_width: int = Field(default=16, ge=1)
    codebook_size: int = Field(default=4096, ge=2)
    normalize: bool = True
    commitment: float = 0.25

    @property
    def counts(self) -> tuple[int, ...]:
        """Codes of each scale."""
        return tuple(side**2 for side in self.scales)

    @model_validator(mode="after")
    def check_scales(self) -> Self:
        """ValueError for scales that do not grow to the patches of the picture."""
        side = self.image_size / self.patch_size
        if not self.scales or list(self.scales) != sorted(set(self.scales)) or self.scales[-1] != side:
            raise ValueError(
                f"scales {self.scales} must grow to {side:g}, the patches along a side of image_size {self.image_size} "
                f"with patch_size {self.patch_size}"
            )
        return self


class ScaleBlocks(nn.Module):
    """Transformer blocks over the tokens of all scales, each with a learned position: [B, N, D] → [B, N, D]."""

    def __init__(self, config: HieraTokConfig):
        super().__init__()
        width, num = config.trunk.width, sum(config.counts)
        self.positions = nn.Parameter(width**-0.5 * torch.randn(num, width))
        self.blocks = nn.ModuleList([VitBlock(width, config.trunk.num_heads) for _ in range(config.scale_layers)])
        self.norm = nn.LayerNorm(width)
        self.mask: Tensor
        self.register_buffer("mask", build_query_mask("scales", num, config.counts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        return self.norm(x)


class HieraTokTokenizer(SystemTokenizer):
    """Pictures ⇄ codes of all scales, coarse to fine. ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, N, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[HieraTokConfig]] = HieraTokConfig
    config: HieraTokConfig

    def __init__(self, config: HieraTokConfig):
        super().__init__(config)
        size, side = config.trunk, config.scales[-1]
        self.trunk = VisionTransformer(config.patch_size, size.width, size.num_layers, size.num_heads, (side, side))
        self.encoder_blocks, self.decoder_blocks = ScaleBlocks(config), ScaleBlocks(config)
        self.narrow = nn.Linear(size.width, config.token_width)
        self.widen = nn.Linear(config.token_width, size.width)
        self.quantizer = VectorQuantizer(
            config.codebook_size,
            config.token_width,
            "euclidean",
            config.normalize,
            config.normalize,
            commitment=config.commitment,
        )
        self.head = PatchHead(size.width, config.patch_size)
        init_weights(self, size.width)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.tokens_per_item = sum(config.counts)
        self.segments = ((self.modality, self.tokens_per_item),)
        self.picture_size = (config.image_size, config.image_size)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → float [B, N, T] before quantization. ValueError for another size."""
        size, side = self.config.image_size, self.config.scales[-1]
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"hieratok takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        pooled = pool_scales(self.trunk(x), (side, side), [(scale, scale) for scale in self.config.scales])
        return self.narrow(self.encoder_blocks(pooled))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """tokens: float [B, N, T] → pictures [B, 3, H, W], not clamped."""
        side = self.config.scales[-1]
        return self.head(self.decoder_blocks(self.widen(tokens))[:, -(side**2) :], (side, side))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        quantized = self.quantizer(self.encode_tokens(x))
        decoded = self.decode_tokens(quantized.values)
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, {"tokens": quantized.values})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_tokens(x)).ids, order="scales")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if any(count != self.tokens_per_item for count in codes.counts):
            raise ValueError(f"a picture of hieratok is {self.tokens_per_item} codes; got {codes.counts}")
        return self.decode_tokens(self.quantizer.look_up(codes.ids)).clamp(0, 1)
