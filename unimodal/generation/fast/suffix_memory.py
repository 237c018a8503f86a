"""How sequences that were written before go on behind their longest match (REST, arXiv:2311.08252).

Of the suffixes of what is written, ``longest`` tokens down to ``shortest``, the first that occurs anywhere in the
memory is looked up. What follows its occurrences, up to ``reach`` tokens each, is a trie; its nodes that most
occurrences share are the guesses. The authors find occurrences in a suffix array, which is made once; here an index of
runs of ``shortest`` tokens grows with every answer, and gives the same.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from unimodal.generation.fast.protocol import LATEST


@dataclass
class SuffixMemory:
    """A memory of sequences.

    matches: occurrences that are looked at, the newest first. most: tokens that are remembered; the oldest sequences
    are dropped first.
    """

    longest: int = 16
    shortest: int = 2
    reach: int = 10
    matches: int = 5000
    most: int = 1_000_000
    sequences: OrderedDict[int, list[int]] = field(default_factory=OrderedDict, repr=False)
    places: dict[tuple[int, ...], list[tuple[int, int]]] = field(default_factory=dict, repr=False)
    num_tokens: int = field(default=0, repr=False)
    num_begun: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest <= LATEST:
            raise ValueError(
                f"suffixes of {self.shortest} to {self.longest} tokens; both are between 1 and {LATEST}, in order"
            )

    def begin(self, ids: Sequence[int] = ()) -> int:
        """Begin a sequence, and return the number by which it is extended."""
        number = self.num_begun
        self.num_begun += 1
        self.sequences[number] = []
        self.extend(number, ids)
        return number

    def extend(self, number: int, ids: Sequence[int]) -> None:
        """Add tokens to a sequence; one that was dropped meanwhile is no longer remembered."""
        own = self.sequences.get(number)
        if own is None:
            return
        for token in ids:
            own.append(token)
            if len(own) >= self.shortest:
                self.places.setdefault(tuple(own[-self.shortest :]), []).append((number, len(own)))
        self.num_tokens += len(ids)
        while self.num_tokens > self.most and len(self.sequences) > 1:
            _, dropped = self.sequences.popitem(last=False)
            self.num_tokens -= len(dropped)
            for end in range(self.shortest, len(dropped) + 1):
                held = self.places[tuple(dropped[end - self.shortest : end])]
                held.pop(0)  # the oldest sequence's places come first
                if not held:
                    del self.places[tuple(dropped[end - self.shortest : end])]

    def find(self, latest: Sequence[int], allowed: range) -> list[list[int]]:
        """What followed the longest known suffix of ``latest``, each up to ``reach`` tokens that are all allowed."""
        suffix = list(latest[-self.longest :])
        if len(suffix) < self.shortest:
            return []
        best, found = 0, list[tuple[int, int]]()
        for number, end in reversed(self.places.get(tuple(suffix[-self.shortest :]), [])):
            own = self.sequences[number]
            if end == len(own):
                continue  # nothing followed, as at the end of the answer itself
            length = self.shortest
            while length < min(len(suffix), end) and own[end - length - 1] == suffix[-length - 1]:
                length += 1
            if length > best:
                best, found = length, []
            if length == best and len(found) < self.matches:
                found.append((number, end))
        followed = []
        for number, end in found:
            tokens = self.sequences[number][end : end + self.reach]
            bad = next((place for place, token in enumerate(tokens) if token not in allowed), len(tokens))
            followed.append(tokens[:bad])
        return followed

    def recall(self, latest: Sequence[int], allowed: range, num: int, depth: int) -> list[tuple[int, int]]:
        """The ``num`` commonest nodes (parent, token) of the trie of what followed, parents first, at most ``depth``
        deep; parent -1 is the root. Of equals, the shallower and then the newer one comes first.
        """
        counts = Counter(
            tuple(tokens[:end])
            for tokens in self.find(latest, allowed)
            for end in range(1, min(len(tokens), depth) + 1)
        )
        order = {path: place for place, path in enumerate(counts)}
        chosen = sorted(counts, key=lambda path: (-counts[path], len(path), order[path]))[: max(0, num)]
        numbers: dict[tuple[int, ...], int] = {(): -1}
        nodes: list[tuple[int, int]] = []
        for path in chosen:  # a path is at most as common as its beginning, which is shallower
            numbers[path] = len(nodes)
            nodes.append((numbers[path[:-1]], path[-1]))
        return nodes
