"""HiMTok (arXiv 2503.13026): a segmentation mask as up to 32 codes, coarse to fine, decoded without the picture.

Its networks are TiTok's, with queries that see only the earlier ones, and with the decoder of MaskGIT's VQGAN on the
map that the decoder predicts. In training the tail of the codes is dropped to a length for each mask, so that any
prefix decodes. The medium is registered by `unimodal.tokenizers.more_media.masks`.

Shapes: B batch, N codes, T width of a token, h/w rows and columns of patches.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.pixels import CodeLogitHead
from unimodal.tokenizers.parts.prefix import PrefixPolicy, make_prefix_mask
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.query_networks import QueryDecoder, QueryEncoder
from unimodal.tokenizers.parts.trunks.maskgit import MaskgitDecoder
from unimodal.tokenizers.systems.base import Reconstruction, SystemTokenizer
from unimodal.tokenizers.systems.titok import ProxySettings, QueryTokenConfig


class HiMTokConfig(QueryTokenConfig):
    """mixed: see `QueryEncoder`; the released weights have it, and a code then hangs on later queries too. pixels: the
    decoder of pixels; `num_codes` are the channels of its map (its `depth` is not used). start, dead_share: of the
    codebook, see `VectorQuantizer`; its authors begin with the weights of TiTok, a new one needs them."""

    family: str = "himtok"
    mixer: Literal["attention"] = "attention"  # its queries see the earlier ones alone, which needs attention
    codebook_size: int = Field(default=1024, ge=2)
    commitment: float = 0.01
    pixels: ProxySettings = ProxySettings()
    start: Literal["uniform", "kmeans"] = "uniform"
    dead_share: float = Field(default=0.0, ge=0, lt=1)


class HiMTokTokenizer(SystemTokenizer):
    """Masks ⇄ N codes. ``encode``: float [B, 1, H, W] of 0 and 1 → Codes [B, N, 1]. ``decode`` gives how sure it is
    that a pixel lies in the mask, in [0, 1]."""

    modality: ClassVar[str] = "mask"
    takes_lengths = False
    has_own_loss = True  # squares of a steep sigmoid hardly teach where a mask is small
    config_class: ClassVar[type[HiMTokConfig]] = HiMTokConfig
    config: HiMTokConfig

    def __init__(self, config: HiMTokConfig):
        super().__init__(config)
        self.encoder = QueryEncoder(
            config.encoder, config.patch_size, config.grid, config.num_tokens, config.token_width, config.mixed,
            mask="causal",
        )  # fmt: skip
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.token_width, "euclidean", True, True, commitment=config.commitment,
            start=config.start, dead_share=config.dead_share,
        )  # fmt: skip
        self.decoder = QueryDecoder(
            config.decoder, config.grid, config.num_tokens, config.token_width, zero_missing=True
        )
        pixels = config.pixels
        self.head = CodeLogitHead(config.decoder.width, pixels.num_codes)
        self.pixels = MaskgitDecoder(
            pixels.num_codes, pixels.channels, pixels.multipliers, pixels.num_blocks, pixels.num_groups
        )
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = ((self.modality, config.num_tokens),)
        self.tokens_per_item, self.ordered = config.num_tokens, True
        self.picture_size = (config.image_size, config.image_size)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 1, H, W] → float [B, N, T], before quantization. ValueError for another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (1, size, size):
            raise ValueError(f"himtok takes masks [B, 1, {size}, {size}] of 0 and 1; got {tuple(x.shape)}")
        return self.encoder(x.expand(-1, 3, -1, -1))

    def decode_tokens(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """tokens: float [B, n ≤ N, T], kept: bool [B, n] → masks [B, 1, H, W] in (0, 1), the mean of three channels
        made steeper as its authors' code does."""
        pixels = self.pixels(self.head(self.decoder(tokens, kept), self.config.grid))
        return ((pixels.mean(1, keepdim=True) - 0.5) * 5).sigmoid()

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Which codes of each mask are decoded in a step of training: a drawn number of the first, bool [B, N]."""
        drawn = PrefixPolicy("uniform").draw(batch, self.config.num_tokens, generator)
        assert drawn is not None
        return make_prefix_mask(drawn.to(self.quantizer.codebook.device), self.config.num_tokens)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        quantized = self.quantizer(self.encode_tokens(x))
        kept = self.draw_kept(len(x), generator) if self.training else None
        decoded = self.decode_tokens(quantized.values, kept)
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, {"tokens": quantized.values})

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of every pixel and 1 - Dice of every mask."""
        made = self.reconstruct(x, lengths)
        assert made.decoded is not None
        sure = made.decoded.float().clamp(1e-6, 1 - 1e-6)
        entropy = binary_cross_entropy(sure, x)
        shared, total = (sure * x).sum((1, 2, 3)), (sure + x).sum((1, 2, 3))
        dice = (1 - (2 * shared + 1) / (total + 1)).mean()
        numbers = {"cross_entropy": float(entropy.detach()), "dice": float(dice.detach()), **made.numbers}
        return entropy + dice + made.loss, numbers

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_tokens(x)).ids, order="coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        num = self.config.num_tokens
        if not all(1 <= count <= num for count in codes.counts):
            raise ValueError(f"a mask of himtok is 1 to {num} codes; got {codes.counts}")
        kept = None if bool(codes.mask.all()) else codes.mask[:, :num]
        return self.decode_tokens(self.quantizer.look_up(codes.ids[:, :num]), kept)
