"""Text as compressed numbers (Lester et al. 2024, "Training LLMs over Neurally Compressed Text", arXiv:2404.03626).

A small model of bytes drives an arithmetic coder. Coded as a whole, its bits look random and teach nothing; so the text
is cut into windows of equal information: as many bytes as fit into 16 bits, with coder and model begun anew in each. A
window is written as two numbers of 8 bits, which are the decoder's ids.

The paper's coder is a network and leaves it open where a window ends; here the bytes' frequencies behind one byte drive
it, and the end of a window is a symbol of its own, which the coder writes too, so that a text is read back as it was.

Legend: S symbols (256 bytes and the end).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.ids import IdFrontEnd

BITS = 16  # of a window
END = 256
LONGEST = 64  # bytes of a window
_PRECISION = 14  # bits of the frequencies behind a byte
_TOTAL = 1 << _PRECISION
_END_SHARE = 1 / 8
_LEAST = 2  # of a byte's frequency: so one byte and the end fit into every window


class WindowCoder:
    """Bytes ⇄ numbers of `BITS` bits. counts: how often each byte stands behind each, [257, 256]; 256 is the start."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        free = _TOTAL - round(_TOTAL * _END_SHARE) - _LEAST * 256
        shares = (counts + 1e-2) / (counts + 1e-2).sum(1, keepdims=True)
        spent = np.cumsum(_LEAST + np.floor(shares * free).astype(np.int64), 1)  # the end has the rest
        ends = np.full((len(counts), 1), _TOTAL)
        #: where the part of each symbol begins behind each byte, [257, S + 1]
        self.borders: list[list[int]] = np.hstack([np.zeros_like(ends), spent, ends]).tolist()

    @classmethod
    def learn(cls, texts: Sequence[bytes]) -> WindowCoder:
        """The frequencies of some texts."""
        counts = np.zeros((257, 256), np.int64)
        for text in texts:
            codes = np.frombuffer(text, np.uint8).astype(np.int64)
            np.add.at(counts, (codes[:-1], codes[1:]), 1)
            np.add.at(counts[256], codes, 1)  # a window begins anywhere
        return cls(counts)

    def encode(self, text: bytes) -> list[tuple[int, int]]:
        """The number of each window, below 2¹⁶, and how many bytes it holds."""
        windows, start = [], 0
        while start < len(text):
            low, width, before, shift = 0, 1 << BITS, 256, 0  # the interval [low, low + width), divided by 2 ** shift
            found = (0, 0)
            for length, byte in enumerate(text[start : start + LONGEST], start=1):
                borders = self.borders[before]
                low = (low << _PRECISION) + width * borders[byte]
                width *= borders[byte + 1] - borders[byte]
                shift, before = shift + _PRECISION, byte
                # the end's part of it holds a whole number?
                first = (low << _PRECISION) + width * self.borders[byte][END]
                number = -(-first >> (shift + _PRECISION))
                if number << (shift + _PRECISION) >= (low + width) << _PRECISION:
                    break
                found = (number, length)
            assert found[1], "one byte and the end fit into every window"
            windows.append(found)
            start += found[1]
        return windows

    def decode(self, numbers: Sequence[int]) -> bytes:
        """The inverse of `encode`. Raises ValueError for a number that no window has."""
        found = bytearray()
        for number in numbers:
            place, low, width, before = number, 0, 1 << BITS, 256
            for _ in range(LONGEST + 1):
                borders = self.borders[before]
                symbol = bisect_right(borders, ((place - low) << _PRECISION) // width) - 1
                if symbol >= END:
                    break
                low = (low << _PRECISION) + width * borders[symbol]
                width *= borders[symbol + 1] - borders[symbol]
                place <<= _PRECISION
                found.append(symbol)
                before = symbol
            else:
                raise ValueError(f"{number} is no window of this coder")
        return bytes(found)


class EqualInformationFrontEnd(IdFrontEnd):
    """Windows as two ids of 8 bits each; the second one stands for the window's bytes."""

    def __init__(self, coder: WindowCoder, sizes: NanoConfig, seed: int = 0) -> None:
        super().__init__(256, sizes, seed)
        self.coder = coder

    def encode(self, text: bytes) -> list[tuple[int, int]]:
        ids: list[tuple[int, int]] = []
        for number, length in self.coder.encode(text):
            ids += [(number >> 8, 0), (number & 255, length)]
        return ids
