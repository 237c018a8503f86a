"""The two networks of one-dimensional tokenizers (TiTok, arXiv 2406.07550): queries read a picture's patches and become
its tokens; mask tokens at each patch's place read the tokens and become the picture. Either may read text as well
(TexTok, arXiv 2412.05796; TA-TiTok, 2501.07730).

Shapes: B batch, C channels, H/W height and width, h/w rows and columns of patches, N tokens, T width of a token, D
width, M text vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.parts.mixers import divide_line
from unimodal.tokenizers.parts.mixers.ponet import PoNetBlock
from unimodal.tokenizers.parts.resamplers import QueryMask, QueryReading, QueryStart, Resampler
from unimodal.tokenizers.parts.trunks.blocks import TransformerSize
from unimodal.tokenizers.parts.trunks.vit import GridSize, LearnedPositions, PatchEmbedding, VitBlock
from unimodal.tokenizers.text_settings import TextSettings


class TextEmbedding(nn.Module):
    """Text vectors through a linear layer, with a learned position each."""

    def __init__(self, settings: TextSettings, width: int):
        super().__init__()
        self.settings = settings
        self.project = nn.Linear(settings.width, width)
        self.positions = nn.Parameter(width**-0.5 * torch.randn(settings.length, width))

    def forward(self, condition: Condition | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """The condition's features [B, M, width of text] → (float [B, M, D], bool [B, M] or None: which are real); none
        at all of a condition without features. ValueError for text of another size, or left out without dropout."""
        features = None if condition is None else condition.features
        if features is None or condition is None:
            if not self.settings.dropout and not self.training:
                raise ValueError("this tokenizer reads text; give a Condition(features=…) of it for each item")
            return self.positions.new_zeros(batch, 0, self.positions.shape[1]), None
        if features.dim() != 3 or features.shape[1] > len(self.positions) or features.shape[2] != self.settings.width:
            raise ValueError(
                f"text is given as up to {len(self.positions)} vectors of width {self.settings.width}, "
                f"[B, M, {self.settings.width}]; got {tuple(features.shape)}"
            )
        text = self.project(features.to(self.positions)) + self.positions[: features.shape[1]]
        return text, condition.features_mask


class QueryEncoder(nn.Module):
    """Pictures → tokens: patches with a class token, then text where it is read, then queries, whose last vectors go
    through a linear layer.

    mixed: the linear layer reads the [N, D] vectors as if they were stored [D, N], so that a token mixes the numbers of
    several queries: what TiTok's first weights were trained with (its authors call it their legacy problem).
    pools: PoNet (arXiv 2110.02442) mixes the sequence in place of attention.
    """

    def __init__(
        self,
        size: TransformerSize,
        patch_size: int,
        grid: GridSize,
        num_tokens: int,
        token_width: int,
        mixed: bool = False,
        text: TextSettings | None = None,
        reading: QueryReading = "concatenated",
        start: QueryStart = "learned",
        mask: QueryMask = "full",
        scales: Sequence[GridSize] = (),
        copies: int = 0,
        pools: bool = False,
    ):
        super().__init__()
        self.mixed = mixed
        self.embedding = PatchEmbedding(patch_size, size.width, grid, class_token=True)
        self.text = None if text is None else TextEmbedding(text, size.width)
        self.resampler = Resampler(
            num_tokens, size.width, size.num_layers, size.num_heads, reading, start, mask, scales, copies,
            find_segments(grid, num_tokens) if pools else (),
        )  # fmt: skip
        self.out = nn.Conv2d(size.width, token_width, 1)
        init_weights(self, size.width)

    def forward(
        self, x: Tensor, condition: Condition | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """x: float [B, 3, H, W] → tokens float [B, N, T]."""
        return self.project(self.read(x, condition, generator))

    def read(
        self,
        x: Tensor,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        extra: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """x: float [B, 3, H, W] → the queries' last vectors [B, N, D]. extra: vectors [B, E, D] that they read beside
        the picture. kept: see `Resampler.forward`."""
        features, real = self.embedding(x), None
        grid = self.embedding.measure(x)
        if extra is not None:
            features = torch.cat([extra, features], 1)
        if self.text is not None:
            text, text_mask = self.text(condition, len(x))
            if text_mask is not None:
                real = torch.cat([text_mask.new_ones(features.shape[:2]), text_mask], 1)
            features = torch.cat([features, text], 1)
        return self.resampler(features, real, grid, generator, kept)

    def project(self, tokens: Tensor) -> Tensor:
        """The queries' last vectors [B, N, D] → [B, N, T]."""
        batch, num, width = tokens.shape
        turned = tokens.reshape(batch, width, num) if self.mixed else tokens.transpose(1, 2)
        return self.out(turned.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class QueryDecoder(nn.Module):
    """Tokens → one vector a patch: a class token and a mask token at each patch's place, then the tokens, then text
    where it is read, through transformer blocks. Tokens that are not there are not attended to, which is the same as a
    shorter sequence; with zero_missing they are zeros at their place, which are (HiMTok, arXiv 2503.13026). pools:
    PoNet mixes the sequence in place of attention; those that are not there are then the last."""

    def __init__(
        self,
        size: TransformerSize,
        grid: GridSize,
        num_tokens: int,
        token_width: int,
        text: TextSettings | None = None,
        zero_missing: bool = False,
        pools: bool = False,
    ):
        super().__init__()
        self.zero_missing = zero_missing
        width, scale = size.width, size.width**-0.5
        self.embed = nn.Linear(token_width, width)
        self.class_token = nn.Parameter(scale * torch.randn(1, width))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.positions = LearnedPositions(grid, width, num_extra=1)
        self.token_positions = nn.Parameter(scale * torch.randn(num_tokens, width))
        self.text = None if text is None else TextEmbedding(text, width)
        self.norm_in = nn.LayerNorm(width)
        segments = find_segments(grid, num_tokens)
        self.blocks = nn.ModuleList(
            PoNetBlock(width, size.num_heads, segments, 4 * width) if pools else VitBlock(width, size.num_heads)
            for _ in range(size.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        init_weights(self, size.width)

    def forward(
        self,
        tokens: Tensor,
        kept: Tensor | None = None,
        condition: Condition | None = None,
        grid: GridSize | None = None,
    ) -> Tensor:
        """tokens: float [B, n ≤ N, T] → [B, h·w, D]. kept: bool [B, n], False where a token is not there; None if all
        are. grid: of the patches to make; that of training by default."""
        batch, num = tokens.shape[:2]
        positions = self.positions(grid)
        masks = self.mask_token.expand(batch, len(positions) - 1, -1)
        places = torch.cat([self.class_token.expand(batch, 1, -1), masks], 1) + positions
        embedded = self.embed(tokens)
        if self.zero_missing:
            embedded = embedded if kept is None else embedded * kept[..., None]
            embedded, kept = pad(embedded, (0, 0, 0, len(self.token_positions) - num)), None
        parts, seen = [places, embedded + self.token_positions[: embedded.shape[1]]], [None, kept]
        if self.text is not None:
            text, text_mask = self.text(condition, batch)
            parts.append(text)
            seen.append(text_mask)
        mask = None
        if any(part is not None for part in seen):
            real = [
                part.new_ones(part.shape[:2], dtype=torch.bool) if known is None else known
                for part, known in zip(parts, seen, strict=True)
            ]
            mask = torch.cat(real, 1)[:, None, None]  # [B, 1, 1, tokens of the sequence]
        x = self.norm_in(torch.cat(parts, 1))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm_out(x[:, 1 : len(positions)])


def find_segments(grid: GridSize, num_tokens: int) -> tuple[int, ...]:
    """PoNet's segments of the sequence: the class token, the rows of patches, and the eighths of the tokens."""
    return (1, *(grid[1],) * grid[0], *divide_line(num_tokens))


def init_weights(network: nn.Module, width: int) -> None:
    """The start of TiTok's code: layers are drawn with a deviation of 0.02 and have no bias.

    Networks narrower than its narrowest (512) are drawn with so much more as keeps the size of what a layer adds: by
    0.02 a layer of 32 would add next to nothing, and all pictures would begin, and stay, with the same codes.
    """
    deviation = 0.02 * max(1.0, (512 / width) ** 0.5)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
