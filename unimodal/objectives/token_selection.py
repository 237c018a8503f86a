"""Which answer tokens are worth learning from: ssToken, "Self-modulated and Semantic-aware Token Selection"
(arXiv 2510.18250).

A token's score mixes two signals, each scaled to [0, 1] over the batch: how far its loss has fallen below that of the
history model, here the model at the start of the run (tokens that stay hard are noise or out of reach); and the share
of its attention that goes to the prompt in a deep layer (tokens that answer what was asked). Only the tokens with the
best scores are learnt from.

Shapes: B rows, N tokens, T = B * N, H and K query and key/value heads, D head width, S documents, L longest,
P labelled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.attention import Packing


@torch.no_grad()
def measure_prompt_attention(query: Tensor, key: Tensor, packing: Packing, is_prompt: Tensor) -> Tensor:
    """The share of each token's attention that goes to prompt tokens of its own document, float32 [B, N].

    query: [B, H, N, D]. key: [B, K, N, D]. is_prompt: bool [B, N]. The mean over heads.
    """
    batch, num_heads, length, width = query.shape
    key = key.repeat_interleave(num_heads // key.shape[1], 1)
    flat_query, flat_key = (x.float().transpose(1, 2).reshape(batch * length, num_heads, width) for x in (query, key))
    flat_prompt = is_prompt.reshape(-1)
    result = torch.zeros(batch * length, device=query.device)
    for index, valid in packing.bucket_documents():  # [S, L]: slots of padding repeat a token behind its document
        q, k = flat_query[index].transpose(1, 2), flat_key[index].transpose(1, 2)  # [S, H, L, D]
        scores = q @ k.transpose(2, 3) * width**-0.5  # [S, H, L, L]
        future = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool, device=query.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        share = (weights * flat_prompt[index][:, None, None]).sum(-1).mean(1)  # [S, L]
        result[index[valid]] = share[valid]
    return result.view(batch, length)


def select_tokens(fallen: Tensor, to_prompt: Tensor, keep_share: float, loss_share: float) -> Tensor:
    """1 for the tokens with the best scores, a share ``keep_share`` of all, else 0: [P].

    fallen: the history model's loss minus the loss, [P]. to_prompt: attention to the prompt, [P]. loss_share: weight of
    the first in the score.
    """
    score = loss_share * _scale(fallen) + (1 - loss_share) * _scale(to_prompt)
    kept = torch.zeros_like(score)
    if len(score):
        kept[score.topk(max(1, round(keep_share * len(score)))).indices] = 1.0
    return kept


def _scale(values: Tensor) -> Tensor:
    """Scale values linearly so that the least becomes 0 and the largest 1."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)
