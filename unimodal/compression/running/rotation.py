"""Rotary tables for explicit positions: one for each token, several (PPE), or a cached key rotated to a new one.

A key at position p is R(p) k; rotations add up, so a cached key moves to position p' by R(p' - p). A merged token with
P source positions divides its rotary frequencies evenly among them (positional preservation embedding).

Shapes: B rows, N tokens, P positions of a token, H heads, W head width; frequency f turns the pair (f, f + W / 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: kinds of rotary tables in which a position's angle does not depend on the length of the sequence
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def make_rotary_tables(rotary: nn.Module, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """positions int64 [B, N, P] → cos and sin [B, N, W] by the model's own rotary module, in the type of `like`."""
    num_rows, num, count = positions.shape
    cos, sin = rotary(like, position_ids=positions.flatten(1))  # [B, N * P, W]
    if count == 1:
        return cos, sin
    half = cos.shape[-1] // 2
    section = torch.arange(half, device=cos.device) * count // half  # [W / 2], which of the P positions
    section = torch.cat([section, section]).expand(num_rows, num, 1, -1)
    cos, sin = (table.unflatten(1, (num, count)).gather(2, section).squeeze(2) for table in (cos, sin))
    return cos, sin


def rotate_by(rotary: nn.Module, states: Tensor, offset: Tensor) -> Tensor:
    """Move rotated queries or keys [B, H, N, W] by offset int64 [B, H or 1, N] positions."""
    num_rows, num_heads, num = offset.shape
    cos, sin = rotary(states, position_ids=offset.reshape(num_rows, num_heads * num))
    scale = rotary.attention_scaling  # the state contains it already
    cos, sin = (table.view(num_rows, num_heads, num, -1) / scale for table in (cos, sin))
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin
