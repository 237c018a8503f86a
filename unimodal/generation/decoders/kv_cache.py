"""The keys and values of lean streams in one tensor, in full or narrow.

A long sequence costs what its keys and values weigh. ``bfloat16`` halves them; ``int8`` quarters them, with a float16
scale for each head and token, so that no token's rounding depends on another. Both lose a little;
`tools/measure_narrow.py` measures how much. Which slots are whose is in `paged_cache.py`.

Shapes: L layers, K key/value heads, T slots, D head width, S streams, P new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.generation.kinds import CACHES
from unimodal.generation.large_pages import ask_for_large_pages


class KeyValueCache:
    """An unfilled cache of zeros.

    data: [L, 2, K, T, D]. scales: float16 [L, 2, K, T, 1] with int8, else None. dtype: what is read and written.
    """

    data: Tensor
    scales: Tensor | None

    def __init__(self, shape: Sequence[int], kind: str, dtype: torch.dtype, device: torch.device) -> None:
        if kind not in CACHES:
            raise ValueError(f"a cache of {kind!r} is unknown; use {', '.join(CACHES)}")
        held = {"model": dtype, "bfloat16": torch.bfloat16, "int8": torch.int8}[kind]
        self.kind, self.dtype = kind, dtype
        self.data = ask_for_large_pages(torch.empty(tuple(shape), dtype=held, device=device)).zero_()
        self.scales = None
        if kind == "int8":
            self.scales = torch.zeros((*shape[:-1], 1), dtype=torch.float16, device=device)

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors whose first four dimensions are L, 2, K, T."""
        return (self.data,) if self.scales is None else (self.data, self.scales)

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)

    def resize(self, num_slots: int) -> KeyValueCache:
        """A cache of the same kind with so many slots; those that both have are copied."""
        shape = (*self.shape[:3], num_slots, self.shape[4])
        new = KeyValueCache(shape, self.kind, self.dtype, self.data.device)
        both = min(num_slots, self.shape[3])
        for part, held in zip(new.parts, self.parts, strict=True):
            part[:, :, :, :both] = held[:, :, :, :both]
        return new

    def write(self, number: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [S, K, P, D] of layer ``number`` at slots int64 [S, P]."""
        where = slots.flatten()
        for which, new in enumerate((keys, values)):
            flat = new.transpose(0, 1).flatten(1, 2)  # [K, S * P, D]
            if self.scales is None:
                self.data[number, which].index_copy_(1, where, flat.to(self.data.dtype))
            else:
                whole, scales = narrow(flat)
                self.data[number, which].index_copy_(1, where, whole)
                self.scales[number, which].index_copy_(1, where, scales)

    def read_run(self, number: int, begin: int, num_streams: int, stride: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, K, end, D] of streams whose slots lie one behind the other, ``stride`` for each."""
        area = slice(begin, begin + num_streams * stride)

        def take(part: Tensor) -> tuple[Tensor, Tensor]:
            held = part[number, :, :, area].unflatten(2, (num_streams, stride))[:, :, :, :end].transpose(1, 2)
            return held[0], held[1]

        return self._widen(take(self.data), None if self.scales is None else take(self.scales))

    def read_blocks(self, number: int, blocks: Tensor, size: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, K, end, D] of streams whose slots are these blocks of ``size``, int64 [S, blocks]."""

        def take(part: Tensor) -> tuple[Tensor, Tensor]:
            held = part[number].unflatten(2, (-1, size)).index_select(2, blocks.flatten())
            held = held.unflatten(2, blocks.shape).flatten(3, 4)[:, :, :, :end].transpose(1, 2)
            return held[0], held[1]

        return self._widen(take(self.data), None if self.scales is None else take(self.scales))

    def _widen(self, held: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Both in the precision of the step."""
        if scales is not None:
            return widen(held[0], scales[0], self.dtype), widen(held[1], scales[1], self.dtype)
        return held[0].to(self.dtype), held[1].to(self.dtype)


def narrow(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] → int8 [..., D] and a float16 scale [..., 1]: the largest of a row is 127."""
    scales = (x.float().abs().amax(-1, keepdim=True) / 127).half()
    wide = scales.float()
    return (x.float() / torch.where(wide > 0, wide, torch.inf)).round().clamp_(-127, 127).to(torch.int8), scales


def widen(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What `narrow` kept of its input."""
    return (x.float() * scales.float()).to(dtype)
