"""A forward that is watched or changed: attention weights, queries, keys and values of every layer, the stream between
layers, heads that are silenced, and tokens that others are kept from seeing.

The model runs with transformers' "eager" attention meanwhile, the only one that has weights. Attention calls are seen
through `compression/running/interception.py`. A few families (Falcon, Bloom) attend by code of their own: of these only
the weights that they return are known, no head can be silenced, and tokens are hidden by a mask from outside.

Shapes: B rows, N tokens, D width, L layers, H query heads, K key/value heads, W head width, V rows of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.compression.running.interception import INTERCEPTION, AttentionOutput, LayerAttention, hook_attention
from unimodal.files import describe_error
from unimodal.model.base import silence_transformers
from unimodal.model.comparison import find_tolerance, measure_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class AttentionCall:
    """What one layer attended with. weights: [B, H, N, N]; the others are None where they cannot be seen.

    outputs: what each head brought, [B, N, H, W]. values: [B, K, N, W]. seen: which keys a query may look at, bool
    [B, N, N]: those before it, of a window perhaps.
    """

    weights: Tensor
    seen: Tensor
    values: Tensor | None = None
    outputs: Tensor | None = None


@dataclass(frozen=True)
class ForwardChange:
    """What is changed in a forward. silenced: (layer, head) whose output becomes zero. hidden: bool [N, N], true where
    the query of a row does not see the key of a column, in every layer or in those of `layers`."""

    silenced: frozenset[tuple[int, int]] = frozenset()
    hidden: Tensor | None = None
    layers: frozenset[int] | None = None


@dataclass(eq=False)
class WatchedForward:
    """What was seen. states: the L + 1 streams [B, N, D]: what enters each layer, and what the head is given."""

    logits: Tensor  # [B, N, V]
    states: list[Tensor] = field(default_factory=list)
    calls: list[AttentionCall] = field(default_factory=list)

    @property
    def attention(self) -> Tensor:
        """All weights, float32 [L, B, H, N, N], zero before the diagonal; a head that a layer lacks is zero."""
        most = max(call.weights.shape[1] for call in self.calls)
        padded = [
            torch.nn.functional.pad(call.weights.float(), (0, 0, 0, 0, 0, most - call.weights.shape[1]))
            for call in self.calls
        ]
        return torch.stack(padded)

    @property
    def visible(self) -> Tensor:
        """Which keys each query sees, bool [L, B, N, N]."""
        return torch.stack([call.seen for call in self.calls])


class AttentionWatcher:
    """The hook of one forward: counts the layers as they attend."""

    def __init__(self, change: ForwardChange, keep: bool) -> None:
        self.change, self.keep = change, keep
        self.calls: list[AttentionCall] = []
        self.num_calls = 0

    def attend(self, attention: LayerAttention) -> AttentionOutput:
        layer, self.num_calls = self.num_calls, self.num_calls + 1
        mask = attention.mask
        hidden, layers = self.change.hidden, self.change.layers
        if hidden is not None and (layers is None or layer in layers):
            mask = _hide(attention, hidden)
        out, weights = attention.compute_with(attention.query, attention.key, attention.value, mask)
        for head in (head for at, head in self.change.silenced if at == layer):
            out = out.clone()
            out[:, :, head] = 0
        if self.keep and weights is not None:
            self.calls.append(AttentionCall(weights, _read_mask(mask, weights), attention.value, out))
        return out, weights


def _read_mask(mask: Tensor | None, weights: Tensor) -> Tensor:
    """Which keys are seen, bool [B, N, N], by a mask [B or 1, 1, N, N] that is added, or is true where they are."""
    causal = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        causal = causal & allowed[:, 0, :, : causal.shape[1]]
    return causal.expand(weights.shape[0], -1, -1)


def _hide(attention: LayerAttention, hidden: Tensor) -> Tensor:
    """The mask of a call, [B or 1, 1, N, N], with more of it hidden."""
    query, least = attention.query, torch.finfo(attention.query.dtype).min
    mask = attention.mask
    if mask is None:
        length = query.shape[2]
        mask = torch.triu(query.new_full((length, length), least), 1)[None, None]
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, least)
    return mask.masked_fill(hidden.to(mask.device), least)


@contextmanager
def use_eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model attends with weights that can be read. Raises ValueError if it has no such way."""
    before = model.config._attn_implementation
    try:
        _set_attention(model, "eager")
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
        message = f"{type(model).__name__} has no attention weights to look at ({describe_error(error)})"
        raise ValueError(message) from None
    INTERCEPTION.install()
    try:
        yield
    finally:
        INTERCEPTION.remove()
        _set_attention(model, before)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    with silence_transformers():
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:  # a family with code of its own asks its config at every call
        model.config._attn_implementation = name


