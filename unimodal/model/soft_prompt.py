"""Soft prompts: trained vectors that stand before every document, while the base stays as it is.

Prompt tuning (arXiv 2104.08691): P vectors of the width of the decoder's inputs are read as the first P tokens of every
document, and they alone are trained, or they beside LoRA and new rows. They are inputs, so they are not scaled as rows
of a table that scales what it looks up (Gemma's), which is also how peft has them.

A prompt has ids of its own, negative ones, which no vocabulary, feature or padding has. `PromptedEmbedding` in the
place of the embedding table looks them up. So packing, caches, sessions, batches and decoders read a prompt as they
read any token: training puts `prompt.ids` before each document (`sequence/cutting.py`), the engine before each prompt.
An id that stands for nothing is out of every table's range, and fails there.

A prompt may also say what further layers read in its places (`prefix.py`, `shared_space.py`). The table then notes
where it stands in a batch, and a hook before each layer puts its states there. `prompt_files.py` saves prompts.

Shapes: B rows, N tokens, P tokens of the prompt, D width, F layers that are given states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.blocks import find_decoder_blocks
from unimodal.model.feature_rows import FeatureRows
from unimodal.model.private_gradients import PrivateGradients

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

FIRST_ID = -(1 << 32)  # of the ids of a prompt; far from -1 and -100, which mean nothing and no label


class SoftPrompt(nn.Module):
    """The trained vectors [P, D] of a prompt, in float32."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().float().clone())
        self.private: PrivateGradients | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> range:
        """The ids that stand for the prompt."""
        return range(FIRST_ID, FIRST_ID + len(self))

    @property
    def first_layer(self) -> int | None:
        """The first layer behind the embedding that is given states of the prompt; None for a prompt of inputs."""
        return None

    def compute_vectors(self) -> Tensor:
        """What is read in the place of the ids, [P, D]."""
        return self.vectors

    def compute_states(self) -> Tensor:
        """What the layers from `first_layer` on read in the prompt's places, [F, P, D]."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PromptPlaces:
    """Where a prompt stands in a batch that is being read, and what layers from `first` on read there.

    prompted: bool [B, N]. numbers: int64 [B, N], which token of the prompt. states: [F, P, D].
    """

    prompted: Tensor
    numbers: Tensor
    states: Tensor
    first: int


class _LastRead(dict[bool, PromptPlaces | None]):
    """What was read last, with gradients (True) and without. A copied model has read nothing yet."""

    def __deepcopy__(self, memo: dict[int, object]) -> _LastRead:
        return _LastRead()


class PromptedEmbedding(nn.Module):
    """An embedding table, and before it the ids of a prompt: ids [B, N] → [B, N, D].

    last_read: where the prompt stands in the batch that the layers read next. It is kept apart for calls with
    gradients: a block that is computed again in the backward pass finds what it had, whatever was read in between.
    """

    def __init__(self, base: nn.Module, prompt: SoftPrompt) -> None:
        super().__init__()
        self.base, self.prompt = base, prompt
        self.last_read = _LastRead()
        self.handles: list[RemovableHandle] = []

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def num_embeddings(self) -> int:
        return int(self.base.num_embeddings)

    def forward(self, ids: Tensor) -> Tensor:
        prompted = ids < 0
        x = self.base(ids.masked_fill(prompted, 0))
        places = (ids - FIRST_ID).clamp(0, len(self.prompt) - 1)
        if self.prompt.first_layer is not None:
            self._note_places(prompted, places, self.prompt.first_layer)
        vectors = self.prompt.compute_vectors()[places]  # [B, N, D]
        if self.prompt.private is not None and vectors.requires_grad:
            self.prompt.private.watch(vectors, prompted, ids == FIRST_ID)
        return torch.where(prompted[..., None], vectors.to(x.dtype), x)

    def _note_places(self, prompted: Tensor, numbers: Tensor, first: int) -> None:
        found = None
        if bool(prompted.any()):
            found = PromptPlaces(prompted, numbers, self.prompt.compute_states(), first)
        self.last_read[torch.is_grad_enabled()] = found


class LayerStates:
    """A hook before layer `number`, which reads the prompt's states in its places. table: whose prompt is read.

    Raises ValueError for a batch whose tokens are not those that the table has read last.
    """

    def __init__(self, table: PromptedEmbedding, number: int, is_last: bool) -> None:
        self.table, self.number, self.is_last = table, number, is_last

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        graded = torch.is_grad_enabled()
        found = self.table.last_read.get(graded)
        if found is None:
            return None
        if self.is_last and not graded:
            self.table.last_read[False] = None
        if self.number < found.first:
            return None
        x = args[0] if args else kwargs["hidden_states"]
        if x.shape[:2] != found.prompted.shape:
            raise ValueError(
                "a prompt with states of its own in the layers is read where the ids of a batch are embedded at once "
                "and no token is left out before the last layer; take a prompt without prompt.prefix and prompt.space"
            )
        states = found.states[self.number - found.first].to(x.dtype)  # [P, D]
        x = torch.where(found.prompted[..., None], states[found.numbers], x)
        return ((x, *args[1:]), dict(kwargs)) if args else (args, {**kwargs, "hidden_states": x})


def find_prompted_table(model: PreTrainedModel) -> PromptedEmbedding | None:
    """The table that reads a model's soft prompt; None where it has none."""
    table = model.get_input_embeddings()
    while isinstance(table, FeatureRows):
        table = table.base
    return table if isinstance(table, PromptedEmbedding) else None


