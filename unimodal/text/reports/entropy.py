"""How evenly and how predictably a tokenizer uses its rows.

Rényi efficiency (Zouhar et al. 2023, "Tokenization and the Noiseless Channel", arXiv:2306.16842) is the Rényi entropy
of order 2.5 of a text's tokens over the most it could be: the logarithm of the number of rows that occur, as the
authors' program counts them, or of all rows. Conditional entropies say how surprising a token is behind the one or two
before it: "An Information-Theoretic Perspective on LLM Tokenizers" finds that tokenizers trained on more text have
tokens more diverse together and more predictable in their place. All are plain frequencies of the text at hand, which a
short text makes look too predictable; compare only on one text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

ORDER = 2.5


def compute_shannon(counts: Sequence[int]) -> float:
    """The Shannon entropy of frequencies, in bits."""
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts if count)


def compute_renyi(counts: Sequence[int], order: float = ORDER) -> float:
    """The Rényi entropy of frequencies, in bits; of order 1 it is Shannon's."""
    if order == 1:
        return compute_shannon(counts)
    total = sum(counts)
    return math.log2(sum((count / total) ** order for count in counts if count)) / (1 - order)


def compute_conditional(sequences: Sequence[Sequence[int]], order: int) -> float:
    """H(token | the `order` tokens before it), in bits, over all places with so many before them in their sequence."""
    longer: Counter[tuple[int, ...]] = Counter()
    for ids in sequences:
        longer.update(tuple(ids[end - order : end + 1]) for end in range(order, len(ids)))
    shorter: Counter[tuple[int, ...]] = Counter()
    for key, count in longer.items():
        shorter[key[:-1]] += count
    return compute_shannon(list(longer.values())) - compute_shannon(list(shorter.values())) if longer else 0.0


def measure_entropies(sequences: Sequence[Sequence[int]], num_rows: int) -> dict[str, float]:
    """Entropies in bits a token, and efficiencies between 0 and 1, of texts as ids."""
    counts = list(Counter(chain.from_iterable(sequences)).values())
    most, of_all = math.log2(max(len(counts), 2)), math.log2(max(num_rows, 2))
    renyi, shannon = compute_renyi(counts), compute_shannon(counts)
    return {
        "entropy": shannon,
        "entropy behind one token": compute_conditional(sequences, 1),
        "entropy behind two tokens": compute_conditional(sequences, 2),
        "entropy efficiency": shannon / most,
        "Rényi entropy": renyi,
        "Rényi efficiency": renyi / most,
        "Rényi efficiency of all rows": renyi / of_all,
    }
