"""Token-level correlation (arXiv 2407.14439), for documents: blank and repeated parts get few tokens.

A token is redundant if many others of its crop are nearly like it (cosine above `alike`, more than `many` of them); the
crop's information density is the share of tokens that are not. Densities share the budget out among the spans of a
row. Inside a span, tokens are kept by their correlation with its summary, here the mean of its tokens: codes have no
CLS token, and the least like the mean say the most of what is written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import best, cosine


@dataclass
class DocumentCorrelation(Compressor):
    """alike: cosine from which two tokens are alike. many: share of a span's tokens from which a pattern repeats."""

    alike: float = 0.8
    many: float = 0.25

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        densities = [density(span.hidden, self.alike, self.many) for span in spans]
        weight = [d * span.original for d, span in zip(densities, spans, strict=True)]
        total = self.keep * sum(span.original for span in spans)
        return budgets(total, weight, [span.original for span in spans])

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(best(-cosine(hidden, hidden.mean(1, keepdim=True))[..., 0], span.count))


def density(hidden: Tensor, alike: float, many: float) -> float:
    """1 − the share of tokens [1, N, D] that have many like them; at least one token's share."""
    others = (cosine(hidden)[0] > alike).sum(-1) - 1  # [N]
    redundant = (others > many * len(others)).float().mean()
    return max(1 - float(redundant), 1 / len(others))


def budgets(total: float, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Tokens in proportion to the weights, at most the limits; what a full one cannot take goes to the others."""
    counts, open_spans, left = [0.0] * len(weights), set(range(len(weights))), total
    while open_spans and left > 1e-9:
        scale = left / sum(weights[i] for i in open_spans)
        full = {i for i in open_spans if counts[i] + weights[i] * scale >= limits[i]}
        for i in full or open_spans:
            new = limits[i] if i in full else counts[i] + weights[i] * scale
            left -= new - counts[i]
            counts[i] = new
        open_spans -= full or open_spans
    return [min(limit, max(1, round(count))) for count, limit in zip(counts, limits, strict=True)]
