"""Vision transformers: patches in, one vector a patch out (Dosovitskiy et al., arXiv 2010.11929).

Attention stores its weights as torch's ``MultiheadAttention`` does, so that weights of TiTok and of CLIP's kin fit.

Shapes: B batch, C channels, H/W height and width, h/w rows and columns of patches, P patches, N tokens, M context
tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention

GridSize = tuple[int, int]  # rows and columns of patches


@dataclass(frozen=True)
class Rotation:
    """Angles by which queries and keys are turned: cos and sin, float [N, D of a head / 2]."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """x: [B, heads, N, d] → the same with each pair (2i, 2i + 1) turned by its angle."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], -1).flatten(-2)


def rotate_grid(grid: GridSize, head_width: int, num_still: int = 0, base: float = 100.0) -> Rotation:
    """2-D rotary positions (RoFormer, arXiv 2104.09864, by rows and columns as in RoPE-ViT, arXiv 2403.13298).

    The first half of the angles goes by the row, the second by the column. num_still: tokens before the patches that
    have no place (class token, registers); they are not turned. ValueError for heads whose width is no multiple of 4.
    """
    if head_width % 4:
        raise ValueError(f"2-D rotary positions need heads of a multiple of 4 numbers; got {head_width}")
    quarter = head_width // 4
    frequencies = base ** (-torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], -1)  # [P, d/2]
    angles = torch.cat([angles.new_zeros(num_still, 2 * quarter), angles])
    return Rotation(angles.cos(), angles.sin())


class Attention(nn.Module):
    """Multi-head attention, of tokens among themselves or over a context, with the weights of ``MultiheadAttention``:
    the rows of ``in_proj_weight`` are queries, keys and values."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}; choose heads that do")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)  # as that class begins

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
    ) -> Tensor:
        """x: [B, N, D], context: [B, M, D] or None for x itself → [B, N, D].

        mask: bool, broadcast to [B, heads, N, M], True where a token attends. rotation: of attention among themselves.
        positions: [N, D] of x and context_positions: [M, D], added to queries and keys and never to values (DETR, arXiv
        2005.12872).
        """
        batch, _, width = x.shape
        if context is None:
            context, context_positions = x, positions
        queries = x if positions is None else x + positions
        keys = context if context_positions is None else context + context_positions
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((queries, keys, context), weights, biases, strict=True)
        )  # each [B, heads, N or M, D/heads]
        if rotation is not None:
            q, k = rotation.turn(q), rotation.turn(k)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, -1, width))


class VitBlock(nn.Module):
    """Pre-norm attention and GELU feed-forward. cross: between the two the tokens read a context."""

    def __init__(self, width: int, num_heads: int, expansion: int = 4, cross: bool = False):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, num_heads) if cross else None
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        context_positions: Tensor | None = None,
    ) -> Tensor:
        """x: [B, N, D] → [B, N, D]; masks and positions as `Attention` takes them."""
        x = x + self.attention(self.norm_attention(x), mask=mask, rotation=rotation, positions=positions)
        if self.cross is not None and self.norm_cross is not None:
            normed = self.norm_cross(x)
            x = x + self.cross(normed, context, context_mask, None, positions, context_positions)
        return x + self.down(gelu(self.up(self.norm_mlp(x))))


class LearnedPositions(nn.Module):
    """A learned vector for each patch of a grid, after those of `num_extra` tokens before the patches.

    Another grid than the trained one takes the table resized (bicubic)."""

    def __init__(self, grid: GridSize, width: int, num_extra: int = 0):
        super().__init__()
        self.grid, self.num_extra = grid, num_extra
        self.table = nn.Parameter(width**-0.5 * torch.randn(num_extra + grid[0] * grid[1], width))

    def forward(self, grid: GridSize | None = None) -> Tensor:
        """The vectors [num_extra + P, D] of a grid of patches; of the trained one where it is None."""
        if grid is None or grid == self.grid:
            return self.table
        extra, patches = self.table[: self.num_extra], self.table[self.num_extra :]
        square = patches.T.reshape(1, -1, *self.grid)
        resized = interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([extra, resized.flatten(2)[0].T])


class PatchEmbedding(nn.Module):
    """Pictures → patch vectors with their positions, after a class token and registers where there are any.

    learned_positions: adds a learned vector (resized for other sizes) to class token and patches; without it the place
    is left to rotary attention. Registers (arXiv 2309.16588) have no position.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        grid: GridSize,
        channels: int = 3,
        class_token: bool = False,
        num_registers: int = 0,
        learned_positions: bool = True,
    ):
        super().__init__()
        self.patch_size, self.num_registers = patch_size, num_registers
        self.num_extra = int(class_token) + num_registers
        self.project = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(1, width)) if class_token else None
        self.registers = nn.Parameter(0.02 * torch.randn(num_registers, width)) if num_registers else None
        self.positions = LearnedPositions(grid, width, int(class_token)) if learned_positions else None

    def measure(self, x: Tensor) -> GridSize:
        """Rows and columns of the patches of pictures [B, C, H, W]. ValueError for sides that patches do not fill."""
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"a picture of {height}×{width} is not whole patches of {self.patch_size}; crop or pad it")
        return height // self.patch_size, width // self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W] → [B, class token + registers + P, D]."""
        grid = self.measure(x)
        tokens = self.project(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(x), 1, -1), tokens], 1)
        if self.positions is not None:
            tokens = tokens + self.positions(grid)
        if self.registers is not None:
            at = int(self.class_token is not None)
            registers = self.registers.expand(len(x), -1, -1)
            tokens = torch.cat([tokens[:, :at], registers, tokens[:, at:]], 1)
        return tokens


class VisionTransformer(nn.Module):
    """Patches, transformer blocks and a last norm. rotary: 2-D rotary positions in place of learned ones."""

    def __init__(
        self,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        grid: GridSize,
        channels: int = 3,
        class_token: bool = False,
        num_registers: int = 0,
        rotary: bool = False,
    ):
        super().__init__()
        self.rotary, self.head_width = rotary, width // num_heads
        self.embedding = PatchEmbedding(
            patch_size, width, grid, channels, class_token, num_registers, learned_positions=not rotary
        )
        self.blocks = nn.ModuleList([VitBlock(width, num_heads) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W] → patch features [B, P, D]; class token and registers are left out."""
        num_extra, rotation = self.embedding.num_extra, None
        if self.rotary:
            rotation = rotate_grid(self.embedding.measure(x), self.head_width, num_extra)
            rotation = Rotation(rotation.cos.to(x.device), rotation.sin.to(x.device))
        tokens = self.embedding(x)
        for block in self.blocks:
            tokens = block(tokens, rotation=rotation)
        return self.norm(tokens[:, num_extra:])