def watch(
    model: PreTrainedModel,
    ids: Tensor,
    *,
    attention: bool = True,
    inputs: Tensor | None = None,
    change: ForwardChange | None = None,
) -> WatchedForward:
    """Runs ids int64 [B, N] and keeps what happens inside.

    attention: keep the weights, too. inputs: embeddings [B, N, D] in place of the ids. change: what to change on the
    way. Raises ValueError, in one line, for a model without attention weights, or whose attention cannot be changed.
    """
    change = change or ForwardChange()
    with use_eager_attention(model):
        watcher = AttentionWatcher(change, attention)
        given = {"input_ids": ids} if inputs is None else {"inputs_embeds": inputs}
        with hook_attention(watcher):
            output = model(**given, use_cache=False, output_hidden_states=True, output_attentions=attention)
            if change != ForwardChange() and not watcher.num_calls:
                _check_outside(model, given, change, output.logits)
                given["attention_mask"] = _make_mask(output.logits, change)
                output = model(**given, use_cache=False, output_hidden_states=True, output_attentions=attention)
    calls = watcher.calls
    if attention and not calls:
        given_back = [weights for weights in getattr(output, "attentions", None) or () if weights is not None]
        calls = [AttentionCall(weights, _read_mask(None, weights)) for weights in given_back]
        if not calls:
            raise ValueError(f"{type(model).__name__} has no attention weights to look at: it does not attend")
    if any(float(call.weights.detach().float().triu(1).abs().amax()) > 0 for call in calls):
        raise ValueError(f"{type(model).__name__} is no decoder: its tokens see those behind them")
    states = getattr(output, "hidden_states", None)
    if states is None:
        raise ValueError(f"{type(model).__name__} does not give the states between its layers")
    return WatchedForward(output.logits, list(states), calls)


def _make_mask(like: Tensor, change: ForwardChange) -> Tensor:
    """A causal mask to add, [B, 1, N, N], with what a change hides. like: [B, N, …]."""
    rows, length = like.shape[:2]
    least = torch.finfo(like.dtype).min
    mask = torch.triu(like.new_full((length, length), least), 1)
    if change.hidden is not None:
        mask = mask.masked_fill(change.hidden.to(mask.device), least)
    return mask.expand(rows, 1, -1, -1)


def _check_outside(model: PreTrainedModel, given: Mapping[str, Tensor], change: ForwardChange, logits: Tensor) -> None:
    """Raises ValueError unless a mask from outside is what the model attends by, and can make this change."""
    reason = f"the attention of {type(model).__name__} is its own code, in which"
    if change.silenced or change.layers is not None:
        raise ValueError(f"{reason} single heads and layers cannot be changed")
    try:
        again = model(**given, attention_mask=_make_mask(logits, ForwardChange()), use_cache=False).logits
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):
        again = None
    if again is None or measure_difference(again, logits) > find_tolerance(model):
        raise ValueError(f"{reason} no token can be hidden from another")


def read_last(model: PreTrainedModel, ids: Tensor, count: int) -> Tensor:
    """The logits of the last `count` tokens of ids int64 [B, N], float32 [B, count, V], and no others if it can."""
    spares = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    given = {"logits_to_keep": count} if spares else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **given).logits
    return logits[:, -count:].float()


def list_hidden(length: int, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """bool [length, length]: these queries do not see these keys, other than their own place."""
    hidden = torch.zeros(length, length, dtype=torch.bool)
    if len(queries) and len(keys):
        hidden[torch.tensor(list(queries))[:, None], torch.tensor(list(keys))[None]] = True
    hidden.fill_diagonal_(False)
    return hidden
