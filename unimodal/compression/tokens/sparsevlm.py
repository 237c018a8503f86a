"""SparseVLM (arXiv 2410.04417): keep what the words attend to, and recycle the best of the rest as a few means.

Before layers 2, 6 and 15 of 32 (other depths are in proportion) tokens are ranked by the attention of the words behind
the span. Of those that go, the best 30% are clustered (DPC-KNN) into a tenth as many means, and one, which go on too.
The authors keep 303, 110 and 36 of 576 tokens beside the means: this is `keep=0.0625`; other shares lie on the line to
1, and the means count among those that stay. Their raters are the words behind the picture whose embeddings are nearer
to its own than the mean word's: `raters="related"`; by default all words behind the span are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best, merge_clusters
from unimodal.compression.tokens.density import find_density_peaks
from unimodal.compression.tokens.stages import count_by_ratios, place_sites
from unimodal.compression.tokens.visionzip import find_others

DEPTHS = (2 / 32, 6 / 32, 15 / 32)  # of the sites
RATIOS = (303 / 576, 110 / 576, 36 / 576)  # kept at each site


@dataclass
class SparseVLM(Compressor):
    """Keep what the words attend to, and a few means of the best that go (SparseVLM, arXiv 2410.04417).

    hidden [B, N, D] → `span.count` tokens by the words' head-mean attention, the means among them. recycled: the share
    of those that go from which means are made, in [0, 1]; 0 makes none. raters: whose attention counts, that of "all"
    words behind the span, or of the "related" ones. Raises ValueError for a share outside [0, 1], for other raters,
    on entering for a model of one layer, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "SparseVLM, arXiv 2410.04417"
    judges_rows: ClassVar[bool] = True

    recycled: float = 0.3
    raters: Literal["all", "related"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("recycled", self.recycled)
        if self.raters not in ("all", "related"):
            raise ValueError(f"raters {self.raters!r} is unknown; use all or related")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(site - 1 for site in self.find_sites(num_layers))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The stage's share: the published ratios moved in proportion, so that the last one is `keep`."""
        return count_by_ratios(spans, self.find_sites(num_layers), RATIOS, self.keep)

    def count_means(self, num: int, count: int) -> tuple[int, int]:
        """How many of `num` tokens are recycled, and into how many of the `count` that go on."""
        if self.recycled == 0 or count < 2:
            return 0, 0
        source = int((num - count) * self.recycled) + 1
        return source, min(int(source / 10) + 1, count - 1)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores, num = span.measure_attention("related" if self.raters == "related" else "after"), len(span)
        source, num_means = self.count_means(num, span.count)
        kept = choose_best(scores, span.count - num_means)
        if not num_means:
            return Plan(kept)
        rest = find_others(kept, num)
        best = rest.gather(1, choose_best(scores.gather(1, rest), source))  # [B, R], ascending
        states = hidden.gather(1, best[..., None].expand(-1, -1, hidden.shape[-1]))
        centres, assigned = find_density_peaks(states.float(), num_means, num_means)
        means, _ = merge_clusters(assigned, num_means, torch.ones_like(best, dtype=torch.float32))  # [B, C, R]
        places = best.gather(1, centres)
        index = torch.cat([kept, places], 1).sort(1).values
        spread = torch.zeros(len(hidden), num_means, num, device=hidden.device)
        spread.scatter_(2, best[:, None].expand(-1, num_means, -1), means)
        is_mean = (index[:, :, None] == places[:, None]).float()  # [B, M, C]
        merge = F.one_hot(index, num).float() * (1 - is_mean.amax(-1, keepdim=True)) + is_mean @ spread
        return Plan(index, merge)
