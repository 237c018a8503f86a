"""Dynamic token pruning (DToP, arXiv 2308.01045): tokens of which the model is sure leave early, and are done.

At the end of a stage a head says what it makes of each token. Those of which it is sure take no part in later layers,
and their states are final. A few of each class stay all the same, the surest, so that the others see what is around
them. In the paper heads are trained beside a segmenter, and a token is easy from a confidence of 0.95 on: `threshold`.
Here the decoder's own head says what it would at that depth, a class is a row of the vocabulary, and without a
threshold the surest tokens leave until the share `keep` is left, so that methods can be compared. The first stage ends
in the middle of the decoder, the second at three quarters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_share, check_whole
from unimodal.compression.plan import Plan, Return, Span
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.stages import count_evenly, place_sites

DEPTHS = (1 / 2, 3 / 4)  # of the sites


@dataclass
class DToP(Compressor):
    """Let tokens leave of which the model's head is sure (dynamic token pruning, DToP, arXiv 2308.01045).

    hidden [B, N, D] → `span.count` tokens, the unsure ones; those that left come back behind the last layer. threshold:
    the confidence, in [0, 1], from which on a token leaves, in place of `keep`. each: so many of every class stay
    before others. Raises ValueError for a threshold outside [0, 1], a negative number, on entering for a model of one
    layer, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "DToP, arXiv 2308.01045"
    judges_rows: ClassVar[bool] = True

    threshold: float | None = None
    each: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("each", self.each, 0)
        if self.threshold is not None:
            check_share("threshold", self.threshold)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if self.threshold is None or self.keep == 1:
            return count_evenly(spans, self.find_sites(num_layers), self.keep)
        counts = []
        for span in spans:
            sure, spared = self.rate(span)
            counts.append(len(span) - int(((sure > self.threshold) & ~spared).sum()))
        return counts

    def rate(self, span: Span) -> tuple[Tensor, Tensor]:
        """How sure the head is of each token, [B, N], and which are among the surest `each` of their class, bool."""
        sure, kind = span.measure_confidence()
        same = kind[:, :, None] == kind[:, None]
        first = torch.arange(len(span), device=sure.device)
        surer = sure[:, None] > sure[..., None]
        surer |= (sure[:, None] == sure[..., None]) & (first < first[:, None])
        return sure, (same & surer).sum(-1) < self.each

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        sure, spared = self.rate(span)
        index = choose_best(spared.float() - sure, span.count)  # spared ones leave last
        stays = F.one_hot(index, len(span)).to(hidden)  # [B, M, N]
        return Plan(index, back=Return(span.num_layers, stays.transpose(1, 2), 1 - stays.sum(1)))
