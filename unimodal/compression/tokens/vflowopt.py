"""VFlowOpt (arXiv 2508.05211): rank tokens once, prune in three stages, and recycle what goes at the first.

A token is worth the attention that it gets from the span's global tokens, those that get more than `threshold` times
the mean attention of all, plus `entropy` times the softmax of its patch's entropy. At the first stage the tokens that
go are recycled: neighbours among them become means, one for every square of `cell` by `cell` tokens of the span. The
two later stages, before layers 9 and 18 of 28, rank by the same attention. The authors find all these numbers for a
model by the drift of its last token on a few prompts, with a Bayesian search; `calibrate` does so with a random one, at
an equal number of tokens on the mean of the layers. They take attention and pixels in a picture encoder. Here both are
those of the decoder: attention in its first layer, among the tokens that are left, and the entropy of the codes around
a token, 3 × 3 of a raster or 9 of a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.calibration import measure_drift
from unimodal.compression.tokens.choosing import choose_best, merge_clusters
from unimodal.compression.tokens.grids import find_raster
from unimodal.compression.tokens.stages import count_evenly, place_sites
from unimodal.compression.tokens.visionzip import find_others
from unimodal.vocabulary import Vocabulary

DEPTHS = (0, 9 / 28, 18 / 28)  # of the sites; the first lies before layer 1
RANGES = {"threshold": (0.0, 50.0), "entropy": (-1.0, 1.0)}  # of the authors' search
CELLS = (3, 24)


@dataclass
class VFlowOpt(Compressor):
    """Keep what global tokens attend to, and recycle what goes at first (VFlowOpt, arXiv 2508.05211).

    hidden [B, N, D] → `span.count` tokens; at the first site means among them, one for every `cell`² tokens of the
    span. threshold: above so many means of the attention a token is global; if none is, all are. entropy: the weight of
    the entropy of codes. shares: of the tokens that are left behind each site; by default every stage takes the same
    part, down to `keep`. Raises ValueError for a cell below 2, for shares outside (0, 1] or that grow, on entering for
    a model of one layer or of fewer stages, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "VFlowOpt, arXiv 2508.05211"
    judges_rows: ClassVar[bool] = True

    threshold: float = 1.0
    entropy: float = 0.0
    cell: int = 4
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("cell", self.cell, 2)
        whole = [1.0, *(self.shares or ())]
        if whole != sorted(whole, reverse=True) or whole[-1] <= 0:
            raise ValueError(f"shares are {self.shares}; give numbers above 0 that never grow")

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        sites = self.find_sites(num_layers)
        if self.shares is not None and len(self.shares) != len(sites):
            raise ValueError(f"{len(self.shares)} shares were given; this model has {len(sites)} stages")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (0,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        sites = self.find_sites(num_layers)
        if self.shares is None:
            return count_evenly(spans, sites, self.keep)
        shares = [self.shares[sites.index(span.layer)] for span in spans]
        return [min(len(span), count_share(share, span.original)) for share, span in zip(shares, spans, strict=True)]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = rate_by_global_tokens(span.measure_attention_inside(0), self.threshold)
        if self.entropy:
            is_raster = span.modality != "audio" and len(span) == span.original
            scores = scores + self.entropy * measure_code_entropy(span.ids, span.segments, is_raster).softmax(-1)
        is_first = span.layer == min(self.find_sites(span.num_layers))
        num_means = min(len(span) // self.cell**2, span.count - 1) if is_first else 0
        kept = choose_best(scores, span.count - num_means)
        if not num_means:
            return Plan(kept)
        rest = find_others(kept, len(span))  # [B, R]
        line = order_by_cells(span.segments, span.modality != "audio", self.cell).to(rest.device)
        order = line[rest].argsort(dim=-1, stable=True)  # neighbours stand together
        near = rest.gather(1, order)
        part = torch.arange(near.shape[1], device=rest.device) * num_means // near.shape[1]
        index = torch.cat([kept, near[:, part.diff(prepend=part.new_tensor([-1])) > 0]], 1)
        index, place = index.sort(1)
        clusters = torch.zeros(len(hidden), len(span), dtype=torch.int64, device=rest.device)
        own = torch.arange(span.count, device=rest.device).expand_as(index)
        clusters.scatter_(1, kept, own[:, : kept.shape[1]])
        clusters.scatter_(1, near, (kept.shape[1] + part).expand_as(near))
        merge, _ = merge_clusters(clusters, span.count, torch.ones_like(span.sizes))
        return Plan(index, merge.gather(1, place[..., None].expand_as(merge)))

    def calibrate(
        self,
        model: nn.Module,
        vocabulary: Vocabulary | None,
        rows: Sequence[Sequence[int]],
        trials: int = 27,
        seed: int = 0,
    ) -> VFlowOpt:
        """The same method with the settings that change the model's answers to these prompts [N] least, of `trials`.

        The layers read as many tokens, on their mean, as with the settings of now. Raises ValueError for no prompts.
        """
        num_layers: int = model.config.get_text_config().num_hidden_layers
        draws, best = torch.Generator().manual_seed(seed), self
        least = measure_drift(self, model, vocabulary, rows)
        for _ in range(trials):
            one, two, three, four = torch.rand(4, generator=draws).tolist()
            (low, high), (bottom, top) = RANGES["threshold"], RANGES["entropy"]
            cell = int(CELLS[0] + three * (CELLS[1] + 1 - CELLS[0]))
            method = replace(
                self, threshold=low + one * (high - low), entropy=bottom + two * (top - bottom), cell=cell,
                shares=draw_shares(self.keep, self.find_sites(num_layers), four),
            )  # fmt: skip
            drift = measure_drift(method, model, vocabulary, rows)
            if drift < least:
                best, least = method, drift
        return best


def draw_shares(keep: float, sites: Sequence[int], draw: float) -> tuple[float, ...]:
    """Shares behind each of up to three sites that end at `keep`, with the mean over the layers of even stages.

    draw: in [0, 1), where between its bounds the first lies.
    """
    even = [keep ** ((number + 1) / len(sites)) for number in range(len(sites))]
    if len(sites) < 3:
        return tuple(even)
    one, two = sites[1] - sites[0], sites[2] - sites[1]
    total = even[0] * one + even[1] * two
    low, high = total / (one + two), min(1.0, (total - keep * two) / one)  # equal to the second; the second at `keep`
    first = low + draw * (high - low)
    return first, (total - first * one) / two, keep


def rate_by_global_tokens(attention: Tensor, threshold: float) -> Tensor:
    """The attention [B, N] that tokens get from the global ones; attention [B, N, N], of each to each."""
    received = attention.mean(1)
    is_global = received > threshold * received.mean(-1, keepdim=True)  # [B, N]
    weight = torch.where(is_global.any(-1, keepdim=True), is_global, True).to(attention)
    return (attention * weight[..., None]).sum(1) / weight.sum(-1, keepdim=True)


def find_places(segments: Sequence[int], is_raster: bool) -> Tensor:
    """The run, row and column of every token, int64 [N, 3]; a line has one row."""
    places = []
    for run, length in enumerate(segments):
        sides = find_raster(length) if is_raster else None
        wide = sides[1] if sides else length
        places += [(run, token // wide, token % wide) for token in range(length)]
    return torch.tensor(places)


def order_by_cells(segments: Sequence[int], is_raster: bool, cell: int) -> Tensor:
    """A number for every token, int64 [N], by which tokens of one `cell` by `cell` square, or of a stretch of as many,
    stand together."""
    run, row, column = find_places(segments, is_raster).unbind(1)
    wide = 1 + int(column.max())
    is_line = row.new_tensor([not (is_raster and find_raster(length)) for length in segments])[run].bool()
    across = torch.where(is_line, column // cell**2, column // cell)
    return (run * (1 + int(row.max())) + row // cell) * wide + across


def measure_code_entropy(ids: Tensor, segments: Sequence[int], is_raster: bool) -> Tensor:
    """The entropy in bits of the codes around every token, itself included, float32 [B, N]; ids int64 [B, N]."""
    places = find_places(segments, is_raster).to(ids.device)
    away = (places[:, None] - places).abs()
    is_line = torch.tensor([not (is_raster and find_raster(n)) for n in segments], device=ids.device)[places[:, 0]]
    reach = torch.where(is_line, 4, 1)[:, None]
    near = ((away[..., 0] == 0) & (away[..., 1] <= 1) & (away[..., 2] <= reach)).float()  # [N, N]
    same = (ids[:, :, None] == ids[:, None]).float()  # [B, N, N]
    count = near @ same  # of each code in each neighbourhood, [B, N, N]
    share = count / near.sum(-1)[:, None]
    return -(near * share.clamp_min(1e-9).log2() / near.sum(-1)[:, None]).sum(-1)
