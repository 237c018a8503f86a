"""What a frozen trunk makes of media that come again in training, kept in half precision: in memory, and in a folder
where a run that goes on, or the next one, finds it again.

Shapes: [...] of any kind; a medium is known by its values.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.files import write_bytes_atomically


class KeptFeatures:
    """Features by the medium that they are of, up to `most_bytes`; of media that come when it is full none are kept.

    folder: of one file each, which count like those in memory and are read when their turn comes. maker: what tells
    this trunk's features from another's in the same folder.
    """

    def __init__(self, most_bytes: int, folder: Path | None = None, maker: bytes = b""):
        self.left, self.rows, self.folder, self.maker = most_bytes, dict[bytes, Tensor](), folder, maker

    def find(self, medium: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """make(medium), or what it was, rounded to half precision either way."""
        values = medium.detach().contiguous().cpu().numpy().tobytes()
        key = blake2b(values, digest_size=16, key=self.maker[:64]).digest()
        row = self.rows.get(key)
        if row is None:
            row = self._read(key)
            if row is None:
                row = make(medium).half().cpu()
                self._write(key, row)
            size = row.numel() * row.element_size()
            if size <= self.left:
                self.rows[key] = row
                self.left -= size
        return row.to(medium.device, torch.float32)

    def _read(self, key: bytes) -> Tensor | None:
        path = None if self.folder is None else self.folder / f"{key.hex()}.npy"
        return None if path is None or not path.is_file() else torch.from_numpy(np.load(path))

    def _write(self, key: bytes, row: Tensor) -> None:
        size = row.numel() * row.element_size()
        if self.folder is None or size > self.left:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, row.numpy())
        write_bytes_atomically(self.folder / f"{key.hex()}.npy", buffer.getvalue())
