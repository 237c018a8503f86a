"""The first tokens of every span: what ordered codes are made for.

A tokenizer that was trained with its tail dropped (One-D-Piece, arXiv 2501.10064; FlexTok, arXiv 2502.13967) puts what
matters first, so the shorter input needs no scores at all. It is right for ordered tokenizers only (`ordered`): of a
sound or of a raster picture it keeps the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span


@dataclass
class Prefix(Compressor):
    """Keep the beginning."""

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(torch.arange(span.count, device=hidden.device).expand(len(hidden), -1))
