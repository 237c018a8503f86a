"""Token-level correlation (arXiv 2407.14439), for documents: blank and repeated parts get few tokens.

A token is redundant if many others of its crop are nearly like it (a share above `many` has a cosine above `alike`). A
crop's information density is the share of its tokens that are not redundant; the spans of a row get tokens in
proportion to their densities. Inside a span tokens are sampled by their correlation with the span's summary. In the
paper this is the attention of the picture encoder's CLS token; codes have none, and the token that closes the span
takes its place. The authors have published no code; how strict "alike" and "many" are is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor, check_share, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best, compute_cosines
from unimodal.compression.tokens.random_tokens import draw_uniform


@dataclass
class DocumentCorrelation(Compressor):
    """Give each span tokens by its information density, sampled by its summary's attention (arXiv 2407.14439).

    hidden [B, N, D] → `span.count` tokens; the share of `keep` holds for the spans of a row together.
    alike: two tokens are alike from this cosine on, in [-1, 1]. many: a token is redundant if a larger share of the
    span's tokens than this is like it. layer: the site; the attention of the layer before it is taken. samples: draw
    tokens in proportion to their attention, without replacement; False: take the best. seed: of the draw, which depends
    on the codes too. Raises ValueError for a share outside [0, 1], a layer below 1, on entering for one that the model
    lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Token-level correlation, arXiv 2407.14439"
    judges_rows: ClassVar[bool] = True

    alike: float = 0.8
    many: float = 0.25
    layer: int = 1
    samples: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("layer", self.layer, 1)
        check_share("many", self.many)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer - 1,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        densities = [measure_density(span.hidden, self.alike, self.many) for span in spans]
        weight = [d * span.original for d, span in zip(densities, spans, strict=True)]
        total = self.keep * sum(span.original for span in spans)
        return divide_budget(total, weight, [span.original for span in spans])

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = span.measure_attention("summary").clamp_min(1e-9).log()
        if self.samples:  # the largest of log p plus Gumbel noise are a draw by p
            scores = scores - (-draw_uniform(span.ids, self.seed).clamp(1e-9, 1 - 1e-7).log()).log()
        return Plan(choose_best(scores, span.count))


def measure_density(hidden: Tensor, alike: float, many: float) -> float:
    """1 − the share of redundant tokens among hidden [1, N, D]; at least 1 / N."""
    others = (compute_cosines(hidden)[0] > alike).sum(-1) - 1  # [N]
    redundant = (others > many * len(others)).float().mean()
    return max(1 - float(redundant), 1 / len(others))


def divide_budget(total: float, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """`total` tokens in proportion to the weights, none above its limit; what is over goes to the others."""
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
