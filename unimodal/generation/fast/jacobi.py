"""Jacobi decoding with the noise of the plain loop (arXiv:2305.10427, here under sampling too).

Every place of the answer has its own Gumbel noise, a function of the row's seed. So the token that the plain loop would
write there is a function of the tokens before it, and the whole answer is a fixed point: guesses are read, each is
replaced by what its place would write behind the others, and those that agree with the plain loop are kept. The answer
is the plain loop's own, token by token, greedy or sampled.

Shapes: n guesses, W places, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from unimodal.generation.fast.speculation import Draft, FastDecoder, Row, Verdict


def select_guesses(row: Row, guesses: list[int], window: int) -> list[int]:
    """The guesses that may be read: within the window and the room, up to the first that would change what is
    allowed."""
    most = min(window, row.room) - 1
    taken: list[int] = []
    for guess in guesses[: max(0, most)]:
        if guess not in row.ordinary:
            break
        taken.append(guess)
    return taken


def chain_draft(row: Row, guesses: list[int]) -> Draft:
    """Waiting tokens, then guesses one behind the other; wanted are the last waiting token and every guess."""
    first = len(row.waiting) - 1
    return Draft([*row.waiting, *guesses], list(range(first, first + 1 + len(guesses))), list(range(1 + len(guesses))))


def count_agreed(guesses: list[int], right: list[int]) -> int:
    """With how many guesses, from the first on, the plain loop agrees."""
    num = 0
    while num < len(guesses) and guesses[num] == right[num]:
        num += 1
    return num


@dataclass
class Jacobi(FastDecoder):
    """window: places that are worked on at a time."""

    window: int = 16
    serves: str = "media"
    guesses: list[int] = field(default_factory=list, repr=False)

    name = "jacobi"
    lossless = True

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
        right = row.to_ids(row.draw(scores, draft.depths))  # [1 + n] what each place writes behind the guesses
        num = count_agreed(read, right)
        tokens = right[: num + 1]
        self.guesses = right[num + 1 :]
        missing = min(self.window, row.room - len(tokens)) - 1 - len(self.guesses)
        if missing > 0:  # new places start as what the last distribution draws with their own noise
            depths = range(len(right), len(right) + missing)
            self.guesses += row.to_ids(row.draw(scores[-1:].expand(missing, -1), depths))
        return Verdict(tokens, list(range(num_waiting + num)), tokens[-1:], num)
