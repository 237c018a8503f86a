"""FlexTok's transformer (arXiv 2502.13967): norms without weights, normed queries and keys, gated feed-forward. In the
decoder the time gives scale, shift and gate (adaLN-zero, DiT, arXiv 2212.09748), apart for patches and registers.

Shapes: B batch, N tokens, D width, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu


def norm_plain(x: Tensor) -> Tensor:
    """Layer norm over the last dimension without weights, in float32 (eps 1e-5)."""
    return layer_norm(x.float(), x.shape[-1:]).type_as(x)


class FlexAttention(nn.Module):
    """Attention whose queries and keys are normed; scores are times 8 / d, as µP has it."""

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, D] → [B, N, D]; mask: bool, broadcast to [B, heads, N, N], True where a token attends."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for layer in (self.wq, self.wk, self.wv)
        )
        mixed = scaled_dot_product_attention(norm_plain(q), norm_plain(k), v, mask, scale=8 / self.head_width)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """silu(A x) · (B x), then back: [.., D] → [.., D] (arXiv 2002.05202)."""

    def __init__(self, width: int, expansion: int = 4):
        super().__init__()
        inner = 2 * expansion * width // 3
        self.fc1 = nn.Linear(width, inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)
        self.fc3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(silu(self.fc1(x)) * self.fc3(x))


class Modulation(nn.Module):
    """`num_parts` vectors a token, read from the embedded time; one set for each kind of token (patches, registers).

    The last layer begins at 0, so that modulated branches begin closed."""

    def __init__(self, width: int, num_parts: int, num_kinds: int = 1):
        super().__init__()
        self.num_parts, self.num_kinds = num_parts, num_kinds
        self.layer = nn.Linear(width, num_kinds * num_parts * width)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, time: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
        """time: [B, D]; counts: how many tokens of each kind follow each other → num_parts of [B, N, D]."""
        sets = self.layer(silu(time)).unflatten(-1, (self.num_kinds, -1))  # [B, kinds, parts · D]
        kinds = sets if self.num_kinds == len(counts) else sets.expand(-1, len(counts), -1)
        spread = torch.repeat_interleave(kinds, torch.tensor(counts, device=time.device), dim=1)
        return spread.chunk(self.num_parts, dim=-1)


class FlexBlock(nn.Module):
    """Attention and feed-forward; with `num_kinds` both are gated, scaled and shifted by the time."""

    def __init__(self, width: int, head_width: int, num_kinds: int = 0):
        super().__init__()
        self.attn = FlexAttention(width, head_width)
        self.mlp = GatedFeedForward(width)
        self.modulation = Modulation(width, 6, num_kinds) if num_kinds else None

    def forward(
        self, x: Tensor, mask: Tensor | None = None, time: Tensor | None = None, counts: Sequence[int] = ()
    ) -> Tensor:
        """x: [B, N, D] → [B, N, D]; time and counts: see `Modulation`."""
        if self.modulation is None or time is None:
            x = x + self.attn(norm_plain(x), mask)
            return x + self.mlp(norm_plain(x))
        gate, gate_mlp, shift, scale, shift_mlp, scale_mlp = self.modulation(time, counts)
        x = x + gate * self.attn(norm_plain(x) * (1 + scale) + shift, mask)
        return x + gate_mlp * self.mlp(norm_plain(x) * (1 + scale_mlp) + shift_mlp)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] → a vector: cosines, then sines of `num_waves` numbers in all, through two layers."""

    def __init__(self, width: int, num_waves: int = 256, longest: float = 256.0, max_time: float = 1.0):
        super().__init__()
        self.num_waves, self.longest, self.max_time = num_waves, longest, max_time
        self.first, self.second = nn.Linear(num_waves, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """time: float [B] → [B, D]."""
        half = self.num_waves // 2
        steps = torch.arange(half, dtype=torch.float32, device=time.device)
        frequencies = 1000.0 / self.max_time * torch.exp(-math.log(self.longest) * steps / half)
        angles = time.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.first.weight.dtype)
        return self.second(silu(self.first(waves)))


class PatchLayer(nn.Module):
    """Patches of a map through a linear layer, with fixed sine positions that are stored with the weights.

    The numbers of a patch are row, column, channel, the channel fastest. A smaller grid than the stored one takes its
    upper left corner."""

    def __init__(self, channels: int, patch_size: int, width: int, largest_grid: tuple[int, int]):
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(channels * patch_size**2, width)
        self.positions = nn.Parameter(make_sine_positions(largest_grid, width), requires_grad=False)

    def measure(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of maps [B, C, H, W]. ValueError for sides that do not fit."""
        rows, columns = (side // self.patch_size for side in x.shape[-2:])
        most = tuple(self.positions.shape[-2:])
        if any(side % self.patch_size for side in x.shape[-2:]) or rows > most[0] or columns > most[1]:
            raise ValueError(
                f"a map of {x.shape[-2]}×{x.shape[-1]} is not whole patches of {self.patch_size}, at most "
                f"{most[0]}×{most[1]} of them"
            )
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W] → [B, P, D]."""
        rows, columns = self.measure(x)
        patches = x.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 3, 5, 1)
        embedded = self.project(patches.flatten(3))  # [B, rows, columns, D]
        return (embedded + self.positions[0, :, :rows, :columns].permute(1, 2, 0)).flatten(1, 2)


def make_sine_positions(grid: tuple[int, int], width: int, longest: float = 10000.0) -> Tensor:
    """Sines and cosines of the place, float [1, D, rows, columns], as MoCo v3's code lays them out: the table of a grid
    of `columns` rows and `rows` columns, read in the other's shape. ValueError for a width that 4 does not divide."""
    if width % 4:
        raise ValueError(f"sine positions need a width that 4 divides; got {width}")
    rows, columns = grid
    across, down = torch.meshgrid(torch.arange(columns).float(), torch.arange(rows).float(), indexing="ij")
    waves = 1 / longest ** (torch.arange(width // 4).float() / (width // 4))
    angles = [place.reshape(-1, 1) * waves for place in (across, down)]
    table = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()], 1)  # [P, D]
    return table.T.reshape(1, width, rows, columns)
