"""A weighted mixture of document sets, and the batches made of it; both resume exactly from a few integers.

`Mixture` draws a set with probability ∝ its weight and takes that set's next document. The draw at step t is a hash of
(seed, t), so nothing random is stored: the state is the step and one cursor per set. With several ranks, rank r of R
gets draws r, r + R, r + 2R, … of the one common sequence.

`Batches` takes documents by the window, packs them into rows of one length (or pads rows of similar length), shuffles
the rows of the window and deals them out. A state saved in the middle of a window is the state at its beginning plus
how many batches were dealt: the window is drawn again on resume.

Legend: B rows, N tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

from unimodal.data.order import Cursor, mix64, shuffle_numbers
from unimodal.sequence.packing import PackedBatch, pack, pad, stack
from unimodal.sequence.templates.own import Rendered


class DocumentSet(Protocol):
    """A numbered set of rendered documents: `TokenShards`, or a plain list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Rendered: ...


class MixtureState(TypedDict):
    """How far a mixture is, and what it is a mixture of."""

    step: int
    seed: int
    num_ranks: int
    shares: dict[str, float]
    cursors: dict[str, dict[str, int]]


class BatchesState(TypedDict):
    """How far batches are: the mixture at the beginning of the window, and how many of its batches were dealt."""

    settings: list[int | str]
    mixture: MixtureState
    too_long: int
    dealt: int


class Mixture:
    """An endless sequence of documents from weighted sets. Weights need not sum to one; 0 leaves a set out.

    sizes: how many different documents a set has, if it holds several versions of each: those of document i stand at i,
    i + size, i + 2 · size, … Every pass takes one version of each document; the next pass takes the next version.
    """

    def __init__(
        self,
        sets: Mapping[str, DocumentSet],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        weights = dict.fromkeys(sets, 1.0) if weights is None else dict(weights)
        if not sets or set(weights) != set(sets):
            raise ValueError(f"weights are given for {sorted(weights)} but the sets are {sorted(sets)}")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} is {weight}; give a number ≥ 0")
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank is {rank}; give 0 to {num_ranks - 1}")
        self.names = sorted(name for name in sets if weights[name] > 0)
        if not self.names:
            raise ValueError("all weights are 0; give at least one set a weight")
        self.sets = {name: sets[name] for name in self.names}
        for name in self.names:
            if len(self.sets[name]) == 0:
                raise ValueError(f"the set {name} is empty; leave it out or give it weight 0")
        total = math.fsum(weights[name] for name in self.names)
        self.shares = {name: weights[name] / total for name in self.names}
        self._bounds = np.cumsum([self.shares[name] for name in self.names]).tolist()
        self.seed, self.rank, self.num_ranks = seed, rank, num_ranks
        self._key = mix64(seed * 0x9E3779B97F4A7C15 + 1)
        # a cursor's seed depends on the set's name, so that adding a set leaves the others' orders alone
        sizes = sizes or {name: len(documents) for name, documents in self.sets.items()}
        self.cursors = {name: Cursor(sizes[name], _derive_seed(seed, name)) for name in self.names}
        self.step = 0  # draws made, all ranks together

    def next(self) -> tuple[str, Rendered]:
        """(name of the set, its next document) for this rank."""
        name, index = self._draw()
        return name, self.sets[name][index]

    def skip(self, draws: int) -> None:
        """Goes on as after so many calls of `next`, and makes no document."""
        for _ in range(draws):
            self._draw()

    @property
    def next_draw(self) -> int:
        """The number of this rank's next draw, among the draws of all ranks."""
        return self.step + (self.rank - self.step) % self.num_ranks

    def count_epochs(self) -> dict[str, float]:
        """How many passes were made over each set so far, as a fraction."""
        return {name: cursor.epoch + cursor.position / cursor.num_documents for name, cursor in self.cursors.items()}

    def state_dict(self) -> MixtureState:
        return {
            "step": self.step,
            "seed": self.seed,
            "num_ranks": self.num_ranks,
            "shares": dict(self.shares),
            "cursors": {name: cursor.state_dict() for name, cursor in self.cursors.items()},
        }

    def load_state_dict(self, state: MixtureState) -> None:
        """Continues exactly where the saved mixture was. Raises ValueError for another seed, set, size or weight."""
        pairs = (
            ("seed", state["seed"], self.seed),
            ("num_ranks", state["num_ranks"], self.num_ranks),
            ("shares", state["shares"], self.shares),
        )
        for name, saved, here in pairs:
            if saved != here:
                raise ValueError(f"the saved mixture has {name} {saved} but this one has {here}")
        for name, cursor in self.cursors.items():
            cursor.load_state_dict(state["cursors"][name])
        self.step = int(state["step"])

    def _draw(self) -> tuple[str, int]:
        """(name of the set, number of its next document) for this rank."""
        while True:
            name = self._choose_set(self.step)
            cursor = self.cursors[name]
            index = (cursor.epoch * cursor.num_documents + cursor.next()) % len(self.sets[name])
            mine = self.step % self.num_ranks == self.rank
            self.step += 1
            if mine:
                return name, index

    def _choose_set(self, step: int) -> str:
        uniform = (mix64(self._key ^ mix64(step)) >> 11) / (1 << 53)
        for name, bound in zip(self.names, self._bounds, strict=True):
            if uniform < bound:
                return name
        return self.names[-1]  # the last bound may be rounded below 1


