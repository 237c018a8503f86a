"""ATP-LLaVA (arXiv 2412.00447): how many tokens a layer prunes depends on the picture and the question, by thresholds.

Between two layers a small module reads the scores of a span and gives two thresholds for it. A token's redundancy score
is the mean of the attention that it receives from the other tokens of the span and from the words behind it, as a
multiple of an even share. Its spatial score says on how coarse a lattice of the grid it lies, so that a threshold on it
keeps tokens at even distances (spatial augmented pruning). A token stays if either score reaches its threshold. Pruning
has no gradient; in training a kept token counts by the sigmoid of how far it is above, and the share that the sigmoids
leave is held to that of `keep` (budget).

The authors have published no code; the form of the module is ours: an MLP on quantiles of the redundancy scores, for
any number of tokens, and on `keep`, so that one module serves several shares. Its sites are a quarter, a half and three
quarters of the depth, and behind the first the lattice is one of the line of tokens that are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.learned import DecoderShape
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import find_raster
from unimodal.compression.tokens.learned import LearnedCompressor, choose_learned
from unimodal.compression.tokens.stages import count_evenly, place_sites
from unimodal.vocabulary import Vocabulary

DEPTHS = (1 / 4, 1 / 2, 3 / 4)  # of the sites
QUANTILES = 16  # of the redundancy scores, which the module reads
SHARPNESS = 10.0  # of the sigmoids


class PruningThresholds(nn.Module):
    """An MLP for each stage: quantiles of the redundancy scores and the share to keep → two thresholds.

    It begins at thresholds that leave about the share: one at the quantile of the scores where half of it lies above,
    and one of the lattice.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(QUANTILES + 1, width), nn.GELU(), nn.Linear(width, 2)) for _ in DEPTHS
        )
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential) and isinstance(stage[2], nn.Linear)
            nn.init.zeros_(stage[2].weight)
            nn.init.zeros_(stage[2].bias)

    def forward(self, scores: Tensor, share: float, stage: int) -> Tensor:
        """scores [B, N], redundancy → thresholds [B, 2], of redundancy and of space."""
        quantiles = scores.quantile(torch.linspace(0, 1, QUANTILES, device=scores.device), dim=-1).T  # [B, quantiles]
        known = torch.cat([quantiles, quantiles.new_full((len(scores), 1), share)], -1)
        half = scores.quantile(1 - share / 2, dim=-1)
        begun = torch.stack([half, torch.full_like(half, 1 - share / 2)], -1)
        return begun + self.stages[stage](known)


@dataclass
class ATP(LearnedCompressor):
    """Keep what reaches thresholds that are learned for every span and stage (ATP-LLaVA, arXiv 2412.00447).

    hidden [B, N, D] → as many tokens as reach one of two thresholds, at least one. keep: the share that the thresholds
    were held to in training; of a span it may be more or less. budget: weight of that, in nats. thresholds: trained
    with the decoder. Raises ValueError for a negative weight, on entering without thresholds or for a model of one
    layer, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "ATP-LLaVA, arXiv 2412.00447"
    part: ClassVar[str] = "thresholds"
    judges_rows: ClassVar[bool] = True

    budget: float = 10.0
    thresholds: PruningThresholds | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < 0:
            raise ValueError(f"budget is {self.budget}; give a weight from 0 on")

    @classmethod
    def make_part(cls, shape: DecoderShape) -> PruningThresholds:
        return PruningThresholds()

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(site - 1 for site in self.find_sites(num_layers))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if self.keep == 1:
            return [len(span) for span in spans]
        return [max(1, int((self.rate(span).detach() >= 0).sum())) for span in spans]

    def rate(self, span: Span) -> Tensor:
        """How far each token is above the nearer of its thresholds, [B, N]; below 0 it goes."""
        assert self.thresholds is not None
        sites = self.find_sites(span.num_layers)
        stage = len(DEPTHS) - len(sites) + sites.index(span.layer)
        redundancy = measure_redundancy(span)
        share = min(1.0, count_evenly([span], sites, self.keep)[0] / len(span))
        bounds = self.thresholds(redundancy, share, stage)  # [B, 2]
        spatial = score_lattice(span).to(redundancy)
        return torch.maximum(redundancy - bounds[:, :1], spatial - bounds[:, 1:])

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return choose_learned(SHARPNESS * self.rate(span), span.count, hidden)

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        watched = _WatchedATP(**{spec.name: getattr(self, spec.name) for spec in fields(self)})
        total, count = compute_distillation_loss(watched, model, vocabulary, ids, valid, learnt)
        if watched.shares:
            total = total + self.budget * count * torch.stack(watched.shares).square().mean()
        return total, count


@dataclass
class _WatchedATP(ATP):
    """One that notes how far the sigmoids of a call are from the shares of their stages."""

    shares: list[Tensor] = field(default_factory=list)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        for span in spans:
            share = count_evenly([span], self.find_sites(num_layers), self.keep)[0] / len(span)
            self.shares.append((SHARPNESS * self.rate(span)).sigmoid().mean() - min(1.0, share))
        return super().count_kept(spans, num_layers)


def measure_redundancy(span: Span) -> Tensor:
    """The attention that each token receives from the span's tokens and from the words behind it, the mean of both,
    each as a multiple of an even share: float32 [B, N]."""
    inside, after = span.measure_attention_inside().mean(1), span.measure_attention("after")
    even = (each / each.mean(-1, keepdim=True).clamp_min(1e-9) for each in (inside, after))
    return sum(even, torch.zeros_like(after)) / 2


def score_lattice(span: Span) -> Tensor:
    """Of each token the share of the tokens that lie on no coarser lattice than its own finest, [N]: those that lie on
    the coarsest have the most."""
    runs = span.segments if sum(span.segments) == len(span) else (len(span),)
    levels = torch.cat([_find_levels(length, span.modality != "audio") for length in runs])
    return (levels[:, None] > levels[None]).float().mean(1) + (levels[:, None] == levels[None]).float().mean(1) / 2


def _find_levels(num: int, is_raster: bool) -> Tensor:
    """How often the place of each token can be halved in all directions, int64 [N]; the first place as often as any."""
    sides = find_raster(num) if is_raster else None
    lines = [torch.arange(side) for side in sides or (num,)]
    most = max(1, math.ceil(math.log2(max(len(line) for line in lines))) if num > 1 else 1)
    halved = [sum((line % 2**power == 0).long() for power in range(1, most + 1)) for line in lines]
    grid = halved[0] if len(halved) == 1 else torch.minimum(halved[0][:, None], halved[1][None]).flatten()
    assert isinstance(grid, Tensor)
    return grid
