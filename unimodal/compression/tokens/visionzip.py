"""VisionZip (arXiv 2412.04467): the dominant tokens stay, all others are merged into a few contextual ones.

Dominant tokens are those that the encoder's CLS token attends to. Of the rest, tokens at even distances are targets;
every other one joins the target whose key is most like its own, and the mean of those that joined is added to the
target. The authors keep 54 dominant and 10 contextual of 64. The token that closes a span stands in for CLS here, in
the last layer before the site, and keys are the mean over heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best, compute_cosines


@dataclass
class VisionZip(Compressor):
    """Keep dominant tokens, and merge the rest into contextual ones (VisionZip, arXiv 2412.04467).

    hidden [B, N, D] → `span.count` tokens, a share `contextual` of which, in [0, 1], are merged ones. layer: the site,
    pruning happens before it. By default 2, in a shallower model the last layer. Raises ValueError for a share outside
    [0, 1], for a layer below 1, on entering for one that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "VisionZip, arXiv 2412.04467"

    contextual: float = 10 / 64
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual)
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        num_contextual = round(span.count * self.contextual)
        dominant = choose_best(span.measure_attention("summary"), span.count - num_contextual)
        if num_contextual == 0:
            return Plan(dominant)
        rest = find_others(dominant, len(span))  # [B, R]
        step = max(1, rest.shape[1] // num_contextual)
        targets = rest[:, ::step][:, :num_contextual]
        index = torch.cat([dominant, targets], 1).sort(1).values
        keys = span.measure_keys()

        def pick(places: Tensor) -> Tensor:
            return keys.gather(1, places[..., None].expand(-1, -1, keys.shape[-1]))

        nearest = compute_cosines(pick(rest), pick(targets)).argmax(-1)  # [B, R]
        joins = ~(rest[:, :, None] == targets[:, None]).any(-1)  # targets join nobody
        belongs = F.one_hot(nearest, num_contextual).float() * joins[..., None]  # [B, R, C]
        mean = (belongs / belongs.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)  # [B, C, R]
        merge = F.one_hot(index, len(span)).to(hidden.dtype)  # [B, M, N]
        added = torch.zeros(len(hidden), num_contextual, len(span), device=hidden.device)
        added.scatter_(2, rest[:, None].expand(-1, num_contextual, -1), mean)
        where = (index[:, :, None] == targets[:, None]).to(added.dtype)  # [B, M, C]
        return Plan(index, merge + (where @ added).to(hidden.dtype))


def find_others(chosen: Tensor, num: int) -> Tensor:
    """The tokens of `num` that are not in chosen int64 [B, M], ascending: int64 [B, num - M]."""
    taken = torch.zeros(len(chosen), num, dtype=torch.bool, device=chosen.device).scatter(1, chosen, True)
    return taken.long().argsort(dim=1, stable=True)[:, : num - chosen.shape[1]]