class Batches:
    """Batches of a mixture, with `state_dict` and `load_state_dict` as the training loop wants them.

    arrangement: "pack" puts several documents into each row of `length` tokens; "pad" puts one document into a row and
    rows of similar length into a batch, each as long as the batch's longest. Either way a batch has at most
    `tokens_per_batch` tokens, padding included. A document longer than `longest` (None: `length`) is left out and
    counted in `num_too_long`, unless `fit` is given, which turns each document into the pieces to learn from. limit:
    what messages call the limit behind `longest`. pass_draws: draws of all ranks in one pass over the data; a window
    ends there.

    Documents are drawn for `batches_per_window` batches at once and arranged among these. What is left over, and would
    stand in one more that is nearly empty, is drawn again for the next window.
    """

    def __init__(
        self,
        mixture: Mixture,
        length: int,
        tokens_per_batch: int,
        pad_id: int,
        arrangement: Literal["pack", "pad"] = "pack",
        batches_per_window: int = 16,
        longest: int | None = None,
        limit: str = "length",
        fit: Callable[[Rendered], Sequence[Rendered]] | None = None,
        pass_draws: int | None = None,
    ) -> None:
        if arrangement not in ("pack", "pad"):
            raise ValueError(f"arrangement is {arrangement!r}; use pack or pad")
        if length < 1 or tokens_per_batch < length:
            raise ValueError(f"tokens_per_batch is {tokens_per_batch}; it must hold one row of {length} tokens")
        if batches_per_window < 1:
            raise ValueError(f"batches_per_window is {batches_per_window}; give at least 1")
        self.mixture, self.length, self.tokens_per_batch, self.pad_id = mixture, length, tokens_per_batch, pad_id
        self.longest, self.limit = length if longest is None else min(length, longest), limit
        self.fit, self.pass_draws = fit or self._leave_out_long, pass_draws
        self.arrangement, self.batches_per_window = arrangement, batches_per_window
        self.window_tokens = tokens_per_batch * batches_per_window
        self.num_too_long = 0
        self._start: tuple[MixtureState, int] = (mixture.state_dict(), 0)  # at the beginning of the window
        self._window: list[PackedBatch] = []
        self._dealt = 0

    def next_batch(self) -> PackedBatch:
        """The next batch, arrays [B, N]."""
        if self._dealt == len(self._window):
            self._start, self._dealt = (self.mixture.state_dict(), self.num_too_long), 0
            self._window = self._draw_window()
        batch = self._window[self._dealt]
        self._dealt += 1
        return batch

    def state_dict(self) -> BatchesState:
        settings = self._list_settings()
        if self._dealt == len(self._window):  # between windows
            return {
                "settings": settings,
                "mixture": self.mixture.state_dict(),
                "too_long": self.num_too_long,
                "dealt": 0,
            }
        mixture, too_long = self._start
        return {"settings": settings, "mixture": mixture, "too_long": too_long, "dealt": self._dealt}

    def load_state_dict(self, state: BatchesState) -> None:
        settings = self._list_settings()
        if list(state["settings"]) != settings:
            raise ValueError(f"the saved batches have settings {list(state['settings'])} but these have {settings}")
        self.mixture.load_state_dict(state["mixture"])
        self.num_too_long = int(state["too_long"])
        self._start, self._window, self._dealt = (self.mixture.state_dict(), self.num_too_long), [], 0
        if state["dealt"]:
            self._window = self._draw_window()
            self._dealt = int(state["dealt"])

    def load_other_ranks(self, states: Sequence[BatchesState]) -> None:
        """Continues a run that had another number of ranks, from the states of all of them.

        It starts at the earliest of their windows: no document is left out, and some windows may come again.
        """
        first = min(states, key=lambda state: int(state["mixture"]["step"]))
        mixture: MixtureState = {**first["mixture"], "num_ranks": self.mixture.num_ranks}
        self.load_state_dict({**first, "mixture": mixture, "dealt": 0})

    def _list_settings(self) -> list[int | str]:
        sizes: list[int | str] = [self.length, self.tokens_per_batch, self.arrangement, self.window_tokens]
        settings = [*sizes, "full windows"]  # earlier runs had one batch more in each
        return settings if self.longest == self.length else [*settings, self.longest]

    def count_pass(self) -> int:
        """Counts the batches up to the end of the pass by drawing them; they are used up, so count before training."""
        assert self.pass_draws is not None and self._dealt == len(self._window)
        first, num = self.mixture.next_draw, 0
        while not self._is_end_of_pass(first):
            num += len(self._draw_window())
        return num

    def _is_end_of_pass(self, first: int) -> bool:
        """Whether this rank's next draw belongs to a later pass than draw `first`."""
        return self.pass_draws is not None and self.mixture.next_draw // self.pass_draws > first // self.pass_draws

    def _leave_out_long(self, document: Rendered) -> Sequence[Rendered]:
        return () if len(document) > self.longest else (document,)

    def _draw_window(self) -> list[PackedBatch]:
        start, first = self.mixture.state_dict(), self.mixture.next_draw
        draws: list[Sequence[Rendered]] = []  # the pieces of each
        tokens = num_pieces = 0
        while tokens < self.window_tokens and not (num_pieces and self._is_end_of_pass(first)):
            draws.append(self.fit(self.mixture.next()[1]))
            tokens += sum(map(len, draws[-1]))
            num_pieces += len(draws[-1])
            if len(draws) > 1000 and not num_pieces:
                raise ValueError(
                    f"1000 documents in a row have more than {self.longest} tokens ({self.limit}), so there is "
                    "nothing to learn from; give shorter ones, or more tokens a row"
                )
        key = mix64(self.mixture.seed ^ mix64(start["step"]))
        batches = self._arrange(draws, key)
        if len(batches) > self.batches_per_window and not self._is_end_of_pass(first):
            least = next(number for number, pieces in enumerate(draws, 1) if pieces)
            fits, too_many = least, len(draws)  # so many draws
            while too_many - fits > 1:
                middle = (fits + too_many) // 2
                if len(self._arrange(draws[:middle], key)) > self.batches_per_window:
                    too_many = middle
                else:
                    fits = middle
            draws = draws[:fits]
            batches = self._arrange(draws, key)
            self.mixture.load_state_dict(start)
            self.mixture.skip(fits)
        self.num_too_long += sum(not pieces for pieces in draws)
        return batches

    def _arrange(self, draws: Sequence[Sequence[Rendered]], key: int) -> list[PackedBatch]:
        """The batches of drawn documents, in an order that the key gives."""
        documents = [piece for pieces in draws for piece in pieces]
        if self.arrangement == "pack":
            rows = pack(documents, self.length, self.pad_id)
            rows = [rows[index] for index in shuffle_numbers(len(rows), key)]
            batch_rows = self.tokens_per_batch // self.length
            return [stack(rows[first : first + batch_rows]) for first in range(0, len(rows), batch_rows)]
        groups: list[list[Rendered]] = [[]]
        for document in sorted(documents, key=len):  # the last of a group is the longest
            if (len(groups[-1]) + 1) * len(document) > self.tokens_per_batch:
                groups.append([])
            groups[-1].append(document)
        return [pad(groups[index], self.pad_id) for index in shuffle_numbers(len(groups), key)]


def _derive_seed(seed: int, name: str) -> int:
    value = seed & ((1 << 64) - 1)
    for byte in name.encode("utf-8"):
        value = mix64(value * 0x100000001B3 ^ byte)
    return value >> 1  # fits a signed 64-bit integer, as checkpoints store them
