"""Caches of two runs under the same methods as one: further rows join, and room that no row needs any more goes.

Rows hold different numbers of slots, so the shorter ones are padded on the left, as the executor pads them.

Shapes: B rows, K key/value heads, L slots, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.running.slots import MethodState, SlotLayer, Slots
from unimodal.compression.running.spans import TurnState


def can_join(layers: Sequence[SlotLayer]) -> bool:
    """Whether further rows may join a cache: not where entries are packed, nor where a method remembers more of it than
    the scores of its slots."""
    return all(layer.packed is None and not any(state.memory for state in layer.states) for layer in layers)


def join_rows(layers: Sequence[SlotLayer], others: Sequence[SlotLayer]) -> None:
    """Append the rows of the other cache to each layer. Layers that shared slots share them still."""
    joined: dict[tuple[Slots, Slots], Slots] = {}
    for layer, other in zip(layers, others, strict=True):
        own, new = layer.slots, other.slots
        assert own is not None and new is not None
        length = max(len(own), len(new))
        if (own, new) not in joined:
            joined[own, new] = _join_slots(_pad_slots(own, length - len(own)), _pad_slots(new, length - len(new)))
        layer.slots = joined[own, new]
        layer.keys = torch.cat([_pad(layer.keys, length, -2), _pad(other.keys, length, -2)])
        layer.values = torch.cat([_pad(layer.values, length, -2), _pad(other.values, length, -2)])
        numbers = range(max(len(layer.states), len(other.states)))
        states = [(layer.get_state(number), other.get_state(number)) for number in numbers]
        layer.states = [_join_states(*pair, (len(own.valid), len(new.valid)), length) for pair in states]
        layer.turn = None if layer.turn is None or other.turn is None else _join_turns(layer.turn, other.turn)
        layer.seen = max(layer.seen, other.seen)


def trim_padding(layers: Sequence[SlotLayer]) -> None:
    """Take the slots away that are padding in every row, unless a method remembers something of them."""
    if not can_join(layers):
        return
    trimmed: dict[Slots, tuple[Slots, int]] = {}
    for layer in layers:
        slots = layer.slots
        assert slots is not None
        if slots not in trimmed:
            spare = int((~slots.valid).long().cumprod(1).sum(1).min()) if len(slots.valid) else 0
            trimmed[slots] = (slots if not spare else _cut_left(slots, spare), spare)
        layer.slots, spare = trimmed[slots]
        if spare:
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
            layer.states = [_trim_state(state, spare) for state in layer.states]


def _pad(held: Tensor, length: int, dim: int) -> Tensor:
    """Zeros before the slots, which lie at the last dimension or at the one before it."""
    num = length - held.shape[dim]
    return F.pad(held, (num, 0) if dim == -1 else (0, 0, num, 0)) if num else held


def _pad_slots(slots: Slots, num: int) -> Slots:
    """`num` invalid slots before these, at the positions of their first ones."""
    if not num:
        return slots
    first = slots.positions[..., :1].expand(-1, -1, num)
    return replace(
        slots,
        valid=F.pad(slots.valid, (num, 0), value=False),
        positions=torch.cat([first, slots.positions], -1),
        evictable=F.pad(slots.evictable, (num, 0), value=False),
        log_size=None if slots.log_size is None else F.pad(slots.log_size, (num, 0)),
        held=None if slots.held is None else F.pad(slots.held, (num, 0), value=False),
        plain=False,
    )


def _join_slots(own: Slots, new: Slots) -> Slots:
    sizes = None
    if own.log_size is not None or new.log_size is not None:
        sizes = _stack_heads(*(slots.make_log_sizes() for slots in (own, new)))
    return Slots(
        torch.cat([own.valid, new.valid]),
        _stack_heads(own.positions, new.positions),
        _stack_heads(own.evictable, new.evictable),
        torch.cat([own.shift, new.shift]),
        sizes,
        own.plain and new.plain,
        None if own.held is None and new.held is None else _stack_heads(own.find_held(), new.find_held()),
    )


def _cut_left(slots: Slots, num: int) -> Slots:
    sizes = None if slots.log_size is None else slots.log_size[..., num:]
    held = None if slots.held is None else slots.held[..., num:]
    valid = slots.valid[:, num:]
    plain = slots.plain or (sizes is None and held is None and bool(valid.all()))
    return Slots(valid, slots.positions[..., num:], slots.evictable[..., num:], slots.shift, sizes, plain, held)


def _stack_heads(own: Tensor, new: Tensor) -> Tensor:
    """Tables [B, K or 1, L] of rows of both, for as many heads as the larger one."""
    heads = max(own.shape[1], new.shape[1])
    return torch.cat([own.expand(-1, heads, -1), new.expand(-1, heads, -1)])


def _join_states(own: MethodState, new: MethodState, num_rows: tuple[int, int], length: int) -> MethodState:
    """What a method remembers of the rows of both caches, whose layers have `length` slots now."""

    def join(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
        known = mine if mine is not None else theirs
        if known is None:
            return None
        return torch.cat(
            [
                known.new_zeros(num, *known.shape[1:]) if x is None else x
                for x, num in zip((mine, theirs), num_rows, strict=True)
            ]
        )

    score = None
    if own.score is not None and new.score is not None:
        score = torch.cat([_pad(own.score, length, -1), _pad(new.score, length, -1)])
    evictable, steps = join(own.num_evictable, new.num_evictable), join(own.num_steps, new.num_steps)
    kept, summary = join(own.kept, new.kept), join(own.summary, new.summary)
    return MethodState(score, evictable, steps, kept, summary=summary)


def _trim_state(state: MethodState, num: int) -> MethodState:
    """Without the first `num` slots."""
    return replace(state, score=None if state.score is None else state.score[..., num:])


def _join_turns(own: TurnState, new: TurnState) -> TurnState:
    return TurnState(torch.cat([own.reads, new.reads]), torch.cat([own.is_open, new.is_open]))
