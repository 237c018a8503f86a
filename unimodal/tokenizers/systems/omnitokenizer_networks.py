"""OmniTokenizer's transformers: attention within each frame, in windows or whole, then over time (arXiv 2406.09399).

What the authors' code does and a reader would not expect is kept, since released weights need it: keys and values come
from the input before the norm; where torch has scaled_dot_product_attention, the position biases are left out; and in
the transformer over time the depthwise convolution reads tokens in another order than they lie in (`scrambled`).

Shapes: B batch, T steps of time, H/W rows and columns of patches, N tokens, D width, d width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, leaky_relu, normalize, pad, scaled_dot_product_attention

Positions = Literal["rope", "relative"]
Grid3 = tuple[int, int, int, int]  # B, T, H, W


@dataclass(frozen=True)
class OmniSizes:
    """width D; window: of 'w' blocks; biased: add the biases of position, as the code does on torch before 2.1."""

    width: int
    num_heads: int
    head_width: int
    expansion: float
    window: int
    positions: Positions
    causal: bool
    causal_convolution: bool
    biased: bool
    scrambled: bool


class FixedNorm(nn.Module):
    """Layer norm whose offset is stored and not trained."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class PositionConv(nn.Module):
    """A position for every token by a depthwise 3×3×3 convolution; causal in time where it is so configured."""

    def __init__(self, sizes: OmniSizes):
        super().__init__()
        self.before = (2, 0) if sizes.causal_convolution else (1, 1)
        self.dsconv = nn.Conv3d(sizes.width, sizes.width, 3, groups=sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, H, W, D]."""
        h = self.dsconv(pad(x.movedim(-1, 1), (1, 1, 1, 1, *self.before)))
        return h.movedim(1, -1)


class ContinuousBias(nn.Module):
    """A bias for each head from the logarithmic offset of two places (Swin v2, arXiv 2111.09883)."""

    def __init__(self, sizes: OmniSizes):
        super().__init__()
        width = sizes.width
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, width)),
                nn.Sequential(nn.Linear(width, width)),
                nn.Linear(width, sizes.num_heads),
            ]
        )

    def forward(self, height: int, width: int) -> Tensor:
        """→ [heads, H·W, H·W]."""
        device = self.net[2].weight.device
        rows = torch.arange(height, device=device).repeat_interleave(width)
        columns = torch.arange(width, device=device).repeat(height)
        places = torch.stack([rows, columns], dim=1)
        offset = (places[:, None] - places[None]).float()
        h = offset.sign() * (offset.abs() + 1).log()
        h = self.net[2](leaky_relu(self.net[1](leaky_relu(self.net[0](h), 0.1)), 0.1))
        return h.permute(2, 0, 1)


def list_slopes(num_heads: int) -> list[float]:
    """How fast each head's attention falls with distance (ALiBi, arXiv 2108.12409)."""

    def list_powers(count: int) -> list[float]:
        first = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [first ** (number + 1) for number in range(count)]

    if math.log2(num_heads).is_integer():
        return list_powers(num_heads)
    nearest = 2 ** math.floor(math.log2(num_heads))
    return list_powers(nearest) + list_powers(2 * nearest)[0::2][: num_heads - nearest]


