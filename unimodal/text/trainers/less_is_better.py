"""Less-is-Better: a lexicon of subwords, words and phrases, learned by reading as people are said to (Yang et al. 2020,
"Less is Better", and Yang 2024, "Rethinking Tokenization", arXiv:2403.00417).

The reader keeps a list of chunks by priority. It reads a line by its longest known chunks; now and then it joins two
neighbours to a new chunk, which comes last in the list. A chunk that was read is tried against the second longest: if
that reads to the same place in fewer chunks, or in as many of a better place in the list, the longer one moves back
and the shorter one forward; else the longer one moves forward. New chunks, and those at the very end of the list, are
on probation and are forgotten if they do not prove themselves in a number of readings. The order of the rules is that
of the authors' program (ray306/The-Less-is-Better-Model), whose defaults these are.

The rows are the bytes, all characters and then the chunks by priority. The authors read by trying two ways at a time;
the `tokenizer.json` finds what they try for by an exact search: the fewest chunks, and among these the least sum of
places in the list. It is stored as Unigram with scores that say so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from unimodal.text.pretokens import cut, make_chunk_pattern, make_splitter
from unimodal.text.tokenizer import TokenizerData
from unimodal.text.trainers.settings import NUM_BYTES, TrainingSettings, check_num_rows
from unimodal.text.trainers.subwords import SPELLING_LETTERS, make_unigram


@dataclass(frozen=True)
class ReadingSettings:
    """life: readings of a probation. join_share: how often neighbours are joined. doubted_share: of the list, put on
    probation at its end. step_share: of a chunk's place, how far it moves. num_lines: lines of one reading.
    num_readings: at most; fewer if the list no longer changes its length. max_length: characters of a chunk.
    """

    life: int = 10
    join_share: float = 0.25
    doubted_share: float = 0.0001
    step_share: float = 0.2
    num_lines: int = 200
    num_readings: int = 150
    max_length: int | None = None


@dataclass
class _Trial:
    """A chunk that was read, tried against the second longest one: `others` is what that reads, `end` how far."""

    end: int
    chunks: list[str]
    others: list[str]


@dataclass
class Lexicon:
    """Chunks by priority; the first is the best."""

    chunks: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _beginnings: Counter[str] = field(default_factory=Counter)  # text → how many chunks begin with it

    def __post_init__(self) -> None:
        chunks, self.chunks = self.chunks, []
        for chunk in chunks:
            self.append(chunk)

    def __contains__(self, chunk: str) -> bool:
        return chunk in self._places

    def append(self, chunk: str) -> None:
        self._places[chunk] = len(self.chunks)
        self.chunks.append(chunk)
        for end in range(1, len(chunk) + 1):
            self._beginnings[chunk[:end]] += 1

    def match_two(self, text: str, start: int, max_length: int | None = None) -> tuple[str, str]:
        """The second longest and the longest chunk that the text goes on with at `start`; "" where there is none."""
        second, longest = "", ""
        last = len(text) if max_length is None else min(start + max_length, len(text))
        for end in range(start + 1, last + 1):
            chunk = text[start:end]
            if chunk not in self._beginnings:
                break
            if chunk in self._places:
                second, longest = longest, chunk
        return second, longest

    def match(self, text: str, start: int = 0, max_length: int | None = None) -> str:
        return self.match_two(text, start, max_length)[1]

    def sum_places(self, chunks: Sequence[str]) -> int:
        return sum(self._places[chunk] for chunk in chunks if chunk in self._places)

    def move(self, moves: Sequence[tuple[str, int]], share: float) -> None:
        """Moves chunks by a share of their place and one more, back (1) or forward (-1), one after the other.

        A chunk that moves past the end is forgotten; the first one stays. Places count anew only when all have moved.
        """
        num_back = 0  # so many chunks at most have gone from before another one to behind it
        for chunk, way in moves:
            if chunk not in self._places:
                continue
            try:
                place = self.chunks.index(chunk, max(self._places[chunk] - num_back, 0))
            except ValueError:  # it has moved itself
                place = self.chunks.index(chunk)
            if place == 0:
                continue
            num_back += way == 1
            goal = place + way * (int(place * share) + 1)
            self.chunks.pop(place)
            if goal > len(self.chunks):
                self._drop(chunk)
            else:
                self.chunks.insert(max(goal, 0), chunk)
        self._places = {chunk: place for place, chunk in enumerate(self.chunks)}

    def forget(self, chunks: set[str]) -> None:
        gone = [chunk for chunk in chunks if chunk in self._places]
        for chunk in gone:
            self._drop(chunk)
        if gone:
            self.chunks = [chunk for chunk in self.chunks if chunk in self._places]
            self._places = {chunk: place for place, chunk in enumerate(self.chunks)}

    def _drop(self, chunk: str) -> None:
        del self._places[chunk]
        for end in range(1, len(chunk) + 1):
            self._beginnings[chunk[:end]] -= 1
            if not self._beginnings[chunk[:end]]:
                del self._beginnings[chunk[:end]]


class Reader:
    """Reads texts and learns a lexicon from them. texts: lines, or parts of lines."""

    def __init__(self, texts: Sequence[str], settings: ReadingSettings, seed: int = 0) -> None:
        self.texts = [text for text in texts if text]
        self.settings = settings
        self.lexicon = Lexicon(sorted({character for text in self.texts for character in text}))
        self._characters = frozenset(self.lexicon.chunks)
        self._probation = dict.fromkeys(self.lexicon.chunks, settings.life)
        self._random = random.Random(seed)

    def learn(self) -> list[str]:
        """Reads until nothing changes, and returns the chunks by priority; every character is one of them."""
        lengths: list[int] = []
        for _ in range(self.settings.num_readings):
            self.read()
            lengths.append(len(self.lexicon.chunks))
            if len(lengths) > 20 and len(set(lengths[-20:])) == 1:
                break
        return [*self.lexicon.chunks, *sorted(self._characters - set(self.lexicon.chunks))]

    def read(self) -> None:
        """One reading of some neighbouring lines, and what it changes in the list."""
        count = self.settings.num_lines
        start = self._random.randint(0, len(self.texts) - count) if len(self.texts) > count else 0
        moves: list[tuple[str, int]] = []
        for text in self.texts[start : start + count]:
            self._read_text(text, moves)
        forgotten = set()
        for chunk, life in list(self._probation.items()):
            if life <= 1:
                del self._probation[chunk]
                forgotten.add(chunk)
            else:
                self._probation[chunk] = life - 1
        self.lexicon.forget(forgotten)
        self.lexicon.move([(chunk, way) for chunk, way in moves if chunk not in forgotten], self.settings.step_share)
        size = len(self.lexicon.chunks)
        for chunk in self.lexicon.chunks[int((1 - self.settings.doubted_share) * size) :]:
            self._probation.setdefault(chunk, self.settings.life)

    def _read_text(self, text: str, moves: list[tuple[str, int]]) -> None:
        trials: dict[str, _Trial] = {}
        last, known, place = "", False, 0
        while place < len(text):
            self._judge(text, place, trials, moves)
            second, chunk = self.lexicon.match_two(text, place, self.settings.max_length)
            for trial in trials.values():
                trial.chunks.append(chunk)
            if not chunk:  # nothing known begins here
                last = text[place] if known else last + text[place]
                known, place = False, place + 1
                continue
            if self._random.random() < self.settings.join_share:
                self._memorize(last + chunk if known else last)
            if len(chunk) > 1 and second:
                trials[chunk] = _Trial(place + len(second), [chunk], [second])
            else:
                self._probation.pop(chunk, None)
            last, known, place = chunk, True, place + len(chunk)

    def _memorize(self, chunk: str) -> None:
        limit = self.settings.max_length
        if chunk and chunk not in self.lexicon and (limit is None or len(chunk) <= limit):
            self.lexicon.append(chunk)
            self._probation[chunk] = self.settings.life

    def _judge(self, text: str, place: int, trials: dict[str, _Trial], moves: list[tuple[str, int]]) -> None:
        """Ends the trials in which both ways have come to the same place."""
        for chunk, trial in list(trials.items()):
            while trial.end < place:
                following = self.lexicon.match(text, trial.end, self.settings.max_length)
                trial.others.append(following)
                trial.end += len(following) or 1
            if trial.end != place:
                continue
            del trials[chunk]
            if is_worse(trial.chunks, trial.others, self.lexicon):
                moves += [(chunk, 1), (self.lexicon.match(chunk[:-1]), -1)]
            else:
                moves.append((chunk, -1))
                self._probation.pop(chunk, None)


def is_worse(chunks: Sequence[str], others: Sequence[str], lexicon: Lexicon) -> bool:
    """Whether the other way to read a text takes fewer chunks, or as many of better places in the list."""
    if len(chunks) != len(others):
        return len(chunks) > len(others)
    return lexicon.sum_places(chunks) > lexicon.sum_places(others)


def train_less_is_better(lines: Sequence[str], settings: TrainingSettings) -> TokenizerData:
    """lines: the text, whole: chunks may cross spaces."""
    pattern = make_chunk_pattern(settings.digits)
    texts = [part for part in cut(pattern, lines) if part.strip("\r\n")]
    reading = ReadingSettings(max_length=settings.max_length)
    chunks = Reader(texts, reading, settings.seed).learn()
    chunks += sorted(SPELLING_LETTERS - set(chunks))
    num_characters = sum(len(chunk) == 1 for chunk in chunks)
    spent = 1 + (NUM_BYTES if settings.byte_fallback else 0)
    wide = [chunk for chunk in chunks if len(chunk) > 1][: max(settings.num_rows - spent - num_characters, 0)]
    known = set(wide)
    kept = [chunk for chunk in chunks if len(chunk) == 1 or chunk in known]
    check_num_rows(spent + len(kept), settings)
    if spent + len(kept) > settings.num_rows:
        raise ValueError(
            f"{spent + len(kept)} rows are taken by bytes and characters; give more than {settings.num_rows}"
        )
    tie = 1 / (1 + sum(range(len(kept))))  # all places together weigh less than one chunk
    scores = [(chunk, -1 - tie * place) for place, chunk in enumerate(kept)]
    return make_unigram(scores, settings.byte_fallback, make_splitter(pattern))
