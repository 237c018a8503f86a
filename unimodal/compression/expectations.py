"""What a causal LM expects next, among the rows that could come: how a method's change is measured and learnt from.

A model of ours is taught a softmax over text and controls, or over one block of codes, and what its head says of other
rows at that place no training has touched; on nano they have most of the whole softmax.

Shapes: P places, V rows of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.vocabulary import Vocabulary

_NEVER = -1e9  # finite, so that a difference of two is no NaN


def group_rows(vocabulary: Vocabulary) -> Tensor:
    """Of each row the block of codes that it belongs to, from 1 on; 0 of text and controls. int64 [V]."""
    found = torch.zeros(vocabulary.size, dtype=torch.int64)
    for number, block in enumerate(vocabulary.blocks, start=1):
        found[block.start : block.start + block.size] = number
    return found


def compute_expectations(logits: Tensor, following: Tensor, vocabulary: Vocabulary | None) -> Tensor:
    """The logarithms [P, V] of what logits [P, V] expect, among the rows of the same kind as what follows, int64 [P].

    Others have a logarithm so low that nothing of them is left. vocabulary: None for a model of others, all of whose
    rows count.
    """
    logits = logits.float()
    if vocabulary is not None:
        kinds = group_rows(vocabulary).to(logits.device)
        logits = logits[..., : len(kinds)].masked_fill(kinds != kinds[following][..., None], _NEVER)
    return logits.log_softmax(-1)


def find_following(ids: Tensor) -> Tensor:
    """The id behind each token of ids [B, N]; behind the last stands itself, [B, N]."""
    return torch.cat([ids[:, 1:], ids[:, -1:]], 1)
