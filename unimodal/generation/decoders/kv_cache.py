"""The keys and values of lean streams in one tensor, in full or narrow.

A long sequence costs what its keys and values weigh. ``bfloat16`` halves them; ``int8`` quarters them, with a float16
scale for each head and token, so that no token's rounding depends on another. Both lose a little;
`tools/measure_narrow.py` measures how much.

Shapes: L layers, S streams, K key/value heads, C capacity, D head width, P new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.generation.kinds import CACHES


class KeyValueCache:
    """An unfilled cache of zeros.

    data: [L, 2, S, K, C, D]. scales: float16 [L, 2, S, K, C, 1] with int8, else None. dtype: what is read and written.
    """

    data: Tensor
    scales: Tensor | None

    def __init__(self, shape: Sequence[int], kind: str, dtype: torch.dtype, device: torch.device) -> None:
        if kind not in CACHES:
            raise ValueError(f"a cache of {kind!r} is unknown; use {', '.join(CACHES)}")
        held = {"model": dtype, "bfloat16": torch.bfloat16, "int8": torch.int8}[kind]
        self.kind, self.dtype = kind, dtype
        self.data = torch.zeros(tuple(shape), dtype=held, device=device)
        self.scales = None
        if kind == "int8":
            self.scales = torch.zeros((*shape[:-1], 1), dtype=torch.float16, device=device)

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors whose first five dimensions are L, 2, S, K, C."""
        return (self.data,) if self.scales is None else (self.data, self.scales)

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)

    def resize(self, num_streams: int, capacity: int) -> KeyValueCache:
        """An unfilled cache of the same kind."""
        shape = (*self.shape[:2], num_streams, self.shape[3], capacity, self.shape[5])
        return KeyValueCache(shape, self.kind, self.dtype, self.data.device)

    def write(self, number: int, where: tuple[object, ...], keys: Tensor, values: Tensor) -> None:
        """Put keys and values of layer ``number`` at an index over [S, K, C]."""
        for which, new in enumerate((keys, values)):
            if self.scales is None:
                self.data[number, which][where] = new.to(self.data.dtype)
            else:
                self.data[number, which][where], self.scales[number, which][where] = narrow(new)

    def read(self, number: int, where: tuple[object, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values of layer ``number`` at an index over [S, K, C], in the precision of the step."""
        held = [self.data[number, which][where] for which in (0, 1)]
        if self.scales is not None:
            scales = [self.scales[number, which][where] for which in (0, 1)]
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
