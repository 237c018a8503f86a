"""Whisper's encoder (arXiv 2212.04356) of log-mel bands, and the form that S3Tokenizer's second version made of it:
rotary positions in place of a table, and a memory of neighbours beside attention (FSMN, arXiv 1512.08301).

Sounds of different lengths share a batch: padding is masked before each convolution, in attention and in the memory.

Shapes: B batch, M bands, F frames, N steps behind the convolutions, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention


@dataclass(frozen=True)
class WhisperSizes:
    """context: steps that the table of positions has; None for rotary positions. strides: of the two convolutions.
    memory: steps of a depthwise convolution of the values, which is added to what attention gives; 0 for none.
    final_norm: a norm behind the last block. attention_eps: of the norm before attention."""

    num_mels: int
    width: int
    num_heads: int
    num_layers: int
    context: int | None = 1500
    strides: tuple[int, int] = (1, 2)
    memory: int = 0
    final_norm: bool = True
    attention_eps: float = 1e-5


class WhisperAttention(nn.Module):
    """Attention whose keys have no bias; with rotary positions and a memory where the sizes say so."""

    def __init__(self, sizes: WhisperSizes):
        super().__init__()
        self.num_heads, self.rotary = sizes.num_heads, sizes.context is None
        self.query, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(3))
        self.key = nn.Linear(sizes.width, sizes.width, bias=False)
        self.fsmn_block: nn.Conv1d | None = None
        if sizes.memory:
            self.fsmn_block = nn.Conv1d(sizes.width, sizes.width, sizes.memory, groups=sizes.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, N, D]; mask: bool [B, N], True where a step is real → [B, N, D]."""
        values = self.value(x)
        q, k, v = (h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for h in (self.query(x), self.key(x), values))
        if self.rotary:
            q, k = rotate_halves(q), rotate_halves(k)
        seen = None if mask is None else mask[:, None, None]
        attended = self.out(scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))
        return attended if self.fsmn_block is None else attended + self._remember(values, mask)

    def _remember(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Each step's value and the weighted values around it, [B, N, D]."""
        assert self.fsmn_block is not None
        values = values if mask is None else values * mask.unsqueeze(-1)
        size = self.fsmn_block.kernel_size[0]
        before = (size - 1) // 2
        around = self.fsmn_block(pad(values.transpose(1, 2), (before, size - 1 - before))).transpose(1, 2)
        return values + around if mask is None else (values + around) * mask.unsqueeze(-1)


def rotate_halves(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions (arXiv 2104.09864): component i turns with component i + K / 2. x: [B, H, N, K]."""
    half = x.shape[-1] // 2
    speeds = base ** -(torch.arange(half, device=x.device).float() / half)
    turns = torch.arange(x.shape[-2], device=x.device).float().outer(speeds)  # [N, K / 2]
    cos, sin = (turn.repeat(1, 2).to(x.dtype) for turn in (turns.cos(), turns.sin()))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class WhisperBlock(nn.Module):
    """Attention and a GELU feed-forward, each behind a norm, residual."""

    def __init__(self, sizes: WhisperSizes):
        super().__init__()
        self.attn = WhisperAttention(sizes)
        self.attn_ln = nn.LayerNorm(sizes.width, sizes.attention_eps)
        self.mlp = nn.Sequential(
            nn.Linear(sizes.width, 4 * sizes.width), nn.GELU(), nn.Linear(4 * sizes.width, sizes.width)
        )
        self.mlp_ln = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask)
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    """Two convolutions, positions, blocks."""

    def __init__(self, sizes: WhisperSizes):
        super().__init__()
        self.sizes = sizes
        self.conv1 = nn.Conv1d(sizes.num_mels, sizes.width, 3, stride=sizes.strides[0], padding=1)
        self.conv2 = nn.Conv1d(sizes.width, sizes.width, 3, stride=sizes.strides[1], padding=1)
        if sizes.context is not None:
            self.register_buffer("positional_embedding", make_sinusoids(sizes.context, sizes.width))
        self.blocks = nn.ModuleList(WhisperBlock(sizes) for _ in range(sizes.num_layers))
        self.ln_post = nn.LayerNorm(sizes.width) if sizes.final_norm else None

    def count_steps(self, num_frames: int) -> int:
        """N of so many frames."""
        for stride in self.sizes.strides:
            num_frames = (num_frames - 1) // stride + 1
        return num_frames

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """mel: [B, M, F]. lengths: int64 [B], frames that are real; None if all are → [B, N, D]; padded steps hold
        nothing of use.

        Raises ValueError for more steps than the table of positions has.
        """
        *_, last = self.list_hidden(mel, lengths)
        return last

    def list_hidden(self, mel: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """``forward`` step by step: what goes into the blocks, then what each of them gives, [B, N, D] each; the last
        one behind the last norm."""
        steps, context = self.count_steps(mel.shape[-1]), self.sizes.context
        if context is not None and steps > context:
            raise ValueError(f"this encoder has {context} positions and the sound {steps}; encode it in pieces")
        x, mask = mel, None
        for conv, stride in ((self.conv1, self.sizes.strides[0]), (self.conv2, self.sizes.strides[1])):
            if lengths is not None:
                x = x * mark_real(lengths, x.shape[-1]).unsqueeze(1)
                lengths = (lengths - 1) // stride + 1
            x = gelu(conv(x))
        x = x.transpose(1, 2)
        if lengths is not None:
            mask = mark_real(lengths, steps)
        if context is not None:
            x = x + self.get_buffer("positional_embedding")[:steps]
        yield x
        for number, block in enumerate(self.blocks):
            x = block(x, mask)
            last = number + 1 == len(self.blocks)
            yield self.ln_post(x) if last and self.ln_post is not None else x


def mark_real(lengths: Tensor, size: int) -> Tensor:
    """int64 [B] → bool [B, size], True where a step is real."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def make_sinusoids(length: int, width: int) -> Tensor:
    """Sines, then cosines of speeds from 1 to 1/10000, float [length, width]."""
    speeds = (torch.arange(width // 2) * (-math.log(10000.0) / (width // 2 - 1))).exp()
    turns = torch.arange(length).float().outer(speeds)
    return torch.cat([turns.sin(), turns.cos()], dim=1)
