"""Codes of bits: groups of consecutive bits ⇄ integers, and what quantizers of signs share.

Shapes: D bits of a position, G groups of b bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unimodal.tokenizers.parts.quantizers.interface import Quantizer

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


class SignQuantizer(Quantizer):
    """Each dimension becomes ± `size`; the bits of a group are one code. Subclasses say how the loss is made.

    commitment, entropy_weight, diversity: of the loss. entropy_bits: other groups for the entropy alone, together as
    many bits as those of the ids.
    """

    def __init__(
        self,
        group_bits: Sequence[int],
        first_bit: FirstBit,
        commitment: float,
        entropy_weight: float,
        diversity: float,
        entropy_bits: Sequence[int] | None,
    ):
        super().__init__()
        self.group_bits, self.first_bit = check_group_bits(group_bits), first_bit
        self.num_dims, self.codebook_sizes = sum(group_bits), tuple(2**bits for bits in group_bits)
        self.commitment, self.entropy_weight, self.diversity = commitment, entropy_weight, diversity
        self.entropy_bits = self.group_bits if entropy_bits is None else check_group_bits(entropy_bits)
        if sum(self.entropy_bits) != self.num_dims:
            raise ValueError(f"entropy_bits are together {self.num_dims} bits; got {self.entropy_bits}")

    @property
    def size(self) -> float:
        """What every dimension of a code is, up to its sign."""
        return 1.0

    def split_for_entropy(self, z: Tensor) -> list[Tensor]:
        """z: [..., D] → the groups of `entropy_bits`. ValueError for groups whose codes are too many to list."""
        if max(self.entropy_bits) > 18:
            raise ValueError(
                f"the entropy of {max(self.entropy_bits)} bits has too many codes to list; "
                "set entropy_bits to smaller groups or entropy_weight to 0"
            )
        return list(z.split(self.entropy_bits, dim=-1))

    def to_values(self, bits: Tensor) -> Tensor:
        """bits: bool [..., D] → ± `size`, float32 [..., D]."""
        return (bits.float() * 2 - 1) * self.size

    def to_ids(self, bits: Tensor) -> Tensor:
        """bits: bool [..., D] → int64 [..., G]."""
        return pack_bits(bits, self.group_bits, self.first_bit)

    def to_bits(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → bool [..., D]; the inverse of ``to_ids``."""
        return unpack_bits(ids, self.group_bits, self.first_bit)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.to_values(self.to_bits(ids))

    def make_table(self, group: int = 0) -> Tensor | None:
        bits = self.group_bits[group]
        return None if bits > 16 else list_sign_codes(bits, self.first_bit, torch.device("cpu")) * self.size
