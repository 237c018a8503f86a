"""Embedding rows that share structure while they are trained, and are plain rows afterwards.

A media code is not an arbitrary symbol: the 4,096 values of a finite scalar quantizer are four levels of eight, and a prototype
is a vector. Each row of a block is trained as ``free row + features(code) @ table``, so that a gradient for one code moves its neighbours
too and rare codes are learned from common ones (the notes call for rows that are projected from codebook vectors or summed over levels;
compare the factorised codebooks of "Elucidating the design space of language models for image generation", arXiv 2410.16257).
``finish`` leaves a stock table.

Shapes: V rows, D width, R rows of a block, F features of a code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class StructuredRows(nn.Module):
    """The parametrization of a [V, D] table: adds ``features @ table`` to the rows of every block given."""

    def __init__(self, features: Mapping[range, Tensor], vocab_size: int, width: int, std: float = 0.02):
        super().__init__()
        self.ranges = sorted(features, key=lambda rows: rows.start)
        self.vocab_size = vocab_size
        self.tables = nn.ParameterList()
        for index, rows in enumerate(self.ranges):
            block = features[rows].float()  # [R, F]
            if len(block) != len(rows) or rows.stop > vocab_size:
                raise ValueError(f"{len(block)} feature rows do not fit rows {rows.start}…{rows.stop - 1} of {vocab_size}")
            centred = block - block.mean(0)
            self.register_buffer(f"features_{index}", centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-6), persistent=False)
            self.tables.append(nn.Parameter(torch.randn(block.shape[1], width) * std))

    def forward(self, free: Tensor) -> Tensor:
        """free: [V, D] → [V, D]."""
        parts, at = [], 0
        for index, rows in enumerate(self.ranges):
            if rows.start > at:
                parts.append(free[at : rows.start])
            parts.append(free[rows.start : rows.stop] + getattr(self, f"features_{index}") @ self.tables[index])
            at = rows.stop
        if at < self.vocab_size:
            parts.append(free[at:])
        return torch.cat(parts)


def level_features(level_indices: Tensor, num_levels: tuple[int, ...]) -> Tensor:
    """Level indices [R, K] of a scalar quantizer → one-hot features [R, Σ levels]."""
    return torch.cat([nn.functional.one_hot(level_indices[:, k], n).float() for k, n in enumerate(num_levels)], dim=1)


def structure(embedding: nn.Embedding, features: Mapping[range, Tensor], std: float = 0.02) -> StructuredRows:
    """Puts the structure on ``embedding.weight``; train inside ``parametrize.cached()`` so that it is computed once a step."""
    rows = StructuredRows(features, *embedding.weight.shape, std=std)
    with torch.no_grad():  # the free part of a structured row starts at zero
        for span in rows.ranges:
            embedding.weight[span.start : span.stop].zero_()
    parametrize.register_parametrization(embedding, "weight", rows, unsafe=True)
    return rows


def finish(embedding: nn.Embedding) -> None:
    """Replaces the structured table by its values: a stock embedding again."""
    parametrize.remove_parametrizations(embedding, "weight", leave_parametrized=True)
