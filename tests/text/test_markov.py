"""The Markov source: its entropies by hand and by its text, and what tokens spare a model of single tokens."""

import math
from collections import Counter

import pytest

from tools.bench_markov import main
from unimodal.text.markov import MarkovSource, compute_binary_entropy, score_unigram


def test_entropies_are_those_by_hand():
    even = MarkovSource(2, 0.2, 0.2)
    assert even.share == 0.5 and even.letter_entropy == 1
    assert even.entropy_rate == pytest.approx(0.2 * math.log2(5) + 0.8 * math.log2(1.25))
    skewed = MarkovSource(3, 0.1, 0.3)
    assert skewed.share == pytest.approx(0.25)
    assert skewed.entropy_rate == pytest.approx(0.75 * compute_binary_entropy(0.1) + 0.25 * compute_binary_entropy(0.3))
    assert skewed.entropy_rate < skewed.letter_entropy
    free = MarkovSource(1, 0.4, 0.6)  # the next letter depends on nothing
    assert free.entropy_rate == pytest.approx(free.letter_entropy)


@pytest.mark.parametrize(("order", "p", "q"), [(1, 0.2, 0.4), (2, 0.2, 0.2), (4, 0.7, 0.1)])
def test_the_text_switches_as_often_as_it_should_at_its_order_and_not_before(order, p, q):
    source = MarkovSource(order, p, q)
    lines = source.draw(200, 200, seed=1)
    assert lines == source.draw(200, 200, seed=1) != source.draw(200, 200, seed=2)
    pairs = Counter((line[at - order], line[at]) for line in lines for at in range(order, 200))
    shares = {letter: pairs[letter, other] / (pairs[letter, "a"] + pairs[letter, "b"])
              for letter, other in (("a", "b"), ("b", "a"))}  # fmt: skip
    assert shares == {"a": pytest.approx(p, abs=0.02), "b": pytest.approx(q, abs=0.02)}
    assert Counter("".join(lines))["b"] / 40_000 == pytest.approx(source.share, abs=0.02)
    if order > 1:  # letters side by side are of chains apart
        beside = Counter((line[at - 1], line[at]) for line in lines for at in range(order, 200))
        both = beside["b", "b"] / sum(beside.values())
        assert both == pytest.approx(source.share**2, abs=0.02)


def test_a_model_of_letters_pays_their_entropy_and_one_of_blocks_what_blocks_cost():
    source = MarkovSource(2, 0.2, 0.2)
    learned, measured = source.draw(300, 240, 0), source.draw(300, 240, 1)
    letters = score_unigram(lambda line: [ord(letter) for letter in line], learned, measured, 2)
    assert letters == pytest.approx(source.letter_entropy, abs=0.01)

    def cut(line):
        return [int(line[at : at + 4].replace("a", "0").replace("b", "1"), 2) for at in range(0, len(line), 4)]

    # four letters: two pay a whole bit, two what the source asks
    expected = (2 * source.letter_entropy + 2 * source.entropy_rate) / 4
    assert score_unigram(cut, learned, measured, 16) == pytest.approx(expected, abs=0.01)
    with pytest.raises(ValueError, match="no text"):
        score_unigram(cut, learned, [], 16)


def test_longer_tokens_come_nearer_to_the_source(capsys):
    main(["--sizes", "264", "384"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    bits = [float(row[2]) for row in rows]
    assert bits[0] == pytest.approx(1, abs=0.01) and bits[0] > bits[1] > bits[2] > bits[3]
    assert bits[3] == pytest.approx(MarkovSource(2, 0.2, 0.2).entropy_rate, abs=0.001) and bits[2] < 0.86


@pytest.mark.parametrize("wrong", [["--order", "0"], ["--p", "1"], ["--q", "0"], ["--sizes", "2"]])
def test_what_is_wrong_is_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(wrong)
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
