"""The context of a method: finds the decoder of what it is given, and hooks the executor in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unimodal.compression.method import Method
from unimodal.compression.running.executor import Executor
from unimodal.compression.running.spans import Located
from unimodal.vocabulary import Vocabulary


@dataclass
class CompressionStats:
    """Since the context was opened: tokens of input spans that came and that were left at the last layer; seconds that
    choosing them took (with the clock stopped at the end of the device's work)."""

    tokens_before: int = 0
    tokens_after: int = 0
    planning_s: float = 0.0


class Session:
    """`with method(model): …`. Entering hooks the executor in, leaving takes it out again."""

    def __init__(self, method: Method, target: Any, vocabulary: Vocabulary | None = None) -> None:
        self.method = method
        model = target
        for name in ("engine", "model"):  # a loaded Unimodal has an engine, an engine a model
            owner = getattr(model, name, None)
            if vocabulary is None:
                vocabulary = getattr(model, "vocabulary", None)
            if owner is not None and not isinstance(model, nn.Module):
                model = owner
        if not isinstance(model, nn.Module) or not hasattr(model, "get_decoder"):
            raise ValueError(f"{type(target).__name__} is no decoder; give a loaded Unimodal, an Engine or a causal LM")
        if vocabulary is None:
            raise ValueError("a bare decoder needs its vocabulary to find the spans: method(model, vocabulary)")
        self.backbone = model.get_decoder()
        self.vocabulary = vocabulary
        self.stats = CompressionStats()
        self.chosen: dict[Located, Tensor] = {}

    @property
    def kept(self) -> list[list[int]]:
        """Of the last call that had input spans: the columns in which tokens went on, for each span that was shortened
        (spans that went as a whole later on included)."""
        return [places.tolist() for places in self.chosen.values()]

    def __enter__(self) -> Session:
        executor = getattr(self.backbone.__dict__.get("forward"), "__self__", None)
        if not isinstance(executor, Executor):
            executor = Executor(self.backbone, self.vocabulary)
            self.backbone.__dict__["forward"] = executor.forward
        try:
            executor.add(self)
        except ValueError:
            self._leave(executor)
            raise
        self._executor = executor
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.sessions.remove(self)
        self._leave(self._executor)

    def _leave(self, executor: Executor) -> None:
        if not executor.sessions:
            del self.backbone.__dict__["forward"]
