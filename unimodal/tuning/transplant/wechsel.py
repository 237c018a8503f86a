"""WECHSEL (Minixhofer et al. 2022, arXiv:2112.06598): static vectors of words say which tokens are alike.

Vectors of words of both languages are brought into one space by a rotation that a dictionary fixes (Procrustes). The
vector of a token is the mean of those of the words that hold it, with and without a space before, weighted by how often
they occur. A new token is the mean of the 10 tokens of the base that are nearest by the cosine, weighted by the softmax
of the cosines over 0.1. No rows are copied but those of special tokens; a token that no word holds is drawn.

That is the authors' way for vectors without subwords. They take fastText's vectors, which --vectors reads; without them
vectors are learned from the parallel lines, and without a dictionary the words that these align are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.word_alignment import align_words
from unimodal.tuning.transplant.request import SparseMixture, TransplantRequest
from unimodal.tuning.transplant.word_vectors import WordVectors, learn_vectors, list_words

NEIGHBOURS, TEMPERATURE = 10, 0.1
CHUNK = 1024
_TINY = 1e-8
_LIKELY = 0.3  # of a word that the alignment takes for a translation


def mix_by_word_vectors(request: TransplantRequest) -> SparseMixture:
    """Raises ValueError without vectors or parallel lines, or without a dictionary that knows their words."""
    if request.vectors is not None:
        pair = request.vectors
    elif request.parallel is not None:
        pair = learn_vectors(request.parallel[0]), learn_vectors(request.parallel[1])
    else:
        raise ValueError(
            "method 'wechsel' needs vectors of words (--vectors A B) or text to learn them: --parallel A B"
        )
    source, target = _cut_dimensions(pair)
    rotation = find_rotation(source, target, find_dictionary(request))
    ours = locate_tokens(request.old, source) @ rotation  # [V, K]
    theirs = locate_tokens(request.new, target)  # [N, K]
    ours, theirs = (table / (table.norm(dim=1, keepdim=True) + _TINY) for table in (ours, theirs))
    known = theirs.abs().sum(1).nonzero().squeeze(1)
    count = min(NEIGHBOURS, len(ours))
    columns, weights = [], []
    for part in known.split(CHUNK):
        cosines = normalize(theirs[part], dim=1) @ normalize(ours, dim=1).T
        nearest = cosines.topk(count, dim=1)
        columns.append(nearest.indices)
        weights.append((nearest.values / TEMPERATURE).softmax(1))
    rows = known[:, None].expand(-1, count).flatten()
    nothing = torch.zeros(0, dtype=torch.int64)
    return SparseMixture(
        request.num_rows,
        rows,
        torch.cat(columns).flatten() if columns else nothing,
        torch.cat(weights).flatten() if weights else nothing.double(),
    )


def locate_tokens(tokenizer: OpenedTokenizer, known: WordVectors) -> Tensor:
    """The vector of each token, float64 [rows, K]: the mean of its words', by their counts; zero where none has it."""
    sums = torch.zeros(tokenizer.text.size, known.vectors.shape[1], dtype=torch.float64)
    totals = torch.zeros(len(sums), 1, dtype=torch.float64)
    spellings = [*known.words, *(f" {word}" for word in known.words)]
    pairs: list[tuple[int, int]] = []
    for at, ids in enumerate(tokenizer.text.encode_batch(spellings)):
        pairs += [(row, at % len(known.words)) for row in sorted(set(ids))]
    rows, words = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    counts = torch.tensor(known.counts, dtype=torch.float64)[words, None]
    sums.index_add_(0, rows, known.vectors.double()[words] * counts)
    totals.index_add_(0, rows, counts)
    return sums / totals.clamp_min(_TINY)


def find_rotation(source: WordVectors, target: WordVectors, dictionary: Sequence[tuple[str, str]]) -> Tensor:
    """The orthogonal matrix [K, K] that brings the first vectors nearest to those of their translations.

    Words are also looked up in lower case and with a capital, as by the authors. Raises ValueError where no pair is
    known on both sides.
    """
    left = {word: at for at, word in enumerate(source.words)}
    right = {word: at for at, word in enumerate(target.words)}
    pairs = [
        (left[ours], right[theirs])
        for first, second in dictionary
        for ours in (first, first.lower(), first.title())
        for theirs in (second, second.lower(), second.title())
        if ours in left and theirs in right
    ]
    if not pairs:
        raise ValueError("the dictionary has no pair of words that both sets of vectors know; give another")
    here, there = torch.tensor(pairs).T
    product = source.vectors[here].double().T @ target.vectors[there].double()
    rotated, _, back = torch.linalg.svd(product)
    return rotated @ back


def find_dictionary(request: TransplantRequest) -> Sequence[tuple[str, str]]:
    """The dictionary that is given, or the words that the parallel lines align. Raises ValueError without either."""
    if request.dictionary is not None:
        return request.dictionary
    if request.parallel is None:
        raise ValueError("method 'wechsel' needs a dictionary for these vectors (--dictionary) or --parallel A B")
    words: tuple[dict[str, int], dict[str, int]] = ({}, {})
    lines = []
    for pair in zip(*request.parallel, strict=True):
        numbered = [
            [seen.setdefault(word, len(seen)) for word in list_words(line)]
            for seen, line in zip(words, pair, strict=True)
        ]
        lines.append((numbered[0], numbered[1]))
    ours, theirs = (list(known) for known in words)
    found = align_words(lines)
    return [(ours[one.source], theirs[one.target]) for one in found if one.probability >= _LIKELY and one.count >= 2]


def _cut_dimensions(pair: tuple[WordVectors, WordVectors]) -> tuple[WordVectors, WordVectors]:
    """Both sets at the smaller number of dimensions."""
    width = min(known.vectors.shape[1] for known in pair)
    first, second = (WordVectors(known.words, known.counts, known.vectors[:, :width]) for known in pair)
    return first, second
