"""An answer that is written in several rows: what a search, a transcript and speech have in common.

A `ComposedAnswer` consists of parts, one behind the other, each a composition (`generation/composition.py`).
`search.py` and `speech_reading.py` make such answers; `Unimodal` runs them at once, a server hands them to its worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unimodal.generation.composition import run_side_by_side
from unimodal.generation.request import Composition, OnToken, TokenEvent

#: begins the composition of one part of an answer; the composition returns its ids
Begin = Callable[[], Composition[list[int]]]


@dataclass(frozen=True)
class ComposedAnswer:
    """An answer of one modality, in parts.

    The first part is written alone, since somebody waits for it; the others ``at_once`` side by side. end: the token
    that ends a part; it is kept behind the last part only.
    """

    modality: str
    parts: Sequence[Begin]
    at_once: int = 1
    end: int | None = None

    def compose(self, on_token: OnToken | None = None, row: int = 0) -> Composition[list[int]]:
        """The ids of the answer, up to the token at which `on_token` returned True.

        on_token: told the tokens of a part when that part is whole. row: what events name.
        """
        answer: list[int] = []
        start = 0
        while start < len(self.parts):
            stop = start + (self.at_once if start else 1)
            written = yield from run_side_by_side([part() for part in self.parts[start:stop]])
            last = stop >= len(self.parts)
            for part in written[: -1 if last else None]:
                if part and part[-1] == self.end:
                    part.pop()
            ids = [token for part in written for token in part]
            for number, token in enumerate(ids):
                answer.append(token)
                event = TokenEvent(row, len(answer) - 1, token, self.modality, last and number == len(ids) - 1)
                if on_token is not None and on_token(event):
                    return answer
            start = stop
        return answer
