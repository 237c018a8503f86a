"""Jacobi decoding with the noise of the plain loop (arXiv:2305.10427, here under sampling too).

Every place of the answer has its own Gumbel noise, a function of the row's seed. So the token that the plain loop
writes there is a function of the tokens before it, and the whole answer is a fixed point. In each pass guesses are read
and replaced by the tokens that their places draw behind the guesses before them; the first guesses that do not change
are kept. The answer equals the plain loop's, token by token, greedy or sampled.

Shapes: n guesses, W places, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict


def check_window(name: str, window: int) -> None:
    """Raises ValueError for a window without a place."""
    if window < 1:
        raise ValueError(f"{name}'s window is {window}; give at least 1")


def select_guesses(row: Row, guesses: list[int], window: int) -> list[int]:
    """The guesses to read: those within the window and the room, up to the first that changes what is allowed."""
    most = min(window, row.room) - 1
    taken: list[int] = []
    for guess in guesses[: max(0, most)]:
        if guess not in row.ordinary:
            break
        taken.append(guess)
    return taken


def chain_draft(row: Row, guesses: list[int]) -> Draft:
    """A draft of the waiting tokens and the guesses; wants logits at the last waiting token and each guess."""
    first = len(row.waiting) - 1
    return Draft([*row.waiting, *guesses], list(range(first, first + 1 + len(guesses))), list(range(1 + len(guesses))))


def count_agreed(guesses: list[int], right: list[int]) -> int:
    """How many guesses, from the first on, are the tokens of the plain loop."""
    num = 0
    while num < len(guesses) and guesses[num] == right[num]:
        num += 1
    return num


@dataclass
class Jacobi(FastDecoder):
    """Jacobi decoding. window: places that are guessed at a time."""

    window: int = 16
    serves: str = "media"
    guesses: list[int] = field(default_factory=list, repr=False)

    name = "jacobi"
    lossless = True

    def __post_init__(self) -> None:
        check_window(self.name, self.window)

    @property
    def max_draft(self) -> int:
        return self.window + 4

    def begin(self, row: Row) -> None:
        self.guesses = []

    def propose(self, row: Row) -> Draft:
        return chain_draft(row, select_guesses(row, self.guesses, self.window))

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        num_waiting, read = len(row.waiting), draft.ids[len(row.waiting) :]
        scores = row.scale(logits)
        right = row.to_ids(row.draw(scores, draft.depths))  # [1 + n], the token that each place draws
        num = count_agreed(read, right)
        tokens = right[: num + 1]
        self.guesses = right[num + 1 :]
        missing = min(self.window, row.room - len(tokens)) - 1 - len(self.guesses)
        if missing > 0:  # new places draw from the last distribution, with their own noise
            depths = range(len(right), len(right) + missing)
            self.guesses += row.to_ids(row.draw(scores[-1:].expand(missing, -1), depths))
        return Verdict(tokens, list(range(num_waiting + num)), tokens[-1:], num)
