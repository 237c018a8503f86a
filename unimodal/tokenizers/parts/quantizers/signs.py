"""Codes of bits: groups of consecutive bits ⇄ integers.

Shapes: D bits of a position, G groups of b bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

#: which bit of a group comes first: LFQ, Open-MAGVIT2 and WeTok put the least significant there, BSQ the most
FirstBit = Literal["least", "most"]


def check_group_bits(group_bits: Sequence[int]) -> tuple[int, ...]:
    """ValueError unless every group has 1 to 62 bits."""
    if not group_bits or min(group_bits) < 1 or max(group_bits) > 62:
        raise ValueError(f"a group has 1 to 62 bits; got {tuple(group_bits)}")
    return tuple(group_bits)


def list_places(bits: int, first_bit: FirstBit, device: torch.device | None = None) -> Tensor:
    """By how many places each bit of a group is shifted, int64 [b]."""
    places = torch.arange(bits, device=device)
    return places if first_bit == "least" else places.flip(0)


def pack_bits(bits: Tensor, group_bits: Sequence[int], first_bit: FirstBit) -> Tensor:
    """bits: bool [..., D] → int64 [..., G]."""
    groups = bits.long().split(list(group_bits), dim=-1)
    return torch.stack([(part << list_places(part.shape[-1], first_bit, bits.device)).sum(-1) for part in groups], -1)


def unpack_bits(ids: Tensor, group_bits: Sequence[int], first_bit: FirstBit) -> Tensor:
    """ids: int64 [..., G] → bool [..., D]; the inverse of ``pack_bits``."""
    places = [list_places(bits, first_bit, ids.device) for bits in group_bits]
    parts = [(ids[..., group, None] >> place) & 1 for group, place in enumerate(places)]
    return torch.cat(parts, dim=-1).bool()


def list_sign_codes(bits: int, first_bit: FirstBit, device: torch.device | None = None) -> Tensor:
    """The signs of every code of a group, float32 [2^b, b] of ±1."""
    ids = torch.arange(2**bits, device=device)
    return ((ids[:, None] >> list_places(bits, first_bit, device)) & 1).float() * 2 - 1
