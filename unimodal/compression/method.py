"""What a compression method is: it is given the tokens of input spans and returns a plan, which the executor applies.

A method never touches the model. Its plan says which tokens of a span go on, with which states and positions, and for
how many tokens each stands. It is used as a context manager:

    with DivPrune(keep=0.25)(model):  # a loaded `Unimodal`, its `Engine`, or a Hugging Face decoder and its vocabulary
        ...

Only spans that the model reads are compressed: complete ones, in a system's or a user's turn. What the model writes is
left alone. Methods for tokens extend `Compressor`, methods for the cache `CacheCompressor` of `kv/method.py`.

Shapes: as in `plan.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import ClassVar, Literal, get_type_hints

from torch import Tensor

from unimodal.compression.plan import Plan, Positions, Span, count_share
from unimodal.compression.running.session import CompressionSession, CompressionTarget
from unimodal.config import check_kind
from unimodal.media.registry import MEDIA
from unimodal.vocabulary import Vocabulary


def check_kinds(settings: Method) -> None:
    """Raises ValueError for a setting that is not of the kind its class declares: a whole number, a finite number, or
    a row of these."""
    kinds = get_type_hints(type(settings))
    for spec in fields(settings):
        check_kind(spec.name, vars(settings)[spec.name], kinds[spec.name])


def read_modalities(named: object) -> tuple[str, ...]:
    """The media that are named, in the order of the registry. Raises ValueError for an unknown one, and for none."""
    known = ", ".join(MEDIA)
    if isinstance(named, str) or not isinstance(named, Iterable):
        raise ValueError(f"modalities is {named!r}; list the media that are compressed, of {known}")
    names = list(named)
    if not names:
        raise ValueError(f"modalities is empty, so that nothing would be compressed; choose from {known}")
    for name in names:
        if name not in tuple(MEDIA):
            raise ValueError(f"{name!r} cannot be compressed; choose from {known}")
    return tuple(name for name in MEDIA if name in names)


def check_whole(name: str, value: int, least: int) -> None:
    """Raises ValueError for a number below `least`."""
    if value < least:
        raise ValueError(f"{name} is {value}; give a whole number of at least {least}")


def check_odd(name: str, value: int) -> None:
    """Raises ValueError for a number below 1, and for an even one."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{name} is {value}; give an odd number of at least 1")


def check_share(name: str, value: float) -> None:
    """Raises ValueError for a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a number between 0 and 1")


@dataclass
class Method(ABC):
    """Settings that all methods share, those for tokens and those for the cache.

    keep: share of a span's tokens that goes on, above 0 and at most 1. modalities: media that are compressed.
    positions: "kept", every token keeps its position and decoding continues at the original length; "compacted",
    positions are counted again without the dropped tokens, and decoding continues behind them.

    Raises ValueError for a share outside (0, 1], an unknown medium or none, an unknown rule for positions, and for a
    setting that is not of its kind.
    """

    keep: float = 0.5
    _: KW_ONLY
    modalities: tuple[str, ...] = field(default_factory=lambda: tuple(MEDIA))
    positions: Positions = "kept"

    #: what is shortened: the tokens of a span, or the entries that the cache keeps of them
    acts_on: ClassVar[Literal["tokens", "cache"]]
    #: where the method was published; empty for a baseline, and for a rule of our own
    paper: ClassVar[str] = ""
    #: whether it needs a module that was trained with the decoder; without one it refuses to open
    is_learned: ClassVar[bool] = False
    #: whether tokens or entries go; False for one that makes tokens cheaper and keeps all of them
    shortens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.modalities = read_modalities(self.modalities)
        check_kinds(self)
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; it is the share of tokens to keep, above 0 and at most 1")
        if self.positions not in ("kept", "compacted"):
            raise ValueError(f"positions {self.positions!r} is unknown; use kept or compacted")

    @property
    def acts_on_words(self) -> bool:
        """Whether words of a prompt are shortened too."""
        return False

    @abstractmethod
    def __call__(self, model: CompressionTarget, vocabulary: Vocabulary | None = None) -> CompressionSession:
        """A context in which `model` compresses what it reads.

        vocabulary: needed by a bare decoder, to find the spans. Raises ValueError for what is no decoder.
        """


@dataclass
class Compressor(Method):
    """A method that acts on the tokens, before the decoder or between its layers."""

    acts_on: ClassVar[Literal["tokens"]] = "tokens"
    #: whether the class overrides `count_kept` or `give_hints`, which are called with all spans of a row together
    judges_rows: ClassVar[bool] = False
    #: whether the plan needs the attention of the coming layer, `Span.measure_attention(…, span.layer)`
    previews: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        has_own = not vars(cls).keys().isdisjoint({"count_kept", "give_hints"})
        assert cls.judges_rows or not has_own, f"{cls.__name__} judges rows; set judges_rows = True, or it is not asked"

    def __call__(self, model: CompressionTarget, vocabulary: Vocabulary | None = None) -> CompressionSession:
        return CompressionSession(self, model, vocabulary)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        """The sites where the method acts: 0 is before the decoder, k before its layer k."""
        return (0,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers whose queries and keys the plan needs, for `Span.measure_attention`."""
        return ()

    def find_changing_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers whose change of the tokens the plan needs, for `Span.measure_transitions`."""
        return ()

    def check(self, num_layers: int) -> None:
        """Raises ValueError, in one line, for a model that lacks a layer which this method acts at or watches."""
        needed = (
            *self.find_sites(num_layers), *self.find_watched_layers(num_layers), *self.find_changing_layers(num_layers),
        )  # fmt: skip
        if not all(0 <= layer < num_layers for layer in needed):
            name = type(self).__name__
            raise ValueError(
                f"{name} acts before layer {max(needed)}, but this model has {num_layers}, numbered from 0"
            )

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """How many tokens of each span go on. The spans are those of one row at one site, each with B = 1."""
        return [count_share(self.keep, span.original) for span in spans]

    def give_hints(self, spans: Sequence[Span]) -> list[Tensor] | None:
        """Scores of each span's tokens, [1, N], that depend on all spans of a row; `plan` gets them as `span.hint`."""
        return None

    @abstractmethod
    def plan(self, hidden: Tensor, span: Span) -> Plan:
        """hidden [B, N, D] → a plan that keeps `span.count` < N tokens of each span."""
