"""How a table of rows is kept in use without a gradient: a start by k-means, running averages, dead rows brought back.

k-means, running averages and their smoothing are vector-quantize-pytorch's. Under several processes counts and sums are
added up, and what is drawn is drawn by the first.

Shapes: M real positions of a step, D dimensions, C codes.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.functional import normalize
from vector_quantize_pytorch.vector_quantize_pytorch import ema_inplace, kmeans, laplace_smoothing


class CodebookUpkeep(nn.Module):
    """The running numbers of a codebook [C, D], in buffers of its own.

    averaged: rows are the running averages of the vectors that chose them (van den Oord et al., arXiv 1711.00937,
    appendix A.1), so that no gradient trains them. decay: of the averages, a step.
    kmeans_start: the rows begin as the cluster means of the first real vectors.
    dead_share: a row is dead while its running count is below this share of the mean count, M / C, so that the
    threshold grows with the positions of a step; a dead row becomes a random real vector (Jukebox, arXiv 2005.00341).
    pull_unused: each row moves toward the real vector that is nearest to it by exp(−10 · C · p / (1 − decay)), p how
    often it was chosen (CVQ-VAE; TiTok's code).
    unit: rows are kept at length 1.
    """

    def __init__(
        self,
        codebook_size: int,
        num_dims: int,
        averaged: bool = False,
        decay: float = 0.99,
        kmeans_start: bool = False,
        kmeans_rounds: int = 10,
        dead_share: float = 0.0,
        pull_unused: bool = False,
        unit: bool = False,
    ):
        super().__init__()
        self.codebook_size, self.averaged, self.decay, self.unit = codebook_size, averaged, decay, unit
        self.kmeans_rounds, self.dead_share, self.pull_unused = kmeans_rounds, dead_share, pull_unused
        self.register_buffer("started", torch.tensor(not kmeans_start))
        if averaged or dead_share:
            self.register_buffer("counts", torch.ones(codebook_size))
        if averaged:
            self.register_buffer("sums", torch.zeros(codebook_size, num_dims))
        if pull_unused:
            self.register_buffer("usage", torch.zeros(codebook_size))

    def begin(self, codebook: Tensor) -> None:
        """Takes the averages to be those of the codebook as it is."""
        if self.averaged:
            self.sums.copy_(codebook)

    @torch.no_grad()
    def start(self, codebook: Tensor, vectors: Tensor, generator: torch.Generator | None) -> None:
        """The first time, sets the codebook to the cluster means of vectors [M, D]; afterwards nothing."""
        if bool(self.started) or not len(vectors):
            return

        def draw(samples: Tensor, count: int) -> Tensor:
            return draw_vectors(samples[0], count, generator)[None]

        means, bins = kmeans(vectors[None], self.codebook_size, self.kmeans_rounds, self.unit, draw)
        copy_from_first(means)
        codebook.copy_(means[0])
        self.started.fill_(True)
        if self.averaged or self.dead_share:
            self.counts.copy_(copy_from_first(bins.float())[0])
        if self.averaged:
            self.sums.copy_(means[0] * self.counts[:, None])

    @torch.no_grad()
    def learn(self, codebook: Tensor, vectors: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        """One step with vectors [M, D] and the rows int64 [M] that they chose; changes the codebook in place."""
        counts = add_over_ranks(torch.bincount(ids, minlength=self.codebook_size).float())
        positions = counts.sum()
        if not bool(positions):
            return
        if self.averaged or self.dead_share:
            ema_inplace(self.counts, counts, self.decay)
        if self.averaged:
            sums = torch.zeros_like(codebook).index_add_(0, ids, vectors)
            ema_inplace(self.sums, add_over_ranks(sums), self.decay)
            smoothed = laplace_smoothing(self.counts, self.codebook_size) * self.counts.sum()
            codebook.copy_(self._keep_length(self.sums / smoothed[:, None]))
        if self.dead_share:
            self._revive(codebook, vectors, float(positions) / self.codebook_size, generator)
        if self.pull_unused:
            self._pull(codebook, vectors, counts / positions)

    def _revive(self, codebook: Tensor, vectors: Tensor, mean_count: float, generator: torch.Generator | None) -> None:
        """Dead rows become random vectors; no more of them a step than there are vectors."""
        dead = (self.counts < self.dead_share * mean_count).nonzero()[:, 0]
        if not len(dead):
            return
        if is_distributed():
            few = min(add_over_ranks(torch.tensor([len(vectors)], device=dead.device)).item(), len(dead))
        else:
            few = min(len(vectors), len(dead))
        order = torch.randperm(len(dead), generator=generator).to(dead.device)
        chosen = copy_from_first(dead[order[: int(few)]])
        rows = codebook.new_zeros(len(chosen), codebook.shape[1])
        if len(vectors):
            rows.copy_(draw_vectors(vectors, len(chosen), generator))
        codebook[chosen] = self._keep_length(copy_from_first(rows))
        self.counts[chosen] = mean_count
        if self.averaged:
            self.sums[chosen] = codebook[chosen] * mean_count

    def _pull(self, codebook: Tensor, vectors: Tensor, shares: Tensor) -> None:
        """CVQ-VAE's step. The nearest vector is that of this process, and of the first one where there are several."""
        ema_inplace(self.usage, shares, self.decay)
        by = torch.exp(-self.usage * self.codebook_size * 10 / (1 - self.decay) - 1e-3)[:, None]
        compared = normalize(vectors, dim=-1) if self.unit else vectors
        rows = normalize(codebook, dim=-1) if self.unit else codebook
        nearest = copy_from_first(vectors[torch.cdist(rows, compared).argmin(1)])
        codebook.copy_(codebook * (1 - by) + nearest * by)

    def _keep_length(self, rows: Tensor) -> Tensor:
        return normalize(rows, dim=-1) if self.unit else rows


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of the vectors [M, D], each once where there are as many."""
    if len(vectors) >= count:
        chosen = torch.randperm(len(vectors), generator=generator)[:count]
    else:
        chosen = torch.randint(len(vectors), (count,), generator=generator)
    return vectors[chosen.to(vectors.device)]


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def copy_from_first(values: Tensor) -> Tensor:
    """What the first process has, in place."""
    if is_distributed():
        values = values.contiguous()
        distributed.broadcast(values, 0)
    return values
