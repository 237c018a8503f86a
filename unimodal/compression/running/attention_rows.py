"""A few rows of the attention matrix, computed again as q·Kᵀ, so that the model keeps its fused kernel.

While a method that needs them is active, the model's attention goes through a hook (`interception.py`), which calls the
model's kernel and keeps queries and keys of the watched layers until the next plan.

Shapes: B rows, S spans, H query heads, K key/value heads, Q queries, L slots, N tokens of a span, W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.compression.plan import Query, Span, SpanPlace
from unimodal.compression.running.rotation import LayerRotation
from unimodal.compression.running.slots import Slots
from unimodal.compression.running.stream import TokenStream


@dataclass(frozen=True)
class AttentionRule:
    """How a layer makes attention logits of queries and keys.

    scaling: their factor. window: a query sees keys less than so many positions before it; None for all. softcap:
    logits are bent to stay below it (Gemma 2); None for no bound.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


def compute_logits(query: Tensor, keys: Tensor, rule: AttentionRule) -> Tensor:
    """query [B, H, Q, W], keys [B, K, L, W] → logits float32 [B, H, Q, L]."""
    num_rows, num_heads, num, width = query.shape
    grouped = query.reshape(num_rows, keys.shape[1], -1, width)  # the heads of a group, query by query
    logits = (grouped.float() @ keys.float().transpose(2, 3) * rule.scaling).view(num_rows, num_heads, num, -1)
    return logits if rule.softcap is None else (logits / rule.softcap).tanh() * rule.softcap


def compute_attention_rows(query: Tensor, keys: Tensor, at: Tensor, slots: Slots, rule: AttentionRule) -> Tensor:
    """Attention of queries at slots `at` int64 [B, Q] over all slots, float32 [B, H, Q, L], causal and size-weighted.

    A query that sees no slot (padding) gives zeros.
    """
    return mask_logits(compute_logits(query, keys, rule), at, slots, rule).softmax(-1).nan_to_num(0.0)


def mask_logits(logits: Tensor, at: Tensor, slots: Slots, rule: AttentionRule) -> Tensor:
    """logits [B, H, Q, L] of queries at slots `at` int64 [B, Q]: log(size) added, -inf for what they do not see."""
    num_heads = logits.shape[1]
    logits = logits + slots.make_bias(torch.float32, num_heads)[:, :, None]
    return logits.masked_fill(slots.find_hidden(at, rule.window, num_heads), -torch.inf)


class WatchedLayer(NamedTuple):
    """What is noted of one layer as it runs."""

    query: Tensor  # [B, H, N, W]
    keys: Tensor  # [B, K, L, W]
    slots: Slots  # of the keys
    rule: AttentionRule
    stream: TokenStream  # the tokens as they were then
    rotation: LayerRotation
    lengths: Tensor | None = None  # [B, K, L], of the values


