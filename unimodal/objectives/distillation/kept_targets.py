"""A teacher's likeliest rows of each document, kept from one epoch to the next.

Shapes: B rows, N tokens, P labelled tokens, k kept rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

LEAST = -60000.0  # what half precision holds; of no row


class TargetStore(Protocol):
    """Records by key; what is added is found again, also by a later run."""

    def find(self, key: bytes) -> bytes | None: ...
    def keep(self, key: bytes, record: bytes) -> None: ...


class KeptTargets:
    """What a teacher says of documents, by their ids and labels: half-precision log-probabilities and row numbers."""

    def __init__(self, store: TargetStore) -> None:
        self.store = store

    def find(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        where: Tensor,
        ask: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and rows of the labelled tokens at `where` int64 [P], each [P, k].

        ask: the teacher's answer for the whole batch; called if a document of it is not kept.
        """
        documents = (position_ids.reshape(-1) == 0).cumsum(0) - 1
        of = documents[where]
        numbers = of.unique().tolist()
        flat = torch.stack([ids.reshape(-1), labels.reshape(-1)]).cpu().numpy()
        owner = documents.cpu().numpy()
        keys = {n: hashlib.sha256(np.ascontiguousarray(flat[:, owner == n]).tobytes()).digest() for n in numbers}
        records = {number: self.store.find(key) for number, key in keys.items()}
        if any(record is None for record in records.values()):
            known, rows = ask()
            for number in numbers:
                if records[number] is None:
                    here = of == number
                    self.store.keep(keys[number], _pack(known[here], rows[here]))
            return known.clamp(LEAST, 0).half().float(), rows  # as they will be read again
        pieces = [_unpack(record) for record in records.values() if record is not None]
        known, rows = (torch.cat([pair[side] for pair in pieces]).to(ids.device) for side in (0, 1))
        back = torch.argsort(torch.cat([(of == number).nonzero().flatten() for number in numbers]))
        return known[back], rows[back]


def _pack(known: Tensor, rows: Tensor) -> bytes:
    head = np.array(known.shape, "<u4").tobytes()
    half = known.cpu().numpy().clip(LEAST, 0).astype("<f2")
    return head + half.tobytes() + rows.cpu().numpy().astype("<u4").tobytes()


def _unpack(record: bytes) -> tuple[Tensor, Tensor]:
    num, kept = np.frombuffer(record[:8], "<u4").tolist()
    middle = 8 + 2 * num * kept
    known = np.frombuffer(record[8:middle], "<f2").reshape(num, kept).astype(np.float32)
    rows = np.frombuffer(record[middle:], "<u4").reshape(num, kept).astype(np.int64)
    return torch.from_numpy(known), torch.from_numpy(rows)
