"""Words as vectors: read from a file, or learned from text by the words around them.

A file is one of fastText or word2vec in text: a line with the number of words and of dimensions, then a word and its
numbers a line, the most frequent word first. Learned vectors are the singular vectors of the words' positive pointwise
mutual information, which is what word2vec factors too (Levy and Goldberg 2014), with the root of the singular values.

Legend: W words, K dimensions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unimodal.files import quote_path
from unimodal.text.corpora import read_text

WINDOW = 5  # words on either side, as fastText and word2vec have it
DIMENSIONS = 100  # WECHSEL's own trainings
FEWEST = 2
MOST_WORDS = 50_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words, how often each occurs, and their vectors [W, K]."""

    words: Sequence[str]
    counts: Sequence[float]
    vectors: Tensor


def list_words(line: str) -> list[str]:
    """The words of a line: letters, digits and underscores together."""
    return _WORD.findall(line)


def read_vectors(path: str | Path) -> WordVectors:
    """Read a text file of vectors. Files say no counts: the first of W words counts W times, as in gensim.

    Raises ValueError, in one line, for a file of another form.
    """
    lines = read_text(path).splitlines()
    head = lines[0].split() if lines else []
    if len(head) == 2 and all(part.isdigit() for part in head):
        lines = lines[1:]
    words, rows = [], []
    for number, line in enumerate(lines[:MOST_WORDS], start=1):
        word, *numbers = line.rstrip().split(" ")
        try:
            rows.append([float(part) for part in numbers])
        except ValueError:
            raise ValueError(f"{quote_path(path)}: the vector of word {number} holds no numbers") from None
        if not numbers or len(numbers) != len(rows[0]):
            raise ValueError(f"{quote_path(path)}: word {number} has {len(numbers)} numbers, others {len(rows[0])}")
        words.append(word)
    if not words:
        raise ValueError(f"{quote_path(path)} holds no vectors of words")
    return WordVectors(words, [float(len(words) - at) for at in range(len(words))], torch.tensor(rows))


def learn_vectors(lines: Sequence[str], seed: int = 0, dimensions: int = DIMENSIONS) -> WordVectors:
    """Learn vectors of the words that occur twice or more. Raises ValueError for text with hardly any such words."""
    split = [list_words(line) for line in lines]
    counted = Counter(word for words in split for word in words)
    kept = [(word, count) for word, count in counted.most_common(MOST_WORDS) if count >= FEWEST]
    if len(kept) < 2:
        raise ValueError("the text has hardly any word twice, so no vectors of words can be learned; give more text")
    number = {word: at for at, (word, _) in enumerate(kept)}
    pairs: Counter[tuple[int, int]] = Counter()
    for words in split:
        known = [number.get(word, -1) for word in words]
        for at, left in enumerate(known):
            for right in known[at + 1 : at + 1 + WINDOW]:
                if left >= 0 and right >= 0:
                    pairs[left, right] += 1
                    pairs[right, left] += 1
    table = _weigh_pairs(pairs, len(kept))
    rank = min(dimensions, len(kept) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(table, q=min(rank + 10, len(kept)), niter=4)
    vectors = left[:, :rank] * values[:rank].clamp_min(0).sqrt()
    return WordVectors([word for word, _ in kept], [float(count) for _, count in kept], vectors.float())


def _weigh_pairs(pairs: Counter[tuple[int, int]], num_words: int) -> Tensor:
    """The positive pointwise mutual information of the pairs, sparse [W, W]."""
    index = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2).T  # [2, P]
    counts = torch.tensor(list(pairs.values()), dtype=torch.float64)
    sums = torch.zeros(num_words, dtype=torch.float64).index_add_(0, index[0], counts)
    shared = (counts * counts.sum() / (sums[index[0]] * sums[index[1]])).log()
    positive = shared > 0
    size = (num_words, num_words)
    return torch.sparse_coo_tensor(index[:, positive], shared[positive], size, check_invariants=True).coalesce()
