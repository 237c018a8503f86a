"""FrugalPrompt (arXiv 2510.16439): keep the tokens of a prompt that its meaning stands on, in their order.

An attribution method says how much each token contributes to what a model makes of the whole: GlobEnc, by the lengths
of the vectors that attention moves, the residual stream included, rolled out over the layers. The authors let an
encoder attribute, drop the words that contribute least, and give the rest to any model. Here the decoder's own first
layers attribute, to the last token of the row, and later layers read what is left. `scope="prompt"` shortens words too,
as published; by default media alone are shortened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.stages import place_sites


@dataclass
class FrugalPrompt(Compressor):
    """Keep the tokens that contribute most to the last one (FrugalPrompt, arXiv 2510.16439).

    hidden [B, N, D] → `span.count` tokens by what there is of them in the last token. depth: the share of the layers
    that attribute, in [0, 1]. scope: "media", or "prompt": runs of words too, each by the share `keep`; the last token
    of a row stays. Raises ValueError for another scope, a share outside [0, 1], on entering for a model of one layer,
    and for what `Method` refuses.
    """

    paper: ClassVar[str] = "FrugalPrompt, arXiv 2510.16439"

    depth: float = 0.5
    scope: Literal["media", "prompt"] = "media"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("depth", self.depth)
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")

    @property
    def acts_on_words(self) -> bool:
        return self.scope == "prompt"

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites((self.depth,), num_layers)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(self.find_sites(num_layers)[0]))

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_best(span.measure_contributions(), span.count))
