"""The context of a method: finds the decoder in its target, and installs and removes the executor."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from torch import nn

from unimodal.compression.plan import CompressionStats, KeptTokens
from unimodal.compression.running.contracts import CacheMethod, OpenMethod, TokenMethod
from unimodal.compression.running.executor import PlanExecutor
from unimodal.compression.running.reading import InputReader, VocabularyReader
from unimodal.compression.vision_language.reader import find_reader
from unimodal.model.feature_rows import FeatureRows
from unimodal.model.soft_prompt import PromptedEmbedding
from unimodal.vocabulary import Vocabulary


@runtime_checkable
class DecodingEngine(Protocol):
    """An `Engine`, which generates with a causal LM and its vocabulary."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def vocabulary(self) -> Vocabulary: ...


@runtime_checkable
class HasEngine(Protocol):
    """A loaded `Unimodal`, which has an engine."""

    @property
    def engine(self) -> DecodingEngine: ...


#: the target of a method: also a stock vision-language model; a bare causal LM of transformers needs its vocabulary too
CompressionTarget: TypeAlias = HasEngine | DecodingEngine | nn.Module


class CompressionSession:
    """`with method(model) as session: …`. Entering installs the executor, leaving removes it.

    Calls made in this thread or task are compressed, and no others (`scope.py`). stats: statistics since it was opened.
    Raises ValueError for a target without a decoder, and for a bare decoder without its vocabulary. Entering raises
    ValueError for a decoder that lacks what the method needs, and leaving for a context that is not open.
    """

    def __init__(
        self, method: TokenMethod | CacheMethod, target: CompressionTarget, vocabulary: Vocabulary | None = None
    ) -> None:
        found = find_reader(target) if vocabulary is None else None
        self.reader: InputReader
        if found is not None:
            self.backbone, self.reader = found.backbone, found
        else:
            self.backbone, own = find_decoder(target, vocabulary)
            _check_prompt(self.backbone)
            self.reader = VocabularyReader(own)
        self._open = OpenMethod(method, self.backbone, find_head(target))

    @property
    def method(self) -> TokenMethod | CacheMethod:
        return self._open.method

    @property
    def stats(self) -> CompressionStats:
        return self._open.stats

    @property
    def rows(self) -> list[KeptTokens]:
        """What was kept of each row of the last prompt that was read with a cache. All contexts that are open here say
        the same: they count what all of them left."""
        return list(self._open.rows)

    @property
    def kept(self) -> list[list[int]]:
        """The columns of kept tokens, for each span that was shortened in the last call with input spans.

        A span that was dropped whole at a later site counts with the tokens it had before.
        """
        return [places.tolist() for places in self._open.chosen.values()]

    def __enter__(self) -> CompressionSession:
        self._executor = PlanExecutor.open(self._open, self.reader)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._open.users:
            raise ValueError("this context of compression is not open; enter it by `with`, which leaves it once")
        self._executor.close(self._open)


def _check_prompt(backbone: nn.Module) -> None:
    table = backbone.get_input_embeddings()  # type: ignore[operator]  # of transformers
    while isinstance(table, FeatureRows):
        table = table.base
    if isinstance(table, PromptedEmbedding) and table.prompt.first_layer is not None:
        raise ValueError(
            "this model's soft prompt has states of its own in the layers, and compression moves the tokens that these "
            "belong to; use it without compression"
        )


def find_head(target: CompressionTarget) -> nn.Module | None:
    """The head of a model, or None for one without, whose embeddings are taken instead."""
    model: object = target
    if not isinstance(model, nn.Module) and isinstance(model, HasEngine):
        model = model.engine
    if not isinstance(model, nn.Module) and isinstance(model, DecodingEngine):
        model = model.model
    try:
        head = model.get_output_embeddings()  # type: ignore[attr-defined]  # of transformers
    except (AttributeError, NotImplementedError):
        return None
    return head if isinstance(head, nn.Module) else None


def find_decoder(target: CompressionTarget, vocabulary: Vocabulary | None) -> tuple[nn.Module, Vocabulary]:
    """The stack of layers under a model's head, and the vocabulary of its ids."""
    model: object = target
    if not isinstance(model, nn.Module) and isinstance(model, HasEngine):
        model = model.engine
    if not isinstance(model, nn.Module) and isinstance(model, DecodingEngine):
        vocabulary = model.vocabulary if vocabulary is None else vocabulary
        model = model.model
    try:
        decoder = model.get_decoder()  # type: ignore[attr-defined]  # of transformers; adapters around a model pass it on
    except AttributeError:
        raise ValueError(
            f"{type(target).__name__} is no decoder; give a loaded Unimodal, an Engine or a causal LM"
        ) from None
    if vocabulary is None:
        raise ValueError(
            "a bare decoder needs its vocabulary to find the spans: method(model, vocabulary); of a vision-language "
            "model give the whole"
        )
    return decoder, vocabulary
