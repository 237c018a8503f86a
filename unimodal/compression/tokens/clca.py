"""Cross-layer cache (CLCA, arXiv 2501.00243): what a reduction loses comes back as the means of earlier layers.

From a layer in the middle on only the tokens stay that the CLS token attends to. Between it and a later one the mean of
the tokens of each layer is put aside, and all these means join the sequence again before that later layer. So does it
here: the best tokens stay, and of those that go one in each layer keeps a place for the mean of that layer. The token
that closes a span stands in for CLS. The paper also reads the class from the CLS tokens of several layers and has
learned carriers beside the means; both belong to its classifier and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Return, Span, count_share
from unimodal.compression.tokens.choosing import choose_best


@dataclass
class CLCA(Compressor):
    """Keep what the summary attends to, and bring means of the layers between back (CLCA, arXiv 2501.00243).

    hidden [B, N, D] → `span.count` tokens by the summary's attention in the layer before. reduce_at, recover_at: the
    depths from which on tokens are few, and before which the means of the layers between join them, shares in [0, 1];
    `keep` counts both. Raises ValueError for a share outside [0, 1], on entering for a model of one layer, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "CLCA, arXiv 2501.00243"
    judges_rows: ClassVar[bool] = True

    reduce_at: float = 0.25
    recover_at: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("reduce_at", self.reduce_at)
        check_share("recover_at", self.recover_at)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        """One before each layer whose mean is put aside."""
        first = max(1, min(round(self.reduce_at * num_layers), num_layers - 1))
        return tuple(range(first, self.find_end(num_layers)))

    def find_end(self, num_layers: int) -> int:
        """The site where the means join the others."""
        first = max(1, min(round(self.reduce_at * num_layers), num_layers - 1))
        return max(first + 1, min(round(self.recover_at * num_layers), num_layers))

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(site - 1 for site in self.find_sites(num_layers))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The share `keep` without the means that are put aside by then; at least one."""
        if self.keep == 1:
            return [len(span) for span in spans]
        aside = [span.layer - self.find_sites(num_layers)[0] + 1 for span in spans]
        counts = [count_share(self.keep, span.original) - num for span, num in zip(spans, aside, strict=True)]
        return [min(len(span), max(1, count)) for span, count in zip(spans, counts, strict=True)]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = span.measure_attention("summary")
        index = choose_best(scores, span.count)
        place = scores.scatter(1, index, -torch.inf).argmax(1, keepdim=True)  # of the mean: the best of those that go
        own = torch.zeros_like(scores).scatter(1, place, 1.0)
        mean = hidden.mean(1, keepdim=True).expand_as(hidden)
        return Plan(index, back=Return(self.find_end(span.num_layers), keep_stayed(index, len(span)), own, mean))


def keep_stayed(index: Tensor, num: int) -> Tensor:
    """`Return.taken` where those that stayed, int64 [B, M], come back as they are then: [B, N, M]."""
    return F.one_hot(index, num).float().transpose(1, 2)
