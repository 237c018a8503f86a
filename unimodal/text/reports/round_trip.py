"""Whether text comes back, and how many encodings one text has.

A tokenizer writes each text in one way, but most texts could be written by other ids too, and a model may write those:
read again, its ids differ though the text is the same ("Say Anything but This: When Tokenizer Betrays Reasoning in
LLMs"). Counted here: places where a text encoded in two parts gets other ids than in one, as where a prompt ends; how
many ways there are to write a word; rows that spell the same bytes; and, of ids that a model wrote, how many the
tokenizer would write otherwise.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unimodal.files import quote_path
from unimodal.text.corpora import read_text
from unimodal.text.reports.opened import OpenedTokenizer

MOST_CUTS = 5000  # of a corpus, from its beginning: each is two encodings
MOST_WORDS = 2000


def measure_round_trip(tokenizer: OpenedTokenizer, lines: Sequence[str]) -> dict[str, float | int | str]:
    lost = [line for line in lines if tokenizer.decode(tokenizer.encode(line)) != line]
    found: dict[str, float | int | str] = {"lines that come back": 1 - len(lost) / len(lines)}
    if lost:
        found["first line that is lost"] = lost[0][:80]
    shares = measure_cuts(tokenizer, lines)
    found |= {f"cuts {where} that change ids": share for where, share in shares.items()}
    words = list(dict.fromkeys(word for line in lines for word in line.split()))[:MOST_WORDS]
    spellings = Counter(tokenizer.spelled.values())
    ways = [count_encodings(spellings, f" {word}".encode()) for word in words]
    writable = [count for count in ways if count]
    if writable:
        found["encodings of a word, in bits"] = sum(math.log2(count) for count in writable) / len(writable)
    found["rows that spell what another does"] = sum(count for count in spellings.values() if count > 1)
    return found


def measure_cuts(tokenizer: OpenedTokenizer, lines: Iterable[str]) -> dict[str, float]:
    """The share of cuts, by where they are, whose two halves are encoded otherwise than the whole."""
    changed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in lines:
        whole = tokenizer.encode(line)
        for place in range(1, len(line)):
            if sum(total.values()) >= MOST_CUTS:
                break
            behind, before = line[place - 1].isspace(), line[place].isspace()
            where = "behind spaces" if behind else "before spaces" if before else "inside words"
            total[where] += 1
            changed[where] += tokenizer.encode(line[:place]) + tokenizer.encode(line[place:]) != whole
    return {where: changed[where] / count for where, count in total.items()}


def count_encodings(spellings: Mapping[bytes, int], text: bytes) -> int:
    """How many sequences of rows spell these bytes. spellings: bytes → the number of rows that stand for them."""
    longest = max(map(len, spellings))
    ways = [1] + [0] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - longest), end):
            if ways[start] and (same := spellings.get(text[start:end])):
                ways[end] += ways[start] * same
    return ways[-1]


def read_ids(path: str | Path) -> list[list[int]]:
    """Sequences of ids, one JSON list a line. Raises ValueError, naming the line, for anything else."""
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            ids = json.loads(line)
        except ValueError:
            ids = None
        if not isinstance(ids, list) or not all(type(row) is int for row in ids):
            raise ValueError(f"{quote_path(path)}, line {number} is no JSON list of ids")
        found.append(ids)
    if not found:
        raise ValueError(f"{quote_path(path)} holds no ids")
    return found


def measure_outputs(tokenizer: OpenedTokenizer, sequences: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """Of ids that a model wrote: how many sequences, decoded and encoded again, are others."""
    others = sum(tokenizer.encode(tokenizer.decode(ids)) != list(ids) for ids in sequences)
    return {"sequences": len(sequences), "written otherwise again": others / len(sequences)}
