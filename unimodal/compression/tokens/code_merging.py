"""Token merging for code (arXiv 2507.14423): the pieces of a word, such as an identifier, become one token.

A tokenizer cuts an identifier into several pieces. Their states are averaged before the model's layers, one token for
each unit of meaning. `starts` are the ids that begin a unit, as `find_unit_starts` reads them off a tokenizer's texts,
and `scope="prompt"` lets words be merged: together the published way, in which the number of units decides and not the
share `keep`. Media have no such units: there, and without `starts`, a span is cut where neighbours are least alike,
into as many units as `keep` allows. The mean stands in the place of a unit's last token, so that it knows of nothing
behind it. The authors' other way, weights that are learned, is left out; they tried encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import merge_clusters


@dataclass
class CodeMerging(Compressor):
    """Average the tokens of a unit: an identifier, or a stretch of like codes (token merging for code, arXiv
    2507.14423).

    hidden [B, N, D] → `span.count` means. scope: "media", or "prompt": runs of words too. starts: ids of words that
    begin a unit; None: neighbours that are alike are a unit in words too. Raises ValueError for another scope, and for
    what `Method` refuses.
    """

    paper: ClassVar[str] = "Token merging for code, arXiv 2507.14423"
    judges_rows: ClassVar[bool] = True

    scope: Literal["media", "prompt"] = "media"
    starts: frozenset[int] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")

    @property
    def acts_on_words(self) -> bool:
        return self.scope == "prompt"

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        counts = []
        for span in spans:
            begins = self.find_starts(span)
            if begins is None or self.keep == 1:
                counts.append(count_share(self.keep, span.original))
            else:
                counts.append(int(begins.sum()))
        return [min(len(span), count) for span, count in zip(spans, counts, strict=True)]

    def find_starts(self, span: Span) -> Tensor | None:
        """Which tokens of words begin a unit, bool [B, N]; None where neighbours decide."""
        if self.starts is None or span.modality != "text":
            return None
        begins = torch.isin(span.ids, torch.tensor(sorted(self.starts), device=span.ids.device))
        begins[:, 0] = True
        return begins

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        begins = self.find_starts(span)
        if begins is None:
            alike = F.cosine_similarity(hidden[:, 1:].float(), hidden[:, :-1].float(), dim=-1)  # [B, N - 1]
            cuts = alike.argsort(dim=-1, stable=True)[:, : span.count - 1] + 1
            begins = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            begins[:, 0] = True
            begins.scatter_(1, cuts, True)
        unit = begins.long().cumsum(1) - 1  # [B, N]
        merge, _ = merge_clusters(unit, span.count, torch.ones_like(span.sizes))
        last = torch.zeros(len(hidden), span.count, dtype=torch.int64, device=hidden.device)
        places = torch.arange(len(span), device=hidden.device).expand_as(unit)
        return Plan(last.scatter_reduce(1, unit, places, "amax"), merge)


def find_unit_starts(texts: Mapping[int, str]) -> frozenset[int]:
    """The ids that begin a unit, of a tokenizer's texts by id: those that begin with a space, or with no letter, digit
    or underscore, and which therefore do not go on with the word before them."""
    return frozenset(number for number, text in texts.items() if not text or not (text[0].isalnum() or text[0] == "_"))
