"""Methods with a part that is trained: how they hold it, refuse without it, and learn to choose.

A choice of tokens has no gradient. In training each kept token is therefore multiplied by 1, whose gradient is that of
its score's sigmoid (a straight-through estimate): a score rises where more of its token would have helped.

Shapes: B spans, N tokens, M chosen, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan
from unimodal.compression.tokens.choosing import choose_best
from unimodal.vocabulary import Vocabulary


@runtime_checkable
class HasWidth(Protocol):
    """A module that takes states of one width alone."""

    width: int


@dataclass
class LearnedCompressor(Compressor):
    """A method with a module that is trained for one decoder (`recipes/train_compressor.py`).

    Raises ValueError on entering without the module, and in use for a decoder of another width.
    """

    is_learned: ClassVar[bool] = True
    #: the field that holds the module
    part: ClassVar[str]
    #: what `compute_loss` gives
    learns_by: ClassVar[str] = "divergence"

    @classmethod
    @abstractmethod
    def make_part(cls, width: int, num_layers: int) -> nn.Module:
        """An untrained module for a decoder of this width [D] and depth."""

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        """What the module is trained by, summed over tokens, and how many those are; the arguments, and what most
        learn by, are those of `compute_distillation_loss`."""
        return compute_distillation_loss(self, model, vocabulary, ids, valid, learnt)

    @property
    def module(self) -> nn.Module | None:
        """The module, if there is one."""
        held = vars(self)[self.part]
        assert held is None or isinstance(held, nn.Module)
        return held

    @property
    def width(self) -> int | None:
        """The width of states that the module was trained for; None where it takes any, and without a module."""
        return self.module.width if isinstance(self.module, HasWidth) else None

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.module is None:
            kind = type(self.make_part(4, 1)).__name__
            raise ValueError(
                f"{type(self).__name__} is learned; give {self.part}={kind}(width), trained with the decoder by "
                "recipes/train_compressor.py"
            )


def check_width(trained: int, hidden: Tensor) -> None:
    """Raises ValueError for states [..., D] of another width than a module was trained for."""
    compare_widths(trained, hidden.shape[-1])


def compare_widths(trained: int, width: int) -> None:
    """Raises ValueError for a decoder of another width than a module was trained for."""
    if width != trained:
        raise ValueError(f"this compressor was trained for states of {trained} values; these have {width}")


def choose_learned(scores: Tensor, count: int, hidden: Tensor) -> Plan:
    """Keep the M = `count` tokens of hidden [B, N, D] with the best scores [B, N], which learn by it in training."""
    index = choose_best(scores.detach(), count)
    if not scores.requires_grad:
        return Plan(index)
    gate = scores.sigmoid().gather(1, index)[..., None]
    kept = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    return Plan(index, states=kept * (1 + (gate - gate.detach())).to(kept.dtype))
