"""What methods with a trained part share, for tokens or for the cache: they hold it, and refuse without it.

Shapes: D width of the states.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PretrainedConfig

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.method import Method
from unimodal.vocabulary import Vocabulary


class DecoderShape(NamedTuple):
    """The sizes of a decoder that a module is made for. width: of the states. head_width: of a query."""

    width: int
    num_layers: int
    num_heads: int = 1
    head_width: int = 1

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecoderShape:
        """The sizes that a decoder's config says."""
        width, num_heads = int(config.hidden_size), int(config.num_attention_heads)
        head_width = config.to_dict().get("head_dim") or width // num_heads
        return cls(width, int(config.num_hidden_layers), num_heads, int(head_width))


@runtime_checkable
class HasWidth(Protocol):
    """A module that takes states of one width alone."""

    width: int


class LearnedMethod(Method):
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
    def make_part(cls, shape: DecoderShape) -> nn.Module:
        """An untrained module for a decoder of these sizes."""

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

    def check_part(self) -> None:
        """Raises ValueError without the module."""
        if self.module is None:
            kind = type(self.make_part(DecoderShape(4, 1, 1, 4))).__name__
            raise ValueError(
                f"{type(self).__name__} is learned; give {self.part}={kind}(...), trained with the decoder by "
                "recipes/train_compressor.py"
            )


def check_width(trained: int, hidden: Tensor) -> None:
    """Raises ValueError for states [..., D] of another width than a module was trained for."""
    compare_widths(trained, hidden.shape[-1])


def compare_widths(trained: int, width: int) -> None:
    """Raises ValueError for a decoder of another width than a module was trained for."""
    if width != trained:
        raise ValueError(f"this compressor was trained for states of {trained} values; these have {width}")


def check_layers(trained: int, num_layers: int, part: str) -> None:
    """Raises ValueError for a decoder of more layers than a module was trained for. part: what the module is called."""
    if trained < num_layers:
        raise ValueError(f"the {part} are of {trained} layers, the model has {num_layers}")
