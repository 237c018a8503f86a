"""LLaVA-PruMerge (arXiv 2403.15388): keep tokens of unusual attention, and add to each what is like it.

The tokens that stay are those that the encoder's CLS token attends to most. To each is added the sum of the tokens
whose keys are most like its own, weighted by that attention; one more token is the weighted sum of all that go. As
published the number of tokens is that of the outliers, whose attention is more than 1.5 interquartile ranges above the
third quartile: `adaptive=True`; here it is the share `keep` by default, so that methods can be compared at one number.
The token that closes a span stands in for CLS, in the last layer before the site, and keys are the mean over heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best, compute_cosines


@dataclass
class PruMerge(Compressor):
    """Keep the tokens that the summary attends to, with what is like them added (PruMerge, arXiv 2403.15388).

    hidden [B, N, D] → `span.count` tokens, one of which is the weighted sum of all that go. neighbours: how
    many tokens are added to each. adaptive: keep the outliers, however many. layer: the site; by default 2, in a
    shallower model the last layer. Raises ValueError for less than one neighbour, for a layer below 1, on entering for
    one that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "PruMerge, arXiv 2403.15388"
    judges_rows: ClassVar[bool] = True

    neighbours: int = 32
    adaptive: bool = False
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("neighbours", self.neighbours, 1)
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if not self.adaptive or self.keep == 1:
            return super().count_kept(spans, num_layers)
        return [min(count_outliers(span.measure_attention("summary")[0]) + 1, len(span)) for span in spans]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = span.measure_attention("summary")  # [B, N]
        num, count = len(span), max(span.count - 1, 1)
        kept = choose_best(scores, count)
        itself = torch.eye(num, device=hidden.device)
        cosines = compute_cosines(span.measure_keys()).masked_fill(itself.bool(), -torch.inf)
        # equal tokens, such as the ends of lines, tie: the first are taken, whatever the rounding of their keys
        order = (cosines * 1e5).round().argsort(dim=-1, descending=True, stable=True)
        near = order[..., : min(self.neighbours, max(num - 1, 1))]  # [B, N, neighbours]
        added = torch.zeros_like(cosines).scatter(-1, near, 1.0) * (1 - itself) * scores[:, None]
        whole = itself + added  # [B, N, N]
        if span.count == 1:
            return Plan(kept, whole.gather(1, kept[..., None].expand(-1, -1, num)))
        gone = scores.scatter(1, kept, 0.0)  # [B, N], the weights of those that go
        extra = scores.scatter(1, kept, -torch.inf).argmax(1, keepdim=True)  # the place of their sum
        whole = torch.where(F.one_hot(extra, num).bool().transpose(1, 2), gone[:, None], whole)
        index = torch.cat([kept, extra], 1).sort(1).values
        return Plan(index, whole.gather(1, index[..., None].expand(-1, -1, num)))


def count_outliers(scores: Tensor) -> int:
    """How many of scores [N] are more than 1.5 interquartile ranges above the third quartile."""
    low, high = scores.float().quantile(torch.tensor([0.25, 0.75], device=scores.device))
    return int((scores > high + 1.5 * (high - low)).sum())