class ForwardObserver:
    """A `SpanObserver` of one running forward.

    seen: what was noted of each watched layer. Tokens may have been dropped since: they are found by their places.
    stream: the tokens now. begin: the tokens before the first layer. preview: computes the queries and keys of the
    coming layer, and nothing else of it. read_logits: what the model's head says of states. read_words: the states of
    rows of the vocabulary.
    """

    def __init__(self) -> None:
        self.seen: dict[int, WatchedLayer] = {}
        self.stream: TokenStream | None = None
        self.begin: TokenStream | None = None
        self.preview: Callable[[], WatchedLayer] | None = None
        self.read_logits: Callable[[Tensor], Tensor] | None = None
        self.read_words: Callable[[Tensor], Tensor] | None = None

    def _find_layer(self, span: Span, layer: int) -> WatchedLayer:
        if layer == span.layer and layer not in self.seen:
            assert self.preview is not None
            self.seen[layer] = self.preview()
        assert layer in self.seen, f"layer {layer} is not watched"
        return self.seen[layer]

    @torch.no_grad()
    def measure_attention(self, span: Span, query: Query, layer: int) -> Tensor:
        now, place = self.stream, span.place
        assert now is not None and place is not None
        watched = self._find_layer(span, layer)
        then, rows = watched.stream, place.rows
        columns = then.find_columns(rows, now.place[rows[:, None], place.columns])  # [S, N]
        if query == "summary":
            at = then.find_columns(rows, now.place[rows, place.ends][:, None])  # [S, 1]
            weight = torch.ones_like(at, dtype=torch.float32)
        elif query == "last":
            at = torch.full_like(columns[:, :1], len(then) - 1)
            weight = torch.ones_like(at, dtype=torch.float32)
        else:  # words behind the span; the last token of the row if there are none
            first = min(int(columns[:, -1].min()) + 1, len(then) - 1)
            at = torch.arange(first, len(then), device=rows.device).expand(len(rows), -1)
            words = (then.valid & ~then.media)[rows].gather(1, at) & (at > columns[:, -1:])
            words[:, -1] |= ~words.any(1)
            weight = (self._find_related(then, place, at, words) if query == "related" else words).float()
        mean = self._attend(watched, rows, at)  # [S, Q, L]
        judged = (mean * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)  # [S, L]
        return judged.gather(1, columns + mean.shape[2] - len(then))

    def _attend(self, watched: WatchedLayer, rows: Tensor, at: Tensor) -> Tensor:
        """The attention of the tokens in columns `at` int64 [S, Q] over all slots, the mean over heads, [S, Q, L]."""
        wide = at[:, None, :, None].expand(-1, watched.query.shape[1], -1, watched.query.shape[3])
        past = watched.keys.shape[2] - len(watched.stream)
        slots = watched.slots.select_rows(rows)
        picked, keys = watched.query[rows].gather(2, wide), watched.keys[rows]
        return compute_attention_rows(picked, keys, at + past, slots, watched.rule).mean(1)

    def _find_related(self, then: TokenStream, place: SpanPlace, at: Tensor, words: Tensor) -> Tensor:
        """Which words of columns `at` int64 [S, Q] are related to their span, bool [S, Q]; all of them if none is.

        words: bool [S, Q]. A token of the span shares itself out over the words; related are those with more of it
        than the mean word.
        """
        assert self.begin is not None
        rows, begin = place.rows, self.begin
        asked = begin.hidden[rows[:, None], begin.find_columns(rows, then.place[rows].gather(1, at))]
        seen = begin.hidden[rows[:, None], begin.find_columns(rows, place.whole)]
        products = (seen.float() @ asked.float().transpose(1, 2)).masked_fill(~words[:, None], -torch.inf)
        share = products.softmax(-1).mean(1)  # [S, Q]
        related = words & (share > 1 / words.sum(1, keepdim=True))
        return torch.where(related.any(1, keepdim=True), related, words)

    @torch.no_grad()
    def measure_attention_inside(self, span: Span, layer: int) -> Tensor:
        now, place = self.stream, span.place
        assert now is not None and place is not None
        watched, rows = self._find_layer(span, layer), place.rows
        columns = watched.stream.find_columns(rows, now.place[rows[:, None], place.columns])  # [S, N]
        mean = self._attend(watched, rows, columns)
        at = columns + mean.shape[2] - len(watched.stream)
        return mean.gather(2, at[:, None].expand(-1, at.shape[1], -1))

    @torch.no_grad()
    def measure_keys(self, span: Span, layer: int) -> Tensor:
        now, place = self.stream, span.place
        assert now is not None and place is not None
        watched = self._find_layer(span, layer)
        rows, then = place.rows, watched.stream
        columns = then.find_columns(rows, now.place[rows[:, None], place.columns])
        at = (columns + watched.keys.shape[2] - len(then))[:, None]  # [S, 1, N]
        keys = watched.keys[rows]
        wide = at.expand(-1, keys.shape[1], -1)
        positions = watched.slots.positions[rows].expand(-1, keys.shape[1], -1).gather(2, wide)
        keys = keys.gather(2, wide[..., None].expand(-1, -1, -1, keys.shape[-1]))
        return watched.rotation.rotate_by(keys, -positions).mean(1)

    def measure_transitions(self, span: Span) -> Tensor:
        assert self.stream is not None and self.stream.changed is not None and span.place is not None
        return self.stream.changed[span.place.rows[:, None], span.place.columns]

    def spell(self, states: Tensor) -> Tensor:
        assert self.read_logits is not None
        return self.read_logits(states)

    def embed(self, ids: Tensor) -> Tensor:
        assert self.read_words is not None
        return self.read_words(ids)

    @torch.no_grad()
    def measure_confidence(self, span: Span) -> tuple[Tensor, Tensor]:
        assert self.read_logits is not None
        best = self.read_logits(span.hidden).float().softmax(-1).max(-1)
        return best.values, best.indices

    @torch.no_grad()
    def measure_contributions(self, span: Span, num_layers: int) -> Tensor:
        now, place, begin = self.stream, span.place, self.begin
        assert now is not None and place is not None and begin is not None
        size = len(begin)
        flow = torch.eye(size, device=begin.ids.device).expand(len(begin.ids), -1, -1)  # [B, N, N] of the call
        lines = torch.arange(len(begin.ids), device=flow.device)
        for layer in range(num_layers):
            watched = self._find_layer(span, layer)
            assert watched.lengths is not None
            then = watched.stream
            at = torch.arange(len(then), device=flow.device).expand(len(flow), -1)
            slots, past = watched.slots, watched.keys.shape[2] - len(then)
            probs = compute_attention_rows(watched.query, watched.keys, at + past, slots, watched.rule)
            heads = probs.shape[1] // watched.lengths.shape[1]
            brought = (probs * watched.lengths.repeat_interleave(heads, 1)[:, :, None]).sum(1)  # [B, Q, L]
            share = (brought / brought.sum(-1, keepdim=True).clamp_min(1e-9))[..., past:] * then.valid[..., None]
            columns = begin.find_columns(lines, then.place)  # [B, Q]
            columns = columns.masked_fill(~then.valid, size)  # padding goes to a bin
            wide = torch.zeros(len(flow), len(then), size + 1, device=flow.device)
            wide.scatter_add_(2, columns[:, None].expand(-1, len(then), -1), share)
            moved = 0.5 * flow.gather(1, columns.clamp(max=size - 1)[..., None].expand(-1, -1, size))
            moved = moved + 0.5 * wide[..., :size] @ flow
            whole = torch.cat([flow, flow[:, :1]], 1)
            flow = whole.scatter(1, columns[..., None].expand(-1, -1, size), moved)[:, :size]
        rows = place.rows
        last = begin.find_columns(rows, now.place[rows, -1:])  # [S, 1]
        columns = begin.find_columns(rows, now.place[rows[:, None], place.columns])
        return flow[rows[:, None], last].squeeze(1).gather(1, columns)
