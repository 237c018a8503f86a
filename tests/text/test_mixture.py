"""The mixture of a BPE tokenizer's training data: counts as counted plainly, the whole program, and a known answer."""

import random
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import linprog

from tests.text.test_trainers import LINES, count_pairs
from unimodal.text.reports.mixture import count_words, follow_merges, infer_mixture, read_merges, solve
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import TrainingSettings, train

ALPHABETS = {"one": "etaoinsrhl", "two": "etaoindlucmpg", "three": "абвгдежзик"}


def write_language(seed: int, alphabet: str, num_lines: int) -> list[str]:
    """Lines of 150 words whose frequency falls with their rank."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(alphabet, k=rng.randint(2, 7))) for _ in range(150)]
    return [" ".join(rng.choices(words, [1 / (rank + 1) for rank in range(150)], k=8)) for _ in range(num_lines)]


def take(lines: list[str], num_bytes: float) -> list[str]:
    found: list[str] = []
    while sum(len(line.encode()) + 1 for line in found) < num_bytes:
        found.append(lines[len(found)])
    return found


@pytest.fixture(scope="module")
def languages() -> dict[str, list[str]]:
    return {name: write_language(seed, letters, 520) for seed, (name, letters) in enumerate(ALPHABETS.items())}


def test_a_known_mixture_is_found_in_other_text_of_the_languages(languages):
    shares = {"one": 0.7, "two": 0.2, "three": 0.1}
    lines = [line for name, share in shares.items() for line in take(languages[name][:300], 12_000 * share)]
    tokenizer = OpenedTokenizer(train(lines, TrainingSettings("bpe", 420)), "mixed")
    found = infer_mixture(tokenizer, {name: text[300:] for name, text in languages.items()})
    assert found.merges == 164 and sum(found.shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert abs(found.shares[name] - share) < 0.03, found.shares


def test_pairs_are_counted_after_every_merge_as_from_the_beginning(languages):
    texts = [languages["one"][:40], languages["three"][:40]]
    tokenizer = OpenedTokenizer(train([*texts[0], *texts[1]], TrainingSettings("bpe", 330)), "two")
    merges = read_merges(tokenizer)
    words = [count_words(tokenizer, text) for text in texts]
    history = follow_merges(merges, words)
    counts = history.first.copy()
    for step in range(len(merges)):
        if step in (0, 1, 10, 50):
            plain = [count_pairs(Counter(sample), merges[:step]) for sample in words]
            merged = history.merged[step]
            assert counts[merged].tolist() == [pairs[merges[step]] for pairs in plain]
            assert sorted(counts[counts.any(axis=1)].tolist()) == sorted(
                [pairs[pair] for pairs in plain] for pair in plain[0].keys() | plain[1].keys()
            )
        changed, added = history.changes[step]
        counts[changed] += added


def test_constraints_that_are_added_one_by_one_give_the_whole_program(languages):
    texts = [text[:30] for text in languages.values()]
    tokenizer = OpenedTokenizer(train([line for text in texts for line in text], TrainingSettings("bpe", 290)), "three")
    merges = read_merges(tokenizer)
    history = follow_merges(merges, [count_words(tokenizer, text) for text in texts])
    sizes = np.array([0.002, 0.003, 0.004])
    shares, slack = solve(history, sizes)
    num_pairs, counts, lines = len(history.first), history.first / sizes, []
    for step, merged in enumerate(history.merged):
        for pair in range(num_pairs):
            line = np.zeros(3 + len(merges) + num_pairs)
            line[:3] = counts[pair] - counts[merged]
            line[3 + step] = line[3 + len(merges) + pair] = -1
            if pair != merged:
                lines.append(line)
        changed, added = history.changes[step]
        counts[changed] += added / sizes
    costs = np.array([0.0] * 3 + [1.0] * (len(merges) + num_pairs))
    whole = linprog(costs, np.array(lines), np.zeros(len(lines)), (costs == 0)[None], [1])
    assert slack == pytest.approx(whole.fun, rel=1e-4, abs=1e-4) and shares == pytest.approx(whole.x[:3], abs=1e-3)


def test_of_several_pairs_for_a_piece_the_one_that_was_learned_is_kept(text):
    tokenizer = OpenedTokenizer(text.data, "ours")
    merges = read_merges(tokenizer)
    assert len(merges) < len(tokenizer.data["model"]["merges"])
    assert len({left + right for left, right in merges}) == len(merges)


def test_what_has_no_mixture_is_one_line(languages):
    samples = {name: text[:20] for name, text in languages.items()}
    unigram = OpenedTokenizer(train(LINES, TrainingSettings("unigram", 380)), "u")
    with pytest.raises(ValueError, match="u has no merges"):
        infer_mixture(unigram, samples)
    bpe = OpenedTokenizer(train(samples["one"], TrainingSettings("bpe", 280)), "b")
    with pytest.raises(ValueError, match="none of the tokenizer's merges"):
        infer_mixture(bpe, {"x": ["жжж"], "y": ["ддд"]})
    with pytest.raises(ValueError, match="two samples or more"):
        infer_mixture(bpe, {"x": ["a"]})
