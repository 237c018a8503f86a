"""The first tokens of every span: what ordered codes are made for.

A tokenizer that was trained with the tail of its codes dropped at random (One-D-Piece, arXiv 2501.10064; FlexTok,
arXiv 2502.13967) puts what matters first, so that the shorter input needs no scores at all. It is right for ordered
tokenizers only (`MediaTokenizer.ordered`): of a sound or of a raster picture it keeps the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span


@dataclass
class Prefix(Compressor):
    """Keep the first tokens (as One-D-Piece, arXiv 2501.10064, and FlexTok, arXiv 2502.13967, shorten their codes).

    hidden [B, N, D] → the first `span.count` tokens. No settings of its own; raises ValueError for what `Method`
    refuses.
    """

    paper: ClassVar[str] = "One-D-Piece, arXiv 2501.10064; FlexTok, arXiv 2502.13967"

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(torch.arange(span.count, device=hidden.device).expand(len(hidden), -1))
