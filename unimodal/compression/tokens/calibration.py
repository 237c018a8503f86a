"""How much a method changes a model's answers to a few prompts, for methods whose settings are found on them.

Shapes: N tokens of a prompt, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.method import Method
from unimodal.vocabulary import Vocabulary


@torch.no_grad()
def measure_drift(
    method: Method, model: nn.Module, vocabulary: Vocabulary | None, rows: Sequence[Sequence[int]]
) -> float:
    """The mean divergence, in nats, of what a causal LM expects behind prompts [N] from what it expects without it.

    vocabulary: of a model of ours, where it is among the rows that words may begin with: what such a model expects of
    others, no training has taught it. None: among all rows. Raises ValueError for no prompts.
    """
    if not rows:
        raise ValueError("settings are found on prompts; give at least one")
    device, total = next(model.parameters()).device, 0.0
    kept = slice(None) if vocabulary is None else list_word_rows(vocabulary).to(device)
    for row in rows:
        ids = torch.tensor([list(row)], device=device)
        whole = model(ids, use_cache=False).logits[0, -1, kept].float().log_softmax(-1)  # [V]
        with method(model, vocabulary):
            found = model(ids, use_cache=False).logits[0, -1, kept].float().log_softmax(-1)
        total += float(F.kl_div(found, whole, reduction="sum", log_target=True))
    return total / len(rows)


def list_word_rows(vocabulary: Vocabulary) -> Tensor:
    """The rows that an answer in words may hold: text that is not reserved, and the end of the turn."""
    end = vocabulary.get_control_id("<|end_of_turn|>")
    words = [torch.arange(rows.start, rows.stop) for rows in vocabulary.text_ranges]
    return torch.cat([*words, torch.tensor([end])])
