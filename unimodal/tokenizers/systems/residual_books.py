"""Residual books as EnCodec (arXiv 2210.13438) teaches them: running averages, begun by k-means."""

from __future__ import annotations

from pydantic import Field

from unimodal.tokenizers.parts.quantizers.residual import ResidualQuantizer
from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.systems.sound import SoundConfig


class ResidualBooks(SoundConfig):
    """num_codebooks: G, each of codebook_size values. dropout: the share of sounds that keep a random number of books
    in a step of training. dead_share: see `CodebookUpkeep`; the authors revive rows below a count of 2, which is about
    the mean count of their trainings, or above it. decay: of the averages; short trainings want less than 0.99."""

    num_codebooks: int = Field(default=8, ge=1)
    codebook_size: int = Field(default=1024, ge=2)
    commitment: float = Field(default=1.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, le=1)
    decay: float = Field(default=0.99, gt=0, lt=1)
    dead_share: float = Field(default=0.5, ge=0)

    def make_quantizer(self, width: int) -> ResidualQuantizer:
        """Books of running averages, begun by k-means, as EnCodec's."""
        books = [
            VectorQuantizer(
                self.codebook_size,
                width,
                commitment=self.commitment,
                learned_by="averages",
                decay=self.decay,
                start="kmeans",
                dead_share=self.dead_share,
            )
            for _ in range(self.num_codebooks)
        ]
        return ResidualQuantizer(books, dropout=self.dropout)
