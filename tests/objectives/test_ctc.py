"""The CTC loss at audio codes: which codes and words it takes, and its value against all alignments counted out."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from unimodal.model.logits import LogitRule
from unimodal.objectives.ctc import compute_ctc_loss, find_spoken_answers, find_spoken_requests

TEXT, AUDIO = range(0, 10), range(20, 30)


def test_takes_listened_speech_and_its_words_document_by_document():
    ids = torch.tensor([[15, 21, 22, 23, 16, 3, 4, 17, 15, 5, 16, 24, 25, 17]])
    labels = torch.tensor([[-100, -100, -100, -100, -100, 3, 4, 17, -100, -100, -100, 24, 25, 17]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5]])
    [(places, words)] = find_spoken_answers(
        ids, labels, positions, AUDIO, TEXT
    )  # what is spoken itself is no utterance
    assert places.tolist() == [1, 2, 3]
    assert words.tolist() == [3, 4]


def test_takes_written_speech_and_the_words_that_are_known_of_it():
    ids = torch.tensor([[15, 21, 22, 23, 16, 3, 4, 17, 15, 5, 16, 24, 25, 17, 15, 6, 16, 26, 17, 15, 7, 16, 27, 17]])
    labels = torch.full_like(ids, -100)
    labels[0, [5, 6, 7, 11, 12, 13, 17, 18, 22, 23]] = ids[0, [5, 6, 7, 11, 12, 13, 17, 18, 22, 23]]
    positions = torch.tensor([[*range(8), *range(6), *range(5), *range(5)]])
    words = {(24, 25): torch.tensor([1, 2]), (27,): torch.tensor([3, 4])}  # the last has more words than codes
    found = find_spoken_requests(ids, labels, positions, AUDIO, lambda codes: words.get(tuple(codes.tolist())))
    assert [(places.tolist(), said.tolist()) for places, said in found] == [([11, 12], [1, 2])]


def test_leaves_out_a_transcript_longer_than_its_speech():
    ids = torch.tensor([[21, 3, 4]])
    assert find_spoken_answers(ids, torch.tensor([[-100, 3, 4]]), torch.arange(3)[None], AUDIO, TEXT) == []
    assert compute_ctc_loss(torch.zeros(1, 3, 4), [torch.zeros(3, 4)], []) is None


def test_is_minus_the_log_of_the_summed_alignments():
    torch.manual_seed(0)
    hidden, rows = torch.randn(1, 4, 6), torch.randn(4, 6)  # three words and the blank
    words = torch.tensor([1, 1])
    scores = (hidden[0] @ rows.T).log_softmax(-1)
    total = 0.0
    for path in itertools.product(range(4), repeat=4):
        merged = [c for i, c in enumerate(path) if c != 3 and (i == 0 or path[i - 1] != c)]
        if merged == [1, 1]:
            total += math.exp(sum(float(scores[t, c]) for t, c in enumerate(path)))
    loss = compute_ctc_loss(hidden, [rows], [(torch.arange(4), words)])
    assert loss is not None
    torch.testing.assert_close(float(loss), -math.log(total) / 2, rtol=1e-5, atol=1e-6)


def test_an_utterance_beside_a_longer_one_costs_the_same():
    torch.manual_seed(0)
    hidden, rows = torch.randn(2, 5, 6), torch.randn(4, 6)
    one, two = (torch.arange(3), torch.tensor([0, 2])), (torch.arange(5, 10), torch.tensor([1, 2]))
    alone = [float(compute_ctc_loss(hidden, [rows], [u])) for u in (one, two)]
    torch.testing.assert_close(
        float(compute_ctc_loss(hidden, [rows], [one, two])), sum(alone) / 2, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "rule", (LogitRule(), LogitRule(scale=0.5), LogitRule(cap=2.0)), ids=("plain", "scaled", "capped")
)
@pytest.mark.parametrize("with_biases", (False, True))
def test_value_and_gradients_are_those_of_a_softmax_over_every_class(rule, with_biases):
    """The scores of the other classes are not kept. One utterance has too few codes, and counts nothing."""
    torch.manual_seed(0)
    start = [torch.randn(1, 20, 6), torch.randn(9, 6), torch.randn(2, 6), torch.randn(9), torch.randn(2)]
    told = [(torch.arange(0, 7), torch.tensor([3, 3, 8])), (torch.arange(7, 9), torch.tensor([4, 4]))]
    told.append((torch.arange(9, 20), torch.tensor([1, 9, 3])))  # row 9 is of the second part, row 10 the blank
    results = []
    for plain in (True, False):
        hidden, text, more, bias, more_bias = values = [v.double().requires_grad_() for v in start]
        if plain:
            scores = functional.linear(hidden[0], torch.cat([text, more]))
            scores = rule.apply(scores + torch.cat([bias, more_bias]) if with_biases else scores).log_softmax(-1)
            loss = sum(
                functional.ctc_loss(
                    scores[at][:, None], words[None], (len(at),), (len(words),),
                    blank=10, reduction="sum", zero_infinity=True,
                )
                for at, words in told
            ) / 8  # fmt: skip
        else:
            biases = [bias, more_bias] if with_biases else []
            loss = compute_ctc_loss(hidden, [text, more], told, biases, rule)
        (loss * 3).backward()
        results.append([loss.detach(), *(v.grad for v in values[: 5 if with_biases else 3])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
