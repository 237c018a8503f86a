"""What a front end is: a way for a decoder to read and score plain text, by tokens, bytes, words, pictures of letters.

Each puts what it reads before one stock decoder, a Llama of `build_nano`'s sizes, and scores every byte of a text
exactly: the costs of its units add up to the negative log-probability of the whole, so that all are compared in bits a
byte. A unit is what is scored at once: a token, a byte, a word.

Shapes: B texts, U units of a text, N positions of the decoder, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimodal.model.build import NanoConfig, build_nano


@dataclass(frozen=True, eq=False)
class UnitScores:
    """The cost of each unit in nats [B, U], and its bytes int64 [B, U]; both are 0 where a text has fewer units."""

    nats: Tensor
    sizes: Tensor

    def compute_loss(self) -> Tensor:
        """Nats a byte, over all texts together."""
        return self.nats.sum() / self.sizes.sum().clamp_min(1)


class FrontEnd(nn.Module, ABC):
    """Texts as bytes → costs of their units. Costs of a unit depend on what comes before it alone."""

    def __init__(self, sizes: NanoConfig, num_rows: int = 1, seed: int = 0) -> None:
        """num_rows: of the decoder's own table, for a front end that uses it."""
        super().__init__()
        self.lm = build_nano(num_rows, sizes, pad_id=0, bos_id=0, eos_id=0, seed=seed)
        self.width = sizes.hidden_size
        self.max_positions = sizes.max_positions

    @abstractmethod
    def score(self, texts: Sequence[bytes]) -> UnitScores:
        """The cost of every unit. Raises ValueError for a text that is longer than the decoder's positions."""

    def extra_loss(self) -> Tensor | None:
        """What training adds to the loss of the last `score`; None for nothing."""
        return None

    def read(self, inputs: Tensor) -> Tensor:
        """Embedded positions [B, N, D] → the decoder's states [B, N, D]; each sees those before it."""
        if inputs.shape[1] > self.max_positions:
            raise ValueError(
                f"a text takes {inputs.shape[1]} positions, the decoder has {self.max_positions}; give a shorter one"
            )
        return self.lm.model(inputs_embeds=inputs, use_cache=False).last_hidden_state


def pad_rows(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Lists of numbers as one int64 tensor [B, longest], padded behind."""
    longest = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64).reshape(
        -1, longest
    )


def make_layers(width: int, num_layers: int, max_positions: int, seed: int) -> nn.Module:
    """A small Llama without a table, for what lies before or behind the decoder."""
    heads = max(1, width // 32)
    sizes = NanoConfig(
        hidden_size=width, num_layers=num_layers, num_heads=heads, num_kv_heads=heads, intermediate_size=3 * width,
        max_positions=max_positions,
    )  # fmt: skip
    return build_nano(1, sizes, pad_id=0, bos_id=0, eos_id=0, seed=seed).model
