"""DiffRate (arXiv 2305.17997): every layer drops the least attended tokens, and merges the next ones.

Tokens are sorted by the attention of the encoder's CLS token in the layer before. The last ones are dropped; those
before them are merged, each into the kept token that is most like it, as a plain mean. A merged token counts for less
than its members in the attention: for their sizes times their cosines with it. How many go in which layer the authors
learn by gradient, through a softmax over all counts. The counts can be given (`rates`), or be found for a model on a
few prompts (`calibrate`): tokens go step by step where they cost least, without a gradient. Otherwise every layer takes
as many tokens, and merges half of them. The token that closes a span stands in for CLS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.calibration import measure_drift
from unimodal.compression.tokens.choosing import compute_cosines
from unimodal.compression.tokens.stages import count_linearly
from unimodal.vocabulary import Vocabulary


@dataclass
class DiffRate(Compressor):
    """Drop the least attended tokens and merge the next, at rates of each layer (DiffRate, arXiv 2305.17997).

    hidden [B, N, D] → `span.count` tokens, those that are merged as means with their sizes. rates: for every layer but
    the first the shares of the span's tokens that are left behind dropping, and behind merging; they take the place of
    `keep`. Raises ValueError for shares outside (0, 1] or that grow, on entering for a model of another number of
    layers, or of one, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "DiffRate, arXiv 2305.17997"
    judges_rows: ClassVar[bool] = True

    rates: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        flat = [1.0, *(share for pair in self.rates or () for share in pair)]
        if flat != sorted(flat, reverse=True) or flat[-1] <= 0:
            raise ValueError(f"rates are {self.rates}; give pairs of shares above 0 that never grow")

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.rates is not None and len(self.rates) != num_layers - 1:
            raise ValueError(f"{len(self.rates)} rates were given; this model needs {num_layers - 1}")
        if num_layers < 2:
            raise ValueError("DiffRate acts behind the first layer; this model has one")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(1, num_layers))

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(num_layers - 1))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if self.rates is None:
            return count_linearly(spans, self.find_sites(num_layers), self.keep)
        return [min(len(span), count_share(self.rates[span.layer - 1][1], span.original)) for span in spans]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        left = (len(span) + span.count + 1) // 2
        if self.rates is not None:
            left = min(len(span), max(span.count, count_share(self.rates[span.layer - 1][0], span.original)))
        order = span.measure_attention("summary").argsort(dim=-1, descending=True, stable=True)
        return merge_next(hidden, span.sizes, order, span.count, left)

    def calibrate(
        self, model: nn.Module, vocabulary: Vocabulary | None, rows: Sequence[Sequence[int]], steps: int = 4
    ) -> DiffRate:
        """The same method with the rates that change the model's answers to these prompts [N] least.

        The tokens that go do so in `steps` equal parts; each part goes at the layer, and in the way, dropped or merged,
        that costs least behind the parts before it. Raises ValueError for no prompts.
        """
        num_layers: int = model.config.get_text_config().num_hidden_layers
        going = [[0.0, 0.0] for _ in range(num_layers - 1)]
        for _ in range(steps):
            tried: list[tuple[float, int, int]] = []
            for layer in range(num_layers - 1):
                for way in (0, 1):
                    going[layer][way] += (1 - self.keep) / steps
                    method = replace(self, rates=sum_rates(going))
                    tried.append((measure_drift(method, model, vocabulary, rows), layer, way))
                    going[layer][way] -= (1 - self.keep) / steps
            _, layer, way = min(tried)
            going[layer][way] += (1 - self.keep) / steps
        return replace(self, rates=sum_rates(going))


def sum_rates(going: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Shares that go at each layer by dropping and by merging → the shares that are left behind each."""
    left, rates = 1.0, []
    for dropped, merged in going:
        rates.append((left - dropped, left - dropped - merged))
        left = rates[-1][1]
    return tuple(rates)


def merge_next(hidden: Tensor, sizes: Tensor, order: Tensor, count: int, left: int) -> Plan:
    """Keep the first M = `count` tokens of an order int64 [B, N], and merge those up to `left` into them.

    hidden: [B, N, D]. sizes: [B, N].
    """
    num = hidden.shape[1]
    kept, merged = order[:, :count].sort(-1).values, order[:, count:left]

    def pick(places: Tensor) -> Tensor:
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))

    whole = F.one_hot(kept, num).float()  # [B, M, N]
    if left <= count:
        return Plan(kept, sizes=sizes.gather(1, kept))
    alike, target = compute_cosines(pick(merged), pick(kept)).max(-1)  # [B, left - M]
    joins = F.one_hot(target, count).float()  # [B, left - M, M]
    members = whole + joins.transpose(1, 2) @ F.one_hot(merged, num).float()
    counted = sizes.gather(1, kept) + ((sizes.gather(1, merged) * alike)[..., None] * joins).sum(1)
    return Plan(kept, members / members.sum(-1, keepdim=True), sizes=counted.clamp(min=1))
