"""Embedding rows that share structure while they are trained, and are plain rows afterwards.

A media code is not an arbitrary symbol: the 4,096 values of a finite scalar quantizer are four levels of eight, and a
prototype is a vector. Each row of a block is trained as ``free row + features(code) @ table``, so that a gradient for
one code moves its neighbours too and rare codes are learned from common ones. Compare the factorised codebooks of
"Elucidating the design space of language models for image generation" (arXiv 2410.16257). A row that has words of its
own (a concept's prototype) may also share the rows of these words throughout training: naming a picture and drawing a
name then become nearly a copy. ``remove_structure`` leaves a stock table.

Shapes: V rows, D width, R rows of a block, F features of a code.
``words`` maps a block to a list of text rows for each of its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class StructuredRows(nn.Module):
    """The parametrization of a table [V, D]: adds ``features @ table`` to the rows of each block.

    Raises ValueError for features of another number of rows than their block has.
    """

    def __init__(
        self,
        features: Mapping[range, Tensor],
        vocab_size: int,
        width: int,
        std: float = 0.02,
        words: Mapping[range, Sequence[Sequence[int]]] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        draws = torch.Generator().manual_seed(seed)  # a run is known by what it began with, when it is resumed
        self.ranges = sorted(features, key=lambda rows: rows.start)
        self.vocab_size = vocab_size
        self.tables = nn.ParameterList()
        for index, rows in enumerate(self.ranges):
            block = features[rows].float()  # [R, F]
            if len(block) != len(rows) or rows.stop > vocab_size:
                raise ValueError(
                    f"{len(block)} feature rows do not fit rows {rows.start}…{rows.stop - 1} of {vocab_size}"
                )
            centred = block - block.mean(0)
            self.register_buffer(
                f"features_{index}", centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-6), persistent=False
            )
            self.tables.append(nn.Parameter(torch.randn(block.shape[1], width, generator=draws) * std))
        self.words = {rows: _build_bags(listed, vocab_size) for rows, listed in (words or {}).items()}

    def forward(self, free: Tensor) -> Tensor:
        """Free rows [V, D] → the rows in use [V, D], in the precision of the free ones."""
        with torch.autocast(free.device.type, enabled=False):
            return self._add_shared(free)

    def _add_shared(self, free: Tensor) -> Tensor:
        ends = sorted({0, self.vocab_size, *(end for rows in self.ranges for end in (rows.start, rows.stop))})
        blocks = [range(*pair) for pair in itertools.pairwise(ends)]
        parts = list(free.split([len(rows) for rows in blocks]))  # at once: a slice has a gradient of the whole size
        for index, rows in enumerate(self.ranges):
            place = blocks.index(rows)
            parts[place] = parts[place] + getattr(self, f"features_{index}") @ self.tables[index]
            if rows in self.words:
                parts[place] = parts[place] + torch.sparse.mm(self.words[rows], free)
        return torch.cat(parts)


def encode_levels(level_indices: Tensor, num_levels: tuple[int, ...]) -> Tensor:
    """Level indices [R, K] of a scalar quantizer → one-hot features [R, Σ levels]."""
    return torch.cat([nn.functional.one_hot(level_indices[:, k], n).float() for k, n in enumerate(num_levels)], dim=1)


def _build_bags(listed: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Lists of word rows → sparse [R, V] with 1/√n at the n words of a row: their sum, at about the size of one row."""
    places = [(row, word) for row, ids in enumerate(listed) for word in ids]
    weights = [len(listed[row]) ** -0.5 for row, _ in places]
    indices = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
    size = (len(listed), vocab_size)
    return torch.sparse_coo_tensor(indices, torch.tensor(weights), size, check_invariants=True).coalesce()


def add_structure(
    embedding: nn.Embedding,
    features: Mapping[range, Tensor],
    std: float = 0.02,
    words: Mapping[range, Sequence[Sequence[int]]] | None = None,
    seed: int = 0,
) -> StructuredRows:
    """Put the structure on ``embedding.weight``; its free rows start at zero, its shared tables as the seed draws them.

    Train inside ``parametrize.cached()``, so that the table is computed once a step. Raises ValueError for a frozen
    table.
    """
    if not embedding.weight.requires_grad:
        raise ValueError("the table is frozen; structured rows are for tables that are trained")
    rows = StructuredRows(features, embedding.num_embeddings, embedding.embedding_dim, std, words, seed)
    with torch.no_grad():  # the free part of a structured row starts at zero
        for span in rows.ranges:
            embedding.weight[span.start : span.stop].zero_()
    parametrize.register_parametrization(embedding, "weight", rows, unsafe=True)
    return rows


@torch.no_grad()
def load_rows(module: nn.Module, rows: Tensor, name: str = "weight") -> None:
    """Give a structured table the values ``rows`` [V, D] of a plain one, to train it further.

    module, name: where the table is: the weight of an embedding, or the new rows of an extended one.
    The part of a block that its features explain (least squares) goes to its shared table, the rest to its free rows.
    Raises ValueError for a table of another shape.
    """
    structured = module.parametrizations[name]  # type: ignore[index, operator]
    shape: StructuredRows = structured[0]
    if rows.shape != structured.original.shape:
        raise ValueError(f"a table of {tuple(rows.shape)} does not fit one of {tuple(structured.original.shape)}")
    structured.original.copy_(rows)
    for index, span in enumerate(shape.ranges):
        left = rows[span.start : span.stop].float()
        if span in shape.words:
            left = left - torch.sparse.mm(shape.words[span], rows.float())
        features = getattr(shape, f"features_{index}")  # [R, F]
        gram = features.T @ features
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
        shape.tables[index].copy_(torch.linalg.solve(gram, features.T @ left))
        structured.original[span.start : span.stop] = left - features @ shape.tables[index]


def remove_structure(embedding: nn.Embedding) -> None:
    """Replace the structured table by its values: a stock embedding again."""
    parametrize.remove_parametrizations(embedding, "weight", leave_parametrized=True)
