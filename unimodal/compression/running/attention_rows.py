"""A few rows of the attention matrix, computed again as q·Kᵀ, so that the model keeps its fused kernel.

While a method that needs them is active, the model's attention goes through one registered function, which calls the
model's kernel and keeps queries and keys of the watched layers until the next plan.

Shapes: B rows, S spans, H query heads, K key/value heads, Q queries, L slots, N tokens of a span, W head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.compression.plan import Query, Span
from unimodal.compression.running.slots import Slots
from unimodal.compression.running.stream import TokenStream

NEAR = 16  # the last so many tokens of a row may count as the words behind a span


def compute_logits(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """query [B, H, Q, W], keys [B, K, L, W] → scaled logits float32 [B, H, Q, L]."""
    num_rows, num_heads, num, width = query.shape
    grouped = query.reshape(num_rows, keys.shape[1], -1, width)  # the heads of a group, query by query
    return (grouped.float() @ keys.float().transpose(2, 3) * scaling).view(num_rows, num_heads, num, -1)


def compute_attention_rows(query: Tensor, keys: Tensor, at: Tensor, slots: Slots, scaling: float) -> Tensor:
    """Attention of queries at slots `at` int64 [B, Q] over all slots, float32 [B, H, Q, L], causal and size-weighted.

    A query that sees no slot (padding) gives zeros.
    """
    logits = compute_logits(query, keys, scaling) + slots.make_bias(torch.float32, query.shape[1])[:, :, None]
    later = torch.arange(keys.shape[2], device=keys.device) > at[..., None]  # [B, Q, L]
    return logits.masked_fill(later[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)


class ForwardObserver:
    """A `SpanObserver` of one running forward.

    seen: by watched layer, its query [B, H, N, W], its keys [B, K, L, W] and their slots. stream: the tokens now.
    """

    def __init__(self, scaling: float) -> None:
        self.scaling = scaling
        self.seen: dict[int, tuple[Tensor, Tensor, Slots]] = {}
        self.stream: TokenStream | None = None

    def forget(self) -> None:
        """Drop the kept queries and keys: once tokens are dropped, their columns are no longer valid."""
        self.seen.clear()

    def measure_attention(self, span: Span, query: Query, layer: int) -> Tensor:
        stream, place = self.stream, span.place
        assert stream is not None and place is not None and layer in self.seen, f"layer {layer} is not watched"
        queries, keys, slots = self.seen[layer]
        rows, columns, ends = place
        if query == "summary":
            at = ends[:, None]  # [S, 1]
        else:
            near = 1 if query == "last" else min(NEAR, len(stream))
            at = torch.arange(len(stream) - near, len(stream), device=rows.device).expand(len(rows), near)
        weight = torch.ones_like(at, dtype=torch.float32)
        if query == "after":  # words behind the span; the last token of the row if there are none
            weight = (stream.valid & ~stream.media)[rows].gather(1, at) & (at > columns[:, -1:])
            weight[:, -1] |= ~weight.any(1)
            weight = weight.float()
        past = keys.shape[2] - len(stream)
        picked = queries[rows].gather(2, at[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
        probs = compute_attention_rows(picked, keys[rows], at + past, slots.select_rows(rows), self.scaling)
        judged = (probs.mean(1) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)  # [S, H, Q, L] → [S, L]
        return judged.gather(1, columns + past)

    def measure_transitions(self, span: Span) -> Tensor:
        assert self.stream is not None and self.stream.changed is not None and span.place is not None
        rows, columns, _ = span.place
        return self.stream.changed[rows[:, None], columns]
