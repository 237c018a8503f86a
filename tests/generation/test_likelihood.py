"""The likelihood of an answer is that of drawing it: rows that cannot come next have no part in it."""

import pytest
import torch

from tests.scoring import score_drawn
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig


@pytest.fixture(params=["lean", "reference"])
def engine(request, model, vocabulary):
    return Engine(model, vocabulary, request.param)


@torch.inference_mode()
@pytest.mark.parametrize("medium", ["text", "image", "audio", "video"])
def test_it_is_that_of_the_stock_forward_over_what_may_come(engine, model, vocabulary, ask, medium):
    config = GenerationConfig(max_new_tokens=40, force=medium, seed=4, max_codes={"audio": 5})
    prompts = [ask([3, 4]), ask([5]), ask([6, 8, 9])]
    answers = engine.generate(prompts, config)
    answers[1] = answers[1][:3]  # cut within a span
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        expected.append(float(score_drawn(logits, vocabulary, prompt, answer).sum()))
    assert engine.compute_log_likelihood(prompts, answers) == pytest.approx(expected, abs=1e-4)
    last = engine.compute_log_likelihood([[*prompts[2], *answers[2][:2]]], [answers[2][2:]])  # the prompt is open
    first = engine.compute_log_likelihood([prompts[2]], [answers[2][:2]])
    assert last[0] + first[0] == pytest.approx(expected[2], abs=1e-4)


@torch.inference_mode()
def test_a_row_that_cannot_come_next_has_no_part(make_model, vocabulary, ask):
    """A head that prefers a picture's codes behind a question, which no training with slices tells it not to."""
    model = make_model(tie_embeddings=False)
    end = vocabulary.get_control_id("<|end_of_turn|>")
    before = Engine(model, vocabulary).compute_log_likelihood([ask([3])], [[9, 10, end]])
    rows = vocabulary.get_block_range("image")
    model.get_output_embeddings().weight[rows.start : rows.stop] *= 50
    assert Engine(model, vocabulary).compute_log_likelihood([ask([3])], [[9, 10, end]]) == pytest.approx(
        before, abs=1e-4
    )


@torch.inference_mode()
def test_all_answers_of_two_ids_have_the_probability_one(engine, vocabulary, ask):
    """Words, ends and beginnings of media, of which every picture goes on: nothing is left out or counted twice."""
    prompt, end = ask([3]), vocabulary.get_control_id("<|end_of_turn|>")
    words = [row for rows in vocabulary.text_ranges for row in rows]
    starts = [vocabulary.get_start_id(name) for name in vocabulary.media]
    first = [[row] for row in (*words, *starts, end)]
    total = torch.tensor(engine.compute_log_likelihood([prompt] * len(first), first)).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-4)
    begun = vocabulary.get_start_id("image")
    pairs = [[begun, row] for row in vocabulary.get_block_range("image")]
    total = torch.tensor(engine.compute_log_likelihood([prompt] * len(pairs), pairs)).exp().sum()
    [alone] = engine.compute_log_likelihood([prompt], [[begun]])
    assert float(total) == pytest.approx(float(torch.tensor(alone).exp()), abs=1e-4)


def test_what_cannot_be_scored_is_told(engine, vocabulary, ask):
    assert engine.compute_log_likelihood([], []) == []
    with pytest.raises(ValueError, match="nothing to score"):
        engine.compute_log_likelihood([[3]], [[]])
    for answer in ([vocabulary.get_control_id("<|user|>")], [9, vocabulary.get_block_range("image").start], [7]):
        with pytest.raises(ValueError, match="cannot come next"):
            engine.compute_log_likelihood([ask([3])], [answer])
