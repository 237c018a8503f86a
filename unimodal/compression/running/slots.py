"""The slots of a cache, with validity, position and size of every key, and the cache layer that keeps them.

After pruning, a key's slot no longer gives its position, rows hold different numbers of keys, and a key may stand for
several tokens. `SlotLayer` keeps this information, which a stock layer lacks, through batch selection, beam reordering
and cropping. It reports the length that was read and not the length that is kept, so that a caller who counts positions
by it continues at the original length.

Shapes: B rows, K key/value heads, L slots, W head width. A table of slots is [B, K, L], or [B, 1, L] while all heads
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from unimodal.compression.plan import KeptTokens
from unimodal.compression.running.packed import PackedStates
from unimodal.compression.running.spans import TurnState


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of one or several cache layers; its tables are never changed, so that layers can share one.

    evictable: which a cache method may drop. shift: how many positions new tokens of the row move back.
    plain: every slot is valid and of size 1, so that no mask is needed beyond the causal one. held: which of the valid
    slots each head holds; None: all of them.
    """

    valid: Tensor  # bool [B, L], slots that some head holds
    positions: Tensor  # int64 [B, K or 1, L], the first source position of each
    evictable: Tensor  # bool [B, K or 1, L]
    shift: Tensor  # int64 [B]
    log_size: Tensor | None = None  # [B, K or 1, L]
    plain: bool = True
    held: Tensor | None = None  # bool [B, K, L]
    _selected: list[tuple[Tensor, Slots]] = field(
        default_factory=list, init=False, repr=False
    )  # the last rows and their slots

    def __len__(self) -> int:
        return self.valid.shape[1]

    def find_held(self) -> Tensor:
        """The slots that each head holds, bool [B, K or 1, L]."""
        return self.valid[:, None] if self.held is None else self.held

    def find_recent(self, count: Tensor) -> Tensor:
        """The newest so many slots of what each head holds, bool [B, K or 1, L]; count int64 [B]."""
        held = self.find_held()
        behind = held.flip(-1).cumsum(-1).flip(-1)  # from this slot on
        return held & (behind <= count[:, None, None])

    @property
    def first_position(self) -> Tensor:
        """The first position of each row, int64 [B, 1, 1]: a caller may count them from the padding in front of it."""
        held = self.positions.masked_fill(~self.valid[:, None], torch.iinfo(torch.int64).max)
        return held.amin((1, 2), keepdim=True)

    def find_first(self, count: int) -> Tensor:
        """The slots at the first `count` positions of each row, bool [B, K or 1, L]."""
        return self.valid[:, None] & (self.positions < self.first_position + count)

    def make_bias(self, dtype: torch.dtype, num_heads: int = 1) -> Tensor:
        """The mask added to the logits of every query, [B, num_heads or 1, L]: log(size), or -inf for invalid slots.

        One line for all heads if they agree.
        """
        bias = torch.zeros((len(self.valid), 1, len(self)), dtype=dtype, device=self.valid.device)
        if self.log_size is not None:
            sizes = self.log_size.to(dtype)
            bias = bias + (sizes if sizes.shape[1] == 1 else sizes.repeat_interleave(num_heads // sizes.shape[1], 1))
        held = self.find_held()
        held = held if held.shape[1] == 1 else held.repeat_interleave(num_heads // held.shape[1], 1)
        return bias.masked_fill(~held, -torch.inf)

    def make_log_sizes(self) -> Tensor:
        """The sizes as logarithms, [B, K or 1, L]; zeros where every slot stands for one token."""
        if self.log_size is not None:
            return self.log_size
        return torch.zeros((len(self.valid), 1, len(self)), device=self.valid.device)

    def find_hidden(self, at: Tensor, window: int | None, num_heads: int = 1) -> Tensor:
        """Which slots queries at slots `at` int64 [B, Q] do not see, bool [B, num_heads or 1, Q, L]: later ones, and
        with a window those at positions that far back."""
        places = torch.arange(len(self), device=at.device)
        hidden = (places > at[..., None])[:, None]  # [B, 1, Q, L]
        if window is None or len(self) <= window and not self.has_gaps:
            return hidden
        own = self.positions.gather(2, at[:, None].expand(-1, self.positions.shape[1], -1))  # [B, K or 1, Q]
        far = own[..., None] - self.positions[:, :, None] >= window  # [B, K or 1, Q, L]
        return hidden | (far if far.shape[1] == 1 else far.repeat_interleave(num_heads // far.shape[1], 1))

    @property
    def has_gaps(self) -> bool:
        """Whether the positions of some row leave gaps, because tokens between were dropped."""
        return bool((self.positions.amax(-1) - self.positions.amin(-1) >= len(self)).any())

    def append(self, new: Slots, positions: Tensor) -> Slots:
        """These slots, followed by those of new tokens at `positions` int64 [B, N]."""
        sizes = None
        if self.log_size is not None or new.log_size is not None:
            sizes = _join(self.make_log_sizes(), new.make_log_sizes())
        held = None if self.held is None and new.held is None else _join(self.find_held(), new.find_held())
        return Slots(
            torch.cat([self.valid, new.valid], 1),
            _join(self.positions, positions[:, None]),
            _join(self.evictable, new.evictable),
            self.shift + new.shift,
            sizes,
            self.plain and new.plain,
            held,
        )

    def select_rows(self, rows: Tensor) -> Slots:
        """The slots of rows int64 [R]. The same rows again give the same object, so that layers keep sharing it."""
        if not self._selected or not _are_equal(self._selected[0][0], rows):
            self._selected[:] = [(rows, self._map(lambda table: table[rows], self.valid[rows], self.shift[rows]))]
        return self._selected[0][1]

    def cut(self, length: int) -> Slots:
        """The first `length` slots."""
        return self._map(lambda table: table[..., :length], self.valid[:, :length], self.shift)

    def take(self, index: Tensor, valid: Tensor) -> Slots:
        """The slots of index int64 [B, K, M], each head's own; valid bool [B, K, M]."""
        own = self._map(lambda table: table.expand(-1, index.shape[1], -1).gather(-1, index), valid.any(1), self.shift)
        differ = bool((valid != valid[:, :1]).any())
        return replace(own, held=valid if differ else None, plain=own.log_size is None and bool(valid.all()))

    def _map(self, change: Callable[[Tensor], Tensor], valid: Tensor, shift: Tensor) -> Slots:
        sizes = None if self.log_size is None else change(self.log_size)
        held = None if self.held is None else change(self.held)
        plain = sizes is None and held is None and (self.plain or bool(valid.all()))
        return Slots(valid, change(self.positions), change(self.evictable), shift, sizes, plain, held)


def _are_equal(old: Tensor, new: Tensor) -> bool:
    """Whether two selections of rows are equal; a mask never equals indices."""
    return old.dtype == new.dtype and torch.equal(old, new)


def _join(old: Tensor, new: Tensor) -> Tensor:
    """[B, K or 1, L] and [B, K or 1, N] → [B, K or 1, L + N]."""
    heads = max(old.shape[1], new.shape[1])
    return torch.cat([old.expand(-1, heads, -1), new.expand(-1, heads, -1)], -1)


@dataclass(eq=False)
class MethodState:
    """What one cache method remembers of one layer.

    score: [B, K, L], selected and gathered as the keys are. num_evictable: int64 [B], how many evictable tokens were
    read, dropped ones included: the budget is a share of it. num_steps: int64 [B], tokens of the answer, read one by
    one. kept: int64 [B], how many evictable tokens the method left at last: the next method's are a share of it.
    memory: other tensors [B, …], which are dropped when tokens are cropped or slots are dropped. summary: [B, …], what
    dropped entries live on in, which stays.
    """

    score: Tensor | None = None
    num_evictable: Tensor | None = None
    num_steps: Tensor | None = None
    kept: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    summary: Tensor | None = None

    def map_slots(self, change: Callable[[Tensor], Tensor]) -> MethodState:
        """With the score [B, K, L] of other slots, and without what may belong to those that are gone."""
        return replace(self, score=None if self.score is None else change(self.score), memory={})

    def select_rows(self, rows: Tensor) -> MethodState:
        def pick(held: Tensor | None) -> Tensor | None:
            return None if held is None else held[rows]

        return MethodState(
            pick(self.score),
            pick(self.num_evictable),
            pick(self.num_steps),
            pick(self.kept),
            {name: held[rows] for name, held in self.memory.items()},
            pick(self.summary),
        )


class SlotLayer(DynamicLayer):
    """A growing cache layer (keys and values [B, K, L, W]) with its slots and the memory of cache methods.

    seen: the number of tokens read, dropped ones included. packed: keys and values, if some are packed into few bits;
    `keys` and `values` are empty then, and `read` gives all. states: what each cache method remembers, in the order in
    which they act. turn: what is known of each row where the last call ended; the first layer of a cache keeps it.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.slots: Slots | None = None
        self.packed: PackedStates | None = None
        self.turn: TurnState | None = None
        self.states: list[MethodState] = []

    def get_state(self, number: int) -> MethodState:
        """What the cache method of that number remembers."""
        while len(self.states) <= number:
            self.states.append(MethodState())
        return self.states[number]

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise ValueError("this cache was filled under compression; go on inside the same context, or start a new cache")

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and values, [B, K, L, W] each."""
        return (self.keys, self.values) if self.packed is None else self.packed.unpack()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **settings: object
    ) -> tuple[Tensor, Tensor]:
        if self.packed is None:
            return super().update(key_states, value_states, *args, **settings)
        self.packed = self.packed.append(key_states, value_states)
        return self.packed.unpack()

    def pack(self, chosen: Tensor, bits: int, size: int) -> None:
        """Pack the entries of chosen bool [B, K, L], `size` numbers with one scale."""
        if self.packed is None:
            self.packed = PackedStates.begin(self.keys, self.values, bits, size)
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self.packed = self.packed.pack(chosen, size)

    def reset(self) -> None:
        self.packed = None
        super().reset()
        self.seen, self.slots, self.turn, self.states = 0, None, None, []

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens; `tokens_to_remove` is their negative number. Evicted ones do not come back."""
        self.keys, self.values = self.read()
        self.packed = None
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.slots is not None:
            self.seen -= abs(tokens_to_remove)
            self.slots = self.slots.cut(self.keys.shape[-2])
            length = len(self.slots)
            self.states = [state.map_slots(lambda score: score[..., :length]) for state in self.states]
            self.turn = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_rows(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.slots is None:
            return
        rows = torch.arange(len(self.slots.valid), device=self.slots.valid.device)
        super().batch_repeat_interleave(repeats)
        self._select_rows(rows.repeat_interleave(repeats))

    def _select_rows(self, rows: Tensor) -> None:
        if self.slots is not None:
            self.slots = self.slots.select_rows(rows)
        if self.packed is not None:
            self.packed = self.packed.select_rows(rows)
        self.states = [state.select_rows(rows) for state in self.states]
        self.turn = None if self.turn is None else self.turn.select_rows(rows)

    def evict(self, index: Tensor, slots: Slots, move: Callable[[Tensor], Tensor] | None = None) -> None:
        """Keep the slots of index int64 [B, K, M] of every head. move: rotates the kept keys [B, K, M, W]."""
        if self.packed is not None:
            assert move is None, "packed keys are not rotated again"
            self.packed = self.packed.take(index, slots.find_held().expand(-1, index.shape[1], -1))
        else:
            self.keys, self.values = gather_slots(self.keys, index), gather_slots(self.values, index)
            if move is not None:
                self.keys = move(self.keys)
        self.states = [state.map_slots(lambda score: score.gather(2, index)) for state in self.states]
        self.slots = slots


def count_kept(layers: Sequence[SlotLayer], valid: Tensor) -> list[KeptTokens]:
    """What the layers of a cache hold of each row of a prompt, valid bool [B, N]."""
    held = [layer.slots.find_held().sum(-1).float().mean(1) for layer in layers if layer.slots is not None]
    mean = torch.stack(held).mean(0).round().long() if held else valid.sum(1)
    return [KeptTokens(int(num), int(kept)) for num, kept in zip(valid.sum(1), mean, strict=True)]


def gather_slots(states: Tensor, index: Tensor) -> Tensor:
    """Of keys, values or queries [B, H, L, W], those at slots index int64 [B, H, M], each head's own: [B, H, M, W]."""
    return states.gather(2, index[..., None].expand(-1, -1, -1, states.shape[-1]))
