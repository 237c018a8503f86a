"""Prefix policies: how many tokens of each item a decoder is given in training, so that any prefix decodes.

The lengths are drawn for every item, not for the batch. What is dropped is cut off, or replaced by one learned vector.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PrefixKind = Literal["none", "uniform", "powers", "rounded", "nested"]


@dataclass(frozen=True)
class PrefixPolicy:
    """kind: "none" keeps all tokens; "uniform" any number from `fewest` on (One-D-Piece, arXiv 2501.10064); "powers" a
    power of two, or all (FlexTok, 2502.13967, "pow2"); "rounded" a uniform number, rounded up to a power of two (its
    "uniform_pow2"); "nested" a uniform number from a least one on that falls from all tokens at the start of training
    to `fewest` at its share `schedule`.

    share: of the items that are shortened at all; the others keep all tokens. shared: one length for the whole batch,
    as One-D-Piece's code draws it.
    """

    kind: PrefixKind = "none"
    fewest: int = 1
    share: float = 1.0
    schedule: float = 0.5
    shared: bool = False

    def __post_init__(self) -> None:
        if self.fewest < 1:
            raise ValueError(f"a prefix has at least 1 token; got fewest {self.fewest}")
        if not 0 <= self.share <= 1 or not 0 < self.schedule <= 1:
            raise ValueError(f"share lies in [0, 1] and schedule in (0, 1]; got {self.share} and {self.schedule}")

    def draw(
        self, batch: int, num_tokens: int, generator: torch.Generator | None = None, progress: float = 1.0
    ) -> Tensor | None:
        """How many of N tokens each item keeps, int64 [B]; None for all of them. progress: the share of the training
        that is done, of "nested".

        An item's length depends on its own place in the batch alone, and not on how many stand after it. Raises
        ValueError for fewer than `fewest` tokens.
        """
        if num_tokens < self.fewest:
            raise ValueError(f"a prefix keeps at least {self.fewest} tokens, and there are {num_tokens}")
        if self.kind == "none" or not self.share:
            return None
        drawn = torch.rand(1 if self.shared else batch, 2, generator=generator).expand(batch, 2)
        kept = self._choose(drawn[:, 0], num_tokens, progress)
        return torch.where(drawn[:, 1] < self.share, kept, num_tokens)

    def _choose(self, drawn: Tensor, num_tokens: int, progress: float) -> Tensor:
        """Uniform numbers in [0, 1) → lengths."""
        fewest = self.fewest
        if self.kind == "powers":
            sizes = torch.tensor(list_powers(fewest, num_tokens))
            return sizes[(drawn * len(sizes)).long()]
        if self.kind == "nested":
            done = min(progress / self.schedule, 1.0)
            fewest = round(num_tokens + (self.fewest - num_tokens) * done)
        kept = fewest + (drawn * (num_tokens + 1 - fewest)).long()
        if self.kind == "rounded":
            sizes = torch.tensor(list_powers(fewest, num_tokens))
            return sizes[torch.searchsorted(sizes, kept)]
        return kept


def list_powers(fewest: int, num_tokens: int) -> list[int]:
    """The powers of two from `fewest` to below N, and N."""
    powers = [2**power for power in range(num_tokens.bit_length())]
    return [*(size for size in powers if fewest <= size < num_tokens), num_tokens]


def make_prefix_mask(kept: Tensor, num_tokens: int) -> Tensor:
    """kept: int64 [B] → which of N tokens are kept, bool [B, N]."""
    return torch.arange(num_tokens, device=kept.device) < kept[:, None]


def cut_tail(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, N, D] → those of the longest prefix [B, n, D], 0 past the end of shorter ones, and which are real,
    bool [B, n]: attention is to leave the others out."""
    mask = make_prefix_mask(kept.to(tokens.device), int(kept.max()))
    return tokens[:, : mask.shape[1]] * mask[..., None], mask


def mask_tail(tokens: Tensor, kept: Tensor, vector: Tensor) -> Tensor:
    """Tokens [B, N, D] with the learned vector [D] in place of those that are not kept; all N stay in the attention."""
    mask = make_prefix_mask(kept.to(tokens.device), tokens.shape[1])
    return torch.where(mask[..., None], tokens, vector.to(tokens))


# ---- lengths that the model chooses (KARL: Single-pass Adaptive Image Tokenization)


def count_before_halt(halting: Tensor, threshold: float = 0.75, fewest: int = 1) -> Tensor:
    """halting: probability [B, N] that a token is not needed → how many stand before the first one above the threshold,
    int64 [B], at least `fewest`."""
    halted = halting > threshold
    first = torch.where(halted.any(1), halted.int().argmax(1), halting.shape[1])
    return first.clamp(min=fewest)


def make_halting_targets(needed: Tensor, num_tokens: int) -> Tensor:
    """What the halting probabilities [B, N] are trained toward: 0 for the first needed: int64 [B] tokens, 1 for the
    extra ones."""
    return (~make_prefix_mask(needed, num_tokens)).float()
