"""Orders and choices that depend on a seed alone: the same on every machine, for any number of workers, after a resume.

Nothing random is stored: numbers are mixed with a key (`mix64`), so a resume needs only to know how far a run was.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from hashlib import sha256

import numpy as np

_MASK = (1 << 64) - 1


class Cursor:
    """An endless, seeded, resumable order over n documents: each epoch is another permutation of them.

    The permutation is a four-round Feistel network over the next power of four, applied until the result is below n. It
    needs no table: a resume takes two integers, whatever n is.
    """

    def __init__(self, num_documents: int, seed: int = 0) -> None:
        if num_documents < 1:
            raise ValueError("a cursor needs at least one document")
        self.num_documents, self.seed = num_documents, seed
        self.epoch = self.position = 0
        self._half_bits = max(1, (max(1, num_documents - 1).bit_length() + 1) // 2)
        self._keys = self._make_keys(0)

    def next(self) -> int:
        """The next document's number; after the last one of an epoch the next epoch begins."""
        index = self._permute(self.position)
        self.position += 1
        if self.position == self.num_documents:
            self.epoch, self.position = self.epoch + 1, 0
            self._keys = self._make_keys(self.epoch)
        return index

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "num_documents": self.num_documents, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where the saved cursor was. Raises ValueError if it had other data or another seed."""
        for name, here in (("num_documents", self.num_documents), ("seed", self.seed)):
            if state[name] != here:
                raise ValueError(f"the saved cursor has {name} {state[name]} but this data has {here}")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._keys = self._make_keys(self.epoch)

    def _make_keys(self, epoch: int) -> list[int]:
        digest = sha256(f"{self.seed}/{epoch}".encode()).digest()
        return [int.from_bytes(digest[8 * number : 8 * number + 8], "big") for number in range(4)]

    def _permute(self, index: int) -> int:
        mask = (1 << self._half_bits) - 1
        while True:  # the network permutes a set at most 4 times as large; walk until inside ours
            left, right = index >> self._half_bits, index & mask
            for key in self._keys:
                left, right = right, left ^ (mix64(right ^ key) & mask)
            index = (left << self._half_bits) | right
            if index < self.num_documents:
                return index


def mix64(value: int) -> int:
    """The finalizer of SplitMix64: a bijection of 64-bit integers that looks random."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix64_array(values: np.ndarray) -> np.ndarray:
    """`mix64` of every element, uint64 [N] → uint64 [N]."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # wraps at 2⁶⁴
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffle_numbers(count: int, key: int) -> np.ndarray:
    """0 … count - 1 in an order that depends on the key alone, int64 [count]."""
    mixed = mix64_array(np.uint64(key & _MASK) ^ mix64_array(np.arange(count, dtype=np.uint64)))
    return np.argsort(mixed, kind="stable").astype(np.int64)


def make_generator(*key: int | str) -> random.Random:
    """A generator seeded by a key; the same on every machine and for every number of workers."""
    return random.Random(int.from_bytes(sha256("/".join(map(str, key)).encode()).digest()[:8], "big"))
