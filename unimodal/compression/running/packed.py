"""A cache layer of which some entries are stored in a few bits.

Entries are packed once and never again: dropping others, or rows, leaves codes and scales as they are. Keys are scaled
channel by channel over groups of consecutive entries, values entry by entry over groups of channels, each between its
smallest and largest value (KIVI, arXiv 2402.02750).

Shapes: B rows, K key/value heads, L slots, P packed entries, E exact ones, G groups of keys, W head width, N any
number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedNumbers(NamedTuple):
    """Packed values [..., W]. low, scale: broadcast against them."""

    data: Tensor  # uint8 [..., W * bits / 8], rounded up
    low: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class PackedStates:
    """Keys and values [B, K, L, W] of a layer, packed and exact. Places beyond `length` are padding.

    places: int32 [B, K, P], the slots of packed entries. groups: int32 [B, K, P], the groups of their keys. exact:
    keys and values [B, K, E, W]. exact_places: int32 [B, K, E].
    """

    bits: int
    length: int
    widths: tuple[int, int]
    places: Tensor
    groups: Tensor
    keys: PackedNumbers  # low and scale [B, K, G, W], by group
    values: PackedNumbers  # low and scale [B, K, P, W / size, 1]
    exact: tuple[Tensor, Tensor]
    exact_places: Tensor

    @classmethod
    def begin(cls, keys: Tensor, values: Tensor, bits: int, size: int) -> PackedStates:
        """All entries exact. size: entries, or channels, in a group."""
        num_rows, num_heads, length, width = keys.shape
        none = torch.zeros(num_rows, num_heads, 0, dtype=torch.int32, device=keys.device)
        places = torch.arange(length, device=keys.device, dtype=torch.int32).expand(num_rows, num_heads, -1)
        by_group = PackedNumbers(pack_bits(keys[:, :, :0].to(torch.uint8), bits), keys[:, :, :0], keys[:, :, :0])
        by_entry = quantize(values[:, :, :0].unflatten(-1, find_shape(values, size)), bits)
        by_entry = by_entry._replace(data=pack_bits(by_entry.data.flatten(-2), bits))
        widths = (width, values.shape[-1])
        return cls(bits, length, widths, none, none, by_group, by_entry, (keys, values), places)

    def unpack(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, [B, K, L, W] each; zeros for slots that hold nothing."""
        group = self.groups.long()[..., None]
        wide = group.expand(-1, -1, -1, self.widths[0])
        low, scale = (self.keys.low.gather(2, wide), self.keys.scale.gather(2, wide))
        keys = unpack_bits(self.keys.data, self.bits, self.widths[0]).to(low) * scale + low
        coded = unpack_bits(self.values.data, self.bits, self.widths[1]).to(self.values.low)
        grouped = coded.unflatten(-1, (self.values.low.shape[3], -1))
        values = (grouped * self.values.scale + self.values.low).flatten(-2)
        return self._spread(keys, self.exact[0]), self._spread(values, self.exact[1])

    def _spread(self, packed: Tensor, exact: Tensor) -> Tensor:
        """Entries in their slots, [B, K, L, W]."""
        states = torch.cat([packed, exact], 2)
        places = torch.cat([self.places, self.exact_places], 2).long()[..., None].expand_as(states)
        whole = states.new_zeros(*states.shape[:2], self.length + 1, states.shape[3])  # a bin for padding
        return whole.scatter(2, places, states)[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> PackedStates:
        """New entries [B, K, N, W] behind these, exact."""
        num = keys.shape[2]
        places = torch.arange(self.length, self.length + num, device=keys.device, dtype=torch.int32)
        old = self.exact_places.masked_fill(self.exact_places >= self.length, self.length + num)
        return replace(
            self,
            length=self.length + num,
            places=self.places.masked_fill(self.places >= self.length, self.length + num),
            exact=(torch.cat([self.exact[0], keys], 2), torch.cat([self.exact[1], values], 2)),
            exact_places=torch.cat([old, places.expand(*old.shape[:2], -1)], 2),
        )

    def list_tensors(self) -> list[Tensor]:
        """All tensors that it holds."""
        return [self.places, self.groups, *self.keys, *self.values, *self.exact, self.exact_places]

    def select_rows(self, rows: Tensor) -> PackedStates:
        return replace(
            self,
            places=self.places[rows],
            groups=self.groups[rows],
            keys=PackedNumbers(*(part[rows] for part in self.keys)),
            values=PackedNumbers(*(part[rows] for part in self.values)),
            exact=(self.exact[0][rows], self.exact[1][rows]),
            exact_places=self.exact_places[rows],
        )

    def take(self, index: Tensor, valid: Tensor) -> PackedStates:
        """The slots of index int64 [B, K, M], in a new order, no slot twice; valid bool [B, K, M]."""
        num = index.shape[2]
        to = torch.arange(num, device=index.device).expand_as(index).masked_fill(~valid, num)
        where = torch.full((*index.shape[:2], self.length + 1), num, device=index.device).scatter(2, index, to)
        moved = replace(
            self,
            length=num,
            places=where.gather(2, self.places.long()).to(torch.int32),
            exact_places=where.gather(2, self.exact_places.long()).to(torch.int32),
        )
        return moved._drop_packed()._drop_exact()

    def _drop_packed(self) -> PackedStates:
        order = _choose(self.places < self.length)

        def pick(x: Tensor) -> Tensor:
            return _gather(x, order)

        return replace(
            self,
            places=pick(self.places),
            groups=pick(self.groups),
            keys=self.keys._replace(data=pick(self.keys.data)),
            values=PackedNumbers(*(pick(part) for part in self.values)),
        )

    def _drop_exact(self) -> PackedStates:
        order = _choose(self.exact_places < self.length)
        keys, values = self.exact
        return replace(
            self,
            exact=(_gather(keys, order), _gather(values, order)),
            exact_places=_gather(self.exact_places, order),
        )

    def pack(self, chosen: Tensor, size: int) -> PackedStates:
        """Pack the exact entries of chosen bool [B, K, L], in groups of `size` entries and of `size` channels."""
        marked = F.pad(chosen, (0, 1)).gather(2, self.exact_places.long())  # [B, K, E]
        if not bool(marked.any()):
            return self
        order = _choose(marked)
        fresh = torch.arange(order.shape[2], device=order.device) < marked.sum(-1, keepdim=True)  # [B, K, N]
        keys, values = (_gather(states, order) for states in self.exact)
        old = self.keys.low.shape[2]
        group = torch.arange(order.shape[2], device=order.device) // size
        padding = -order.shape[2] % size
        real = F.pad(fresh, (0, padding)).unflatten(2, (-1, size))[..., None]
        grouped = F.pad(keys, (0, 0, 0, padding)).unflatten(2, (-1, size))  # [B, K, G, size, W]
        coded = quantize(grouped, self.bits, 3, real)
        value_codes = quantize(values.unflatten(-1, find_shape(values, size)), self.bits)
        places = _gather(self.exact_places, order).masked_fill(~fresh, self.length)
        codes = coded.data.flatten(2, 3)[:, :, : order.shape[2]]
        packed = replace(
            self,
            places=torch.cat([self.places, places], 2),
            groups=torch.cat([self.groups, (group + old).to(torch.int32).expand_as(places)], 2),
            keys=PackedNumbers(
                torch.cat([self.keys.data, pack_bits(codes, self.bits)], 2),
                torch.cat([self.keys.low, coded.low.squeeze(3)], 2),
                torch.cat([self.keys.scale, coded.scale.squeeze(3)], 2),
            ),
            values=PackedNumbers(
                torch.cat([self.values.data, pack_bits(value_codes.data.flatten(-2), self.bits)], 2),
                torch.cat([self.values.low, value_codes.low], 2),
                torch.cat([self.values.scale, value_codes.scale], 2),
            ),
            exact_places=self.exact_places.masked_fill(marked, self.length),
        )
        return packed._drop_packed()._drop_exact()

    def count_bytes(self) -> int:
        """The memory of all that is held."""
        tensors = (self.places, self.groups, *self.keys, *self.values, *self.exact, self.exact_places)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def find_shape(states: Tensor, size: int) -> tuple[int, int]:
    """How the W channels of states divide into groups: (number, channels), of `size` if that divides W, else one."""
    width = states.shape[-1]
    return (width // size, size) if width % size == 0 else (1, width)


def quantize(states: Tensor, bits: int, dim: int = -1, real: Tensor | None = None) -> PackedNumbers:
    """states in groups along `dim` → codes uint8 [...], and low and scale, of size 1 along `dim`.

    real: bool, broadcast against the states: those that count.
    """
    lows, highs = states, states
    if real is not None:
        lows, highs = states.masked_fill(~real, torch.inf), states.masked_fill(~real, -torch.inf)
    low, high = lows.amin(dim, keepdim=True), highs.amax(dim, keepdim=True)
    empty = low > high
    low = low.masked_fill(empty, 0.0)
    scale = (high.masked_fill(empty, 0.0) - low) / (2**bits - 1)
    codes = ((states - low) / scale.clamp_min(1e-8)).round().clamp(0, 2**bits - 1)
    return PackedNumbers(codes.to(torch.uint8), low, scale)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., W] below 2^bits → uint8 [..., W * bits / 8], the last byte filled up with zeros."""
    count = 8 // bits
    grouped = F.pad(codes, (0, -codes.shape[-1] % count)).unflatten(-1, (-1, count))
    shifts = torch.arange(count, device=codes.device, dtype=torch.uint8) * bits
    return (grouped << shifts).sum(-1, dtype=torch.uint8)


def unpack_bits(data: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of `pack_bits`, [..., width]."""
    shifts = torch.arange(8 // bits, device=data.device, dtype=torch.uint8) * bits
    return (data[..., None] >> shifts & (2**bits - 1)).flatten(-2)[..., :width]


def _choose(marked: Tensor) -> Tensor:
    """marked bool [B, K, N] → the places of the marked ones first, int64 [B, K, M], M the most of any head."""
    most = int(marked.sum(-1).max()) if marked.numel() else 0
    return (~marked).long().argsort(dim=-1, stable=True)[..., :most]


def _gather(x: Tensor, order: Tensor) -> Tensor:
    """x [B, K, N, ...] at order int64 [B, K, M]."""
    wide = order.view(*order.shape, *[1] * (x.ndim - 3)).expand(*order.shape, *x.shape[3:])
    return x.gather(2, wide)
