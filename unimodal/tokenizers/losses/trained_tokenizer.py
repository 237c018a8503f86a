"""A tokenizer and its losses as one module to train, and what of the tokenizer is trained.

`train: decoder` leaves every code as it is: all that ``encode`` reads stays frozen, and in eval mode, so that running
statistics and codebooks stay too. It is found by watching ``encode``: no family has to say it.

Shapes: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import Condition, LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.perturbation import Perturbation, check_perturbed
from unimodal.tokenizers.losses.reconstruction import measure_l2
from unimodal.tokenizers.systems.base import ReconstructingModule, Reconstruction, SystemModule

ALL, DECODER = "all", "decoder"
AnyTokenizer = MediaTokenizer | LatentTokenizer


@dataclass(frozen=True)
class StageParts:
    """What is trained and how from a step on. trained: names of the tokenizer's parameters; None for all that it wants
    trained. weights: of the losses, None for those of the settings."""

    first_step: int = 0
    trained: frozenset[str] | None = None
    weights: Mapping[str, float] | None = None


class _Watcher(TorchFunctionMode):
    """Collects every tensor of a module that any function of torch is called with, but for questions of its kind."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors, self.names = tensors, set[str]()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for value in () if func.__name__ in ("__get__", "is_floating_point") else _flatten((args, kwargs)):
            self.names |= {name for name, tensor in self.tensors.items() if tensor is value}
        return func(*args, **(kwargs or {}))


