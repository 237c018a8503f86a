"""Front ends that write a text as ids of one table: tokens of a tokenizer, or single bytes.

Bytes are MonoByte's way ("MonoByte: A Pool of Monolingual Byte-level Language Models", arXiv:2209.11035): 256 rows and
no tokenizer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.interface import FrontEnd, UnitScores, pad_rows
from unimodal.text.reports.opened import OpenedTokenizer


class IdFrontEnd(FrontEnd):
    """Row 0 starts every text; id i of a text is row i + 1 of the decoder's table, which also scores."""

    def __init__(self, num_ids: int, sizes: NanoConfig, seed: int = 0) -> None:
        super().__init__(sizes, num_ids + 1, seed)

    @abstractmethod
    def encode(self, text: bytes) -> list[tuple[int, int]]:
        """The ids of a text, and the bytes that each of them stands for."""

    def embed(self, rows: Tensor) -> Tensor:
        """Rows [B, N] → [B, N, D]."""
        return self.lm.get_input_embeddings()(rows)

    def compute_logits(self, states: Tensor) -> Tensor:
        """States [B, N, D] → the scores of the rows [B, N, V]."""
        return self.lm.get_output_embeddings()(states)

    def score(self, texts: Sequence[bytes]) -> UnitScores:
        units = [self.encode(text) for text in texts]
        sizes = pad_rows([[size for _, size in row] for row in units])  # [B, U]
        rows = pad_rows([[number + 1 for number, _ in row] for row in units])
        start = torch.zeros(len(texts), 1, dtype=torch.int64)
        states = self.read(self.embed(torch.cat([start, rows], 1)[:, :-1]))
        logits = self.compute_logits(states)[..., 1:]  # the start is never written
        ids = (rows - 1).clamp_min(0)
        nats = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(rows)
        return UnitScores(nats * (rows > 0), sizes)


class TokenFrontEnd(IdFrontEnd):
    """The tokens of any text tokenizer, which must spell every text."""

    def __init__(self, tokenizer: OpenedTokenizer, sizes: NanoConfig, seed: int = 0) -> None:
        super().__init__(tokenizer.text.size, sizes, seed)
        self.tokenizer = tokenizer

    def encode(self, text: bytes) -> list[tuple[int, int]]:
        """Raises ValueError for a text that the tokenizer does not give back."""
        try:
            ids = self.tokenizer.encode(text.decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"a text is no UTF-8 at byte {error.start}; tokens of {self.tokenizer.name} need it"
            ) from None
        spelled = [self.tokenizer.spelled.get(row, b"") for row in ids]
        if b"".join(spelled) != text:
            raise ValueError(f"{self.tokenizer.name} does not give a text back as it was: {text[:40]!r}")
        return [(row, len(piece)) for row, piece in zip(ids, spelled, strict=True)]


class ByteFrontEnd(IdFrontEnd):
    """Every byte is an id."""

    def __init__(self, sizes: NanoConfig, seed: int = 0) -> None:
        super().__init__(256, sizes, seed)

    def encode(self, text: bytes) -> list[tuple[int, int]]:
        return [(byte, 1) for byte in text]
