"""How a table of rows is kept in use without a gradient: a start by k-means, running averages, dead rows brought back.

k-means, running averages and their smoothing are vector-quantize-pytorch's. Under several processes counts and sums are
added up, and what is drawn is drawn by the first.

Shapes: M real positions of a step, D dimensions, C codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from vector_quantize_pytorch.vector_quantize_pytorch import ema_inplace, kmeans, laplace_smoothing

from unimodal.tokenizers.parts.codebook_clustering import pull_unused_codes
from unimodal.tokenizers.parts.ranks import add_over_ranks, copy_from_first


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
        if bool(self.started) or not count_of_first(vectors):
            return

        def draw(samples: Tensor, count: int) -> Tensor:
            """Each vector at most once: where there are fewer than rows, the others stay, as equal rows would tie."""
            few = min(count, samples.shape[1])
            return torch.cat([draw_vectors(samples[0], few, generator), codebook[few:count].to(samples)])[None]

        means, bins = codebook.new_zeros(1, *codebook.shape), codebook.new_zeros(1, self.codebook_size)
        if len(vectors):
            means, bins = kmeans(vectors[None], self.codebook_size, self.kmeans_rounds, self.unit, draw)
        means = copy_from_first(means)
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
            pull_unused_codes(codebook, self.usage, vectors, ids, self.decay, self.unit)

    def _revive(self, codebook: Tensor, vectors: Tensor, mean_count: float, generator: torch.Generator | None) -> None:
        """Dead rows become random vectors; no more of them a step than there are vectors."""
        dead = (self.counts < self.dead_share * mean_count).nonzero()[:, 0]
        few = min(count_of_first(vectors), len(dead))
        if not few:
            return
        order = torch.randperm(len(dead), generator=generator).to(dead.device)
        chosen = copy_from_first(dead[order[:few]])
        rows = codebook.new_zeros(len(chosen), codebook.shape[1])
        if len(vectors):
            rows.copy_(draw_vectors(vectors, len(chosen), generator))
        codebook[chosen] = self._keep_length(copy_from_first(rows))
        self.counts[chosen] = mean_count
        if self.averaged:
            self.sums[chosen] = codebook[chosen] * mean_count

    def _keep_length(self, rows: Tensor) -> Tensor:
        return normalize(rows, dim=-1) if self.unit else rows


def count_of_first(vectors: Tensor) -> int:
    """How many vectors the first process has."""
    return int(copy_from_first(torch.tensor([len(vectors)], device=vectors.device)))


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of the vectors [M, D], each once where there are as many."""
    if len(vectors) >= count:
        chosen = torch.randperm(len(vectors), generator=generator)[:count]
    else:
        chosen = torch.randint(len(vectors), (count,), generator=generator)
    return vectors[chosen.to(vectors.device)]
