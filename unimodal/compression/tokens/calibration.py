"""How much a method changes a model's answers to a few prompts, for methods whose settings are found on them.

Shapes: N tokens of a prompt, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.expectations import compute_expectations
from unimodal.compression.method import Method
from unimodal.vocabulary import Vocabulary


@torch.no_grad()
def measure_drift(
    method: Method, model: nn.Module, vocabulary: Vocabulary | None, rows: Sequence[Sequence[int]]
) -> float:
    """The mean divergence, in nats, of what a causal LM expects behind prompts [N] from what it expects without it.

    Answers are words: what a model expects of codes there counts for nothing (`expectations.py`). Raises ValueError for
    no prompts.
    """
    if not rows:
        raise ValueError("settings are found on prompts; give at least one")
    device, total = next(model.parameters()).device, 0.0
    words = torch.tensor([0 if vocabulary is None else vocabulary.text_ranges[0].start], device=device)

    def expect(ids: Tensor) -> Tensor:
        return compute_expectations(model(ids, use_cache=False).logits[0, -1:], words, vocabulary)[0]  # [V]

    for row in rows:
        ids = torch.tensor([list(row)], device=device)
        whole = expect(ids)
        with method(model, vocabulary):
            found = expect(ids)
        total += float(F.kl_div(found, whole, reduction="sum", log_target=True))
    return total / len(rows)