def _flatten(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flatten(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item)


def find_encoder_names(tokenizer: AnyTokenizer, x: Tensor, condition: Condition | None = None) -> set[str]:
    """The names of parameters and buffers that ``encode`` of x [B, C, …] reads."""
    tensors = {**dict(tokenizer.named_parameters()), **dict(tokenizer.named_buffers())}
    mode = tokenizer.training
    with _Watcher(tensors) as watcher:
        tokenizer.eval().encode(x, condition=condition)
    tokenizer.train(mode)
    return watcher.names


def find_sizes(tokenizer: AnyTokenizer, given: Sequence[int | tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Heights and widths to train at; the tokenizer's own where none is given. ValueError where none is known, and for
    less than a pixel."""
    if given:
        sizes = tuple((size, size) if isinstance(size, int) else size for size in given)
        if min(map(min, sizes)) < 1:
            raise ValueError(f"sizes are {list(given)}; give pixels, or [height, width], from 1 on")
        return sizes
    if tokenizer.picture_size is None:
        raise ValueError(f"{tokenizer.config.family} takes pictures of any size; say which: sizes=[128]")
    return (tokenizer.picture_size,)


def choose_trained(tokenizer: AnyTokenizer, train: str | Sequence[str], encoder: set[str]) -> frozenset[str]:
    """The names of the parameters that are trained: `all`, `decoder`, or those below the named submodules.

    encoder: what ``encode`` reads. Raises ValueError where nothing is left to train.
    """
    wanted = [name for name, parameter in tokenizer.named_parameters() if parameter.requires_grad]
    if train == DECODER:
        chosen = [name for name in wanted if name not in encoder]
    elif train == ALL:
        chosen = wanted
    else:
        parts = (train,) if isinstance(train, str) else tuple(train)
        chosen = [name for name in wanted if name.startswith(tuple(f"{part}." for part in parts)) or name in parts]
    if not chosen:
        there = ", ".join(name for name, _ in tokenizer.named_children())
        raise ValueError(f"train {train!r} leaves nothing to train; there are all, decoder, and the parts {there}")
    return frozenset(chosen)


class TrainedTokenizer(nn.Module):
    """What a trainer trains. bag: None for a family that has only a loss of its own. stages: in order of their first
    steps. seed: of what losses draw beside the tokenizer."""

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        bag: LossBag | None,
        stages: Sequence[StageParts] = (StageParts(),),
        conditions: ConditionMaker | None = None,
    ):
        """conditions: makes what the tokenizer reads beside the media; by default one is built. ValueError for a
        tokenizer whose loss of its own takes no condition, and for a perturbation or a copied decoder that it cannot
        have."""
        super().__init__()
        self.tokenizer, self.bag, self.stages = tokenizer, bag, list(stages)
        settings = None if bag is None else bag.settings.perturbation
        if settings is not None and isinstance(tokenizer, SystemModule):
            check_perturbed(tokenizer)
        self.perturbation = None if settings is None else Perturbation(settings)
        self.conditions = ConditionMaker(tokenizer) if conditions is None else conditions
        if bag is None and self.conditions.kinds:
            reads = ", ".join(sorted(self.conditions.kinds))
            family = tokenizer.config.family
            raise ValueError(f"{family} reads {reads} beside the medium, which its own training_loss does not take")
        if bag is not None and bag.begins_from_teacher and isinstance(tokenizer, SystemModule):
            assert bag.imitation is not None
            tokenizer.copy_decoder(bag.imitation.tokenizer)  # a run that goes on loads its own behind this
        trained = [stage.trained for stage in stages]
        for name, parameter in tokenizer.named_parameters():
            if all(names is not None and name not in names for names in trained):
                parameter.requires_grad_(False)
        self._stage: StageParts | None = None
        self._values: dict[str, Tensor] = {}

    def find_stage(self, step: int) -> StageParts:
        return max((stage for stage in self.stages if stage.first_step <= step), key=lambda stage: stage.first_step)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._stage = None  # what is frozen goes back to eval at the next step
        return self

    def take_losses(self, state: Mapping[str, Tensor], source: str) -> int:
        """Take what the losses learnt in another training, of the weights in its checkpoint: a spelling reader, judges,
        projections; how many. ValueError where nothing fits. source: where they lie, for the message."""
        own = {} if self.bag is None else dict(self.bag.named_parameters())
        fit = {
            name: state[f"bag.{name}"]
            for name, weight in own.items()
            if weight.requires_grad and f"bag.{name}" in state and state[f"bag.{name}"].shape == weight.shape
        }
        if not fit:
            raise ValueError(f"{source} holds no run whose losses have weights that fit here; leave losses_from out")
        with torch.no_grad():
            for name, weight in fit.items():
                own[name].copy_(weight)
        return len(fit)

    def forward(
        self, x: Tensor, lengths: Tensor | None, step: int, captions: tuple[str, ...] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """x: [B, C, …] → (loss, numbers to log); in eval mode the mean squared error where there is one.

        Raises ValueError for losses that train nothing of the stage.
        """
        if not self.training:
            return self.measure(x, lengths, captions)
        stage = self.find_stage(step)
        if stage is not self._stage:
            _freeze_modules(self.tokenizer, stage.trained)
            self._stage = stage
            self._values.clear()
        if self.perturbation is not None:
            self.perturbation.step = step
        with _keep_frozen(self.tokenizer, stage.trained), self._keep_values(stage.trained):
            if self.bag is None:
                loss, numbers = self.tokenizer.training_loss(x, lengths)
            else:
                made = self.reconstruct(x, lengths, captions)
                loss, numbers = self.bag(made, x, step, lengths, weights=stage.weights, captions=captions)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(f"at step {step} no loss reaches a weight that is trained; weigh another of losses, or "
                             "train more parts")  # fmt: skip
        return loss, numbers

    @contextmanager
    def _keep_values(self, trained: frozenset[str] | None) -> Iterator[None]:
        """What is not trained has its values back behind every forward pass: some quantizers move unused codes there,
        outside autograd and its versions. Each is copied before the first step."""
        if trained is None:
            yield
            return
        frozen = {name: p for name, p in self.tokenizer.named_parameters() if name not in trained}
        for name, parameter in frozen.items():
            if name not in self._values or self._values[name].device != parameter.device:
                self._values[name] = parameter.detach().clone()
        yield
        for name, parameter in frozen.items():
            parameter.data.copy_(self._values[name])  # no gradient of it is asked for

    def measure(
        self, x: Tensor, lengths: Tensor | None, captions: tuple[str, ...] | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The mean squared error of what is held out; all losses of a tokenizer that only encodes, and the family's own
        where it has no other."""
        if self.bag is None:
            return self.tokenizer.training_loss(x, lengths)
        made = self.reconstruct(x, lengths, captions)
        spelled = self.bag.measure_spelling(made, captions)
        if made.decoded is None:
            loss, numbers = self.bag(made, x, 0, lengths, captions=captions)
            return loss, numbers | spelled
        return measure_l2(made.decoded[:, :, : x.shape[2]].clamp(-1, 1), x, lengths), spelled

    def reconstruct(self, x: Tensor, lengths: Tensor | None, captions: tuple[str, ...] | None) -> Reconstruction:
        assert isinstance(self.tokenizer, ReconstructingModule)
        change = self.perturbation if self.training else None
        return self.tokenizer.reconstruct_codes(x, lengths, self.conditions.make(x, captions), change)


def _freeze_modules(tokenizer: nn.Module, trained: frozenset[str] | None) -> None:
    """Eval mode for modules of which nothing is trained, so that statistics and codebooks stay."""
    if trained is None:
        return
    for name, module in tokenizer.named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        state = list(module.buffers()) or own
        if name and state and not any(key in trained for key in own):
            module.eval()


@contextmanager
def _keep_frozen(tokenizer: nn.Module, trained: frozenset[str] | None) -> Iterator[None]:
    """No gradient within for what this stage does not train: the graph remembers what it was built with, and the
    optimizer leaves alone what has no gradient."""
    if trained is None:
        yield
        return
    frozen = [p for name, p in tokenizer.named_parameters() if p.requires_grad and name not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