def find_soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """The soft prompt of a model; None where it has none."""
    table = find_prompted_table(model)
    return None if table is None else table.prompt


def has_layer_states(model: PreTrainedModel) -> bool:
    """Whether a model has a soft prompt that layers behind the embedding read too."""
    prompt = find_soft_prompt(model)
    return prompt is not None and prompt.first_layer is not None


@contextmanager
def use_prompt(model: PreTrainedModel, prompt: SoftPrompt) -> Iterator[None]:
    """Read another prompt in the place of the model's own while the context is open; for one thread at a time."""
    table = find_prompted_table(model)
    assert table is not None
    own, table.prompt = table.prompt, prompt
    handles = [] if own.first_layer is not None else _hook_layers(model, table)
    try:
        yield
    finally:
        table.prompt = own
        for handle in handles:
            handle.remove()


def _hook_layers(model: PreTrainedModel, table: PromptedEmbedding) -> list[RemovableHandle]:
    """The hooks that a prompt with states needs; none for a prompt of inputs. Raises ValueError for other layers."""
    prompt, handles = table.prompt, []
    if prompt.first_layer is None:
        return []
    blocks = find_decoder_blocks(model)
    num_states = len(prompt.compute_states())
    if prompt.first_layer + num_states != len(blocks):
        raise ValueError(
            f"the soft prompt has states for {prompt.first_layer + num_states} layers, but the base has {len(blocks)}"
        )
    for number, block in enumerate(blocks):
        hook = LayerStates(table, number, number == len(blocks) - 1)
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    return handles


def list_prompt_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that every document of this model begins with; none for a model without a soft prompt."""
    prompt = find_soft_prompt(model)
    return () if prompt is None else tuple(prompt.ids)


def attach_soft_prompt(model: PreTrainedModel, prompt: SoftPrompt) -> SoftPrompt:
    """Put a trainable prompt on a model, in place. Call it after the last change of the model's rows.

    Raises ValueError for a model that has one, for another width, and for a prompt that fills all positions.
    """
    table = model.get_input_embeddings()
    if find_soft_prompt(model) is not None:
        raise ValueError("this model already has a soft prompt")
    width, most = int(prompt.vectors.shape[1]), int(model.config.max_position_embeddings)
    if prompt.vectors.dim() != 2 or width != find_width(model):
        raise ValueError(f"the soft prompt has vectors of width {width}, but the base reads {find_width(model)}")
    if len(prompt) + 2 > most:
        raise ValueError(f"a soft prompt of {len(prompt)} tokens leaves no room in the base's {most} positions")
    made = PromptedEmbedding(table, prompt.to(_find_plain_table(model).weight.device))
    made.handles = _hook_layers(model, made)
    model.set_input_embeddings(made)
    return prompt


def detach_soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """Take the prompt off a model, in place, and return it; None where it has none."""
    table = model.get_input_embeddings()
    if not isinstance(table, PromptedEmbedding):
        return None
    for handle in table.handles:
        handle.remove()
    model.set_input_embeddings(table.base)
    return table.prompt


def find_width(model: PreTrainedModel) -> int:
    """The width D of what the decoder reads."""
    return int(_find_plain_table(model).weight.shape[1])


def _find_plain_table(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    while not isinstance(table, nn.Embedding):
        table = table.base
    return table


@torch.no_grad()
def draw_prompt(model: PreTrainedModel, length: int, words: Sequence[int] = (), seed: int = 0) -> SoftPrompt:
    """A prompt of `length` tokens that begins as what the model reads for these words, or for rows drawn at random.

    words: rows of the vocabulary, repeated or cut to the length, as peft does.
    """
    table = model.get_input_embeddings()
    if words:
        rows = [words[place % len(words)] for place in range(length)]
    else:
        num = _find_plain_table(model).num_embeddings
        rows = torch.randint(0, num, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return SoftPrompt(table(torch.tensor([rows], device=next(model.parameters()).device))[0])
