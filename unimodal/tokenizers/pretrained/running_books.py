"""How the residual books of transformers' codecs learn: by running averages, in the buffers that the networks have.

transformers reads these buffers and never writes them: in a new network every row is 0, so that all sounds have one
code. The authors begin them by k-means with the first batch, keep each row at the running average of the vectors that
chose it and bring back rows that few choose (EnCodec, arXiv 2210.13438, whose quantizer X-Codec and Higgs have too;
moshi's is alike). Here `CodebookUpkeep` does that, for as long as a book is in training mode.

Shapes: B batch, D width of a latent, d of a book, N codes, C codes of a book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import leave_autocast, pass_straight_through
from unimodal.tokenizers.parts.quantizers.upkeep import CodebookUpkeep

#: see `ResidualBooks`
DEAD_SHARE = 0.5


@dataclass(frozen=True)
class BookBuffers:
    """Where a kind of book keeps its numbers. rows: None where they are sums divided by counts, kept in `cached`."""

    sums: str
    counts: str
    started: str
    rows: str | None = None
    cached: str | None = None


ENCODEC_BUFFERS = BookBuffers("embed_avg", "cluster_size", "inited", rows="embed")
MIMI_BUFFERS = BookBuffers("embed_sum", "cluster_usage", "initialized", cached="_embed")


class RunningBooks:
    """The books of one residual quantizer, coarse to fine; no module: all numbers are the network's own buffers.

    levels: modules with `codebook`, and `project_in` and `project_out` where a book is narrower than the latents
    (Higgs). decay: of the averages, a step. New books begin by k-means (`forget`), those of a checkpoint as they are.
    """

    def __init__(self, levels: Sequence[nn.Module], buffers: BookBuffers, decay: float):
        self.levels, self.buffers, self.decay = list(levels), buffers, decay

    @property
    def books(self) -> list[nn.Module]:
        return [level.get_submodule("codebook") for level in self.levels]

    @torch.no_grad()
    def forget(self) -> None:
        """Rows that are drawn, as equal ones would tie; the next batch in training begins the books."""
        for book in self.books:
            book.get_buffer(self.buffers.started).fill_(0)
            sums = book.get_buffer(self.buffers.sums)
            sums.uniform_(-1 / len(sums), 1 / len(sums))
            self._write_rows(book, sums)

    def quantize(self, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """z: [B, D, N], by the first `count` books → what their codes stand for [B, D, N], with the gradient of z and
        of the maps between latents and books, and the commitment: the mean over the books, as the authors'."""
        with leave_autocast(z.device):
            return self._quantize(z.float(), count)

    def _quantize(self, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
        left, total = z.transpose(1, 2), z.new_zeros(z.shape[0], z.shape[2], z.shape[1])
        losses = []
        for level, book in zip(self.levels[:count], self.books, strict=False):
            maps = dict(level.named_children())
            narrow = maps["project_in"](left) if "project_in" in maps else left  # [B, N, d]
            rows = self._learn(book, narrow.detach())
            losses.append((narrow - rows).square().mean())
            value = maps["project_out"](pass_straight_through(narrow, rows)) if "project_out" in maps else rows
            total, left = total + value, left - value.detach()
        if not any("project_out" in dict(level.named_children()) for level in self.levels):
            total = pass_straight_through(z.transpose(1, 2), total)  # once, past all books
        return total.transpose(1, 2), torch.stack(losses).mean()

    @torch.no_grad()
    def _learn(self, book: nn.Module, vectors: Tensor) -> Tensor:
        """[B, N, d] → the rows that they choose, before the book learns from them."""
        flat = vectors.flatten(0, 1).float()
        upkeep = self._open(book) if book.training else None
        if upkeep is not None:
            rows = self._read_rows(book)
            upkeep.start(rows, flat, None)
            self._write_rows(book, rows)
        rows = self._read_rows(book)
        encode: Callable[[Tensor], Tensor] = book.encode
        ids = encode(flat)
        found = rows[ids].view(vectors.shape)
        if upkeep is not None:
            upkeep.learn(rows, flat, ids, None)
            self._write_rows(book, rows)
        return found

    def _open(self, book: nn.Module) -> CodebookUpkeep:
        """The upkeep whose numbers are the book's buffers."""
        counts, sums = book.get_buffer(self.buffers.counts), book.get_buffer(self.buffers.sums)
        size, width = sums.shape
        upkeep = CodebookUpkeep(size, width, averaged=True, decay=self.decay, kmeans_start=True, dead_share=DEAD_SHARE)
        upkeep.counts, upkeep.sums, upkeep.started = counts, sums, book.get_buffer(self.buffers.started)
        return upkeep

    def _read_rows(self, book: nn.Module) -> Tensor:
        """A copy of the rows [C, d]."""
        if self.buffers.rows is not None:
            return book.get_buffer(self.buffers.rows).clone()
        return book.get_buffer(self.buffers.sums) / book.get_buffer(self.buffers.counts).clamp_min(1e-5)[:, None]

    def _write_rows(self, book: nn.Module, rows: Tensor) -> None:
        if self.buffers.rows is not None:
            book.get_buffer(self.buffers.rows).copy_(rows)
        elif self.buffers.cached is not None:
            setattr(book, self.buffers.cached, None)


def reset_maps(modules: Iterable[nn.Module]) -> None:
    """torch's own beginning of every convolution and linear map, which the authors' networks have where transformers
    has another."""
    for module in modules:
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            module.reset_parameters()


def reset_dac(modules: Iterable[nn.Module]) -> None:
    """The beginning of DAC's authors: torch's own of every convolution, with biases of 0, and normal rows of
    codebooks. Their weights of a deviation of 0.02, which transformers has, go to a copy that weight normalization
    overwrites; with these the latents of a narrow network are all alike."""
    for module in modules:
        reset_maps([module])
        if isinstance(module, nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
