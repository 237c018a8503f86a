"""Random pruning past the information horizon (arXiv 2512.07580): choose with care early, and by chance late.

In deep layers a picture's tokens are all worth alike, and no method without training beats chance. DivPrune chooses
before the decoder, and random tokens go in a deep layer. How much each does the authors set for each model; here both
keep the same share, the root of `keep`, unless `early` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import choose_best, compute_cosines
from unimodal.compression.tokens.divprune import choose_most_diverse
from unimodal.compression.tokens.random_tokens import draw_uniform


@dataclass
class InformationHorizon(Compressor):
    """Keep the most spread-out tokens, and random ones of them in deep layers (information horizon, arXiv 2512.07580).

    hidden [B, N, D] → `span.count` tokens. `keep` is the share in the deep layers. early: the share before them, in
    [0, 1]; by default the root of `keep`. depth: where the deep layers begin, a share of all layers in [0, 1]. seed: of
    the draw, which depends on the codes of a span too. Raises ValueError for a share outside [0, 1], on entering for a
    model of one layer, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Information horizon, arXiv 2512.07580"
    judges_rows: ClassVar[bool] = True

    early: float | None = None
    depth: float = 20 / 32
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("depth", self.depth)
        if self.early is not None:
            check_share("early", self.early)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (0, max(1, min(round(self.depth * num_layers), num_layers - 1)))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        early = self.keep**0.5 if self.early is None else max(self.early, self.keep)
        shares = [early if span.layer == 0 else self.keep for span in spans]
        return [min(len(span), count_share(share, span.original)) for share, span in zip(shares, spans, strict=True)]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        if span.layer == 0:
            return Plan(choose_most_diverse(1 - compute_cosines(hidden), span.count))
        return Plan(choose_best(draw_uniform(span.ids, self.seed), span.count))
