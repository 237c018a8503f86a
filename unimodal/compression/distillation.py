"""What a compressor with learned parts is trained on: that the decoder answers under it as it does without.

Shapes: B rows, N tokens, V rows of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.expectations import compute_expectations, find_following
from unimodal.compression.method import Method
from unimodal.vocabulary import Vocabulary


def compute_distillation_loss(
    method: Method, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
) -> tuple[Tensor, int]:
    """The summed divergence, in nats, of what a causal LM expects under a method from what it expects without it.

    ids: int64 [B, N], one document a row. valid: bool [B, N], False for padding. learnt: bool [B, N], the tokens behind
    which the expectations count, among the rows of the same kind as what follows (`expectations.py`). Gives the sum,
    and the number of those tokens. Only the model without the method is run without a gradient: freeze its weights to
    train the method alone.
    """
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits[learnt]  # [tokens, V]
    with method(model, vocabulary):
        found = model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits[learnt]
    following = find_following(ids)[learnt]
    expected, reached = (compute_expectations(logits, following, vocabulary) for logits in (whole, found))
    return F.kl_div(reached, expected, reduction="sum", log_target=True), int(learnt.sum())