def rotate_places(x: Tensor, width: int) -> Tensor:
    """Two-dimensional rotary positions: x [B, heads, N, d] of N places in rows of `width`; pairs (2i, 2i+1) turn by the
    column where i is even and by the row where it is odd."""
    num, dims = x.shape[2], x.shape[3]
    place = torch.arange(num, device=x.device)
    speed = 1.0 / 10000 ** (torch.arange(0, dims, 4, device=x.device)[: dims // 4].float() / dims)
    angles = torch.stack([(place % width)[:, None] * speed, (place // width)[:, None] * speed], dim=-1).flatten(1)
    turns = torch.polar(torch.ones_like(angles), angles)  # [N, d/2]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


class CosineAttention(nn.Module):
    """Cosine attention of scale 8; only queries read the norm of the input."""

    def __init__(self, sizes: OmniSizes, causal: bool, positions: Positions):
        super().__init__()
        self.sizes, self.causal, self.positions = sizes, causal, positions
        inner = sizes.num_heads * sizes.head_width
        if positions == "relative":
            self.spatial_rel_pos_bias = ContinuousBias(sizes)
        self.norm = FixedNorm(sizes.width)
        self.context_norm = FixedNorm(sizes.width)  # stored with the weights; nothing reads it
        self.to_q = nn.Linear(sizes.width, inner, bias=False)
        self.to_kv = nn.Linear(sizes.width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(sizes.head_width))
        self.k_scale = nn.Parameter(torch.ones(sizes.head_width))
        self.to_out = nn.Linear(inner, sizes.width, bias=False)

    def forward(self, x: Tensor, places: tuple[int, int] | None) -> Tensor:
        """x: [B, N, D]. places: rows and columns of the N tokens; None for steps of time."""
        parts = self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.sizes.num_heads, -1)).transpose(1, 2) for part in parts)
        if places is not None and self.positions == "rope":
            q, k = rotate_places(q, places[1]), rotate_places(k, places[1])
        q, k = normalize(q, dim=-1) * self.q_scale, normalize(k, dim=-1) * self.k_scale
        bias = self._make_bias(x, places) if self.sizes.biased else None
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.causal and bias is None, scale=8.0)
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _make_bias(self, x: Tensor, places: tuple[int, int] | None) -> Tensor | None:
        """What torch before 2.1 added to the products of queries and keys: [heads, N, N]."""
        num = x.shape[1]
        bias = None
        if places is not None and self.positions == "relative":
            bias = self.spatial_rel_pos_bias(*places)
        if self.causal:
            step = torch.arange(num, device=x.device)
            slopes = torch.tensor(list_slopes(self.sizes.num_heads), device=x.device)[:, None, None]
            bias = -(step[None] - step[:, None]).abs() * slopes + (0 if bias is None else bias)
            bias = bias.masked_fill(step[None] > step[:, None], float("-inf"))
        return bias


class WindowAttention(nn.Module):
    """Attention within square windows of places, with a learned bias for each offset (Swin, arXiv 2103.14030)."""

    relative_position_index: Tensor

    def __init__(self, sizes: OmniSizes):
        super().__init__()
        side, width = sizes.window, sizes.width
        self.side, self.num_heads = side, sizes.num_heads
        self.norm = FixedNorm(width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 2, sizes.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        place = torch.arange(side * side)
        rows, columns = place // side, place % side
        offset = (rows[:, None] - rows + side - 1) * (2 * side - 1) + (columns[:, None] - columns + side - 1)
        self.register_buffer("relative_position_index", offset)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, places: tuple[int, int] | None) -> Tensor:
        """x: [B, H·W, D]; H and W are multiples of the window's side."""
        assert places is not None
        rows, columns = places[0] // self.side, places[1] // self.side
        h = self.norm(x).unflatten(1, (rows, self.side, columns, self.side)).transpose(2, 3)
        windows = h.flatten(3, 4).flatten(0, 2)  # [B · windows, side², D]
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        out = self.proj(mixed).unflatten(0, (len(x), rows, columns)).unflatten(3, (self.side, self.side))
        return out.transpose(2, 3).reshape(x.shape)


class GeluGate(nn.Module):
    """The product of one half of the hidden units with the GELU of the other."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return gelu(gate) * value


def make_feed_forward(sizes: OmniSizes) -> nn.Sequential:
    inner = int(sizes.expansion * (2 / 3) * sizes.width)
    return nn.Sequential(
        nn.LayerNorm(sizes.width),
        nn.Linear(sizes.width, 2 * inner, bias=False),
        GeluGate(),
        nn.Identity(),  # where the authors have dropout: the numbers of the weights count it
        nn.Linear(inner, sizes.width, bias=False),
    )


class Transformer(nn.Module):
    """Blocks 't' (position convolution and full attention) and 'w' (windows), over places or over time."""

    def __init__(self, sizes: OmniSizes, blocks: str, in_time: bool):
        super().__init__()
        self.in_time, self.scrambled = in_time, sizes.scrambled
        self.layers = nn.ModuleList()
        for block in blocks:
            if block == "t":
                positions: Positions = "relative" if in_time else sizes.positions
                attention: nn.Module = CosineAttention(sizes, in_time and sizes.causal, positions)
                parts = [PositionConv(sizes), attention, nn.Identity(), make_feed_forward(sizes)]
            else:
                parts = [nn.Identity(), WindowAttention(sizes), nn.Identity(), make_feed_forward(sizes)]
            self.layers.append(nn.ModuleList(parts))
        self.norm_out = FixedNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, H, W, D] → the same shape."""
        batch, steps, height, width, _ = x.shape
        shape = (batch, height, width, steps) if self.in_time else (batch, steps, height, width)
        h = (x.permute(0, 2, 3, 1, 4) if self.in_time else x).reshape(
            -1, steps if self.in_time else height * width, x.shape[-1]
        )
        for convolution, attention, _, feed_forward in self.layers:
            if isinstance(convolution, PositionConv):
                h = h + self._convolve(convolution, h, (batch, steps, height, width))
            h = h + attention(h, None if self.in_time else (height, width))
            h = h + feed_forward(h)
        h = self.norm_out(h).reshape(*shape, -1)
        return h.permute(0, 3, 1, 2, 4) if self.in_time else h

    def _convolve(self, convolution: PositionConv, h: Tensor, grid: Grid3) -> Tensor:
        """h: tokens in the transformer's order."""
        batch, steps, height, width = grid
        if not self.in_time or self.scrambled:
            return convolution(h.reshape(*grid, -1)).reshape(h.shape)
        clip = h.reshape(batch, height, width, steps, -1).permute(0, 3, 1, 2, 4)
        return convolution(clip).permute(0, 2, 3, 1, 4).reshape(h.shape)


class OmniEncoder(nn.Module):
    """Clips [B, 3, 1 + k·t, H, W] → tokens [B, 1 + k, h, w, D]; the first frame is embedded by itself."""

    def __init__(self, sizes: OmniSizes, blocks: str, time_depth: int, patch: int, time_patch: int):
        super().__init__()
        self.patch, self.time_patch = patch, time_patch
        self.to_patch_emb_first_frame = self._make_embedding(3 * patch**2, sizes.width)
        self.to_patch_emb = self._make_embedding(3 * patch**2 * time_patch, sizes.width)
        self.enc_spatial_transformer = Transformer(sizes, blocks, in_time=False)
        self.enc_temporal_transformer = Transformer(sizes, "t" * time_depth, in_time=True)

    @staticmethod
    def _make_embedding(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Identity(), nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.LayerNorm(width))

    def _split(self, x: Tensor, time: int) -> Tensor:
        """[B, 3, T, H, W] → [B, T/time, h, w, 3·time·patch²]."""
        x = x.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch)).unflatten(2, (-1, time))
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.to_patch_emb_first_frame(self._split(x[:, :, :1], 1))
        if x.shape[2] > 1:
            tokens = torch.cat([tokens, self.to_patch_emb(self._split(x[:, :, 1:], self.time_patch))], dim=1)
        return self.enc_temporal_transformer(self.enc_spatial_transformer(tokens))


class OmniDecoder(nn.Module):
    """Tokens [B, 1 + k, h, w, D] → clips [B, 3, 1 + k·t, H, W]."""

    def __init__(self, sizes: OmniSizes, blocks: str, time_depth: int, patch: int, time_patch: int):
        super().__init__()
        self.patch, self.time_patch = patch, time_patch
        self.dec_spatial_transformer = Transformer(sizes, blocks, in_time=False)
        self.dec_temporal_transformer = Transformer(sizes, "t" * time_depth, in_time=True)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(sizes.width, 3 * patch**2))
        self.to_pixels = nn.Sequential(nn.Linear(sizes.width, 3 * patch**2 * time_patch))

    def _join(self, x: Tensor, time: int) -> Tensor:
        """[B, t, h, w, 3·time·patch²] → [B, 3, T, H, W]."""
        x = x.unflatten(4, (3, time, self.patch, self.patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.dec_spatial_transformer(self.dec_temporal_transformer(tokens))
        frames = self._join(self.to_pixels_first_frame(tokens[:, :1]), 1)
        if tokens.shape[1] > 1:
            frames = torch.cat([frames, self._join(self.to_pixels(tokens[:, 1:]), self.time_patch)], dim=2)
        return frames
