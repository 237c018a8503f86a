"""GRPO's loss against TRL's formula, and advantages of groups."""

import pytest
import torch

from tests.objectives.judged import make_answers, pack_documents, render, score_alone
from tests.objectives.test_preference import JOINT, moved, with_adapters
from unimodal.model.attention import set_attention
from unimodal.objectives.grpo import GrpoConfig, GrpoLoss, compute_advantages
from unimodal.objectives.next_token import LossConfig

ADVANTAGES = (1.3, -0.4, 0.0, -1.1, 0.8, 0.2)
OWN = {"rewards": {"similarity": {}}}


@pytest.mark.parametrize("length", [20, 64])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.0}, {"repeats": 2, "clip": 0.05, "beta": 0.3}], ids=str)
def test_the_loss_and_its_gradient_are_trls(make_model, vocabulary, settings, length):
    cfg, answers = GrpoConfig(**OWN, **settings), make_answers(vocabulary)
    model = make_model()
    set_attention(model, "varlen")
    module = GrpoLoss(model, vocabulary, JOINT, cfg)
    plain, start, writer = make_model(), make_model(), make_model()
    plain.load_state_dict(moved(model).state_dict())
    writer.load_state_dict(plain.state_dict())
    if cfg.repeats > 1:  # written a step ago
        with torch.no_grad():
            for parameter in writer.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    expected, items = 0.0, []
    for (question, answer, _), advantage in zip(answers, ADVANTAGES, strict=True):
        now = score_alone(plain, question, answer)
        with torch.no_grad():
            before, written = score_alone(start, question, answer), score_alone(writer, question, answer)
        old = written if cfg.repeats > 1 else now.detach()
        ratio = torch.exp(now - old)
        loss = -torch.min(ratio * advantage, torch.clamp(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage)
        loss = loss + cfg.beta * (torch.exp(before - now) - (before - now) - 1)
        expected = expected + loss.mean()
        item = render(question, answer).give_values(advantage, 0.0)
        item.values[len(question) - 1 : -1, 1] = written  # where the loss looks for them: at the token before
        items.append(item)
    expected.backward()
    batch, values = pack_documents(items, length)
    total, found = module(*batch, values=values)
    total.backward()
    assert found["weight"] == len(answers)
    assert (found["metrics"]["clipped"][0] > 0) is (cfg.repeats > 1)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=2e-5)


def test_advantages_compare_within_a_group():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    found = compute_advantages(rewards)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), rtol=1e-3, atol=1e-3)
    assert compute_advantages(rewards, scale=False).tolist() == [[-1, 0, 1], [0, 0, 0]]


def test_validation_scores_the_rows_own_answers(make_model, vocabulary):
    module = GrpoLoss(with_adapters(make_model()), vocabulary, JOINT, GrpoConfig(**OWN))
    question, answer, _ = make_answers(vocabulary)[0]
    batch, _ = pack_documents([render(question, answer)])
    with torch.no_grad():
        total, found = module(*batch)
        torch.testing.assert_close(total, -score_alone(make_model(), question, answer).sum(), rtol=0, atol=1e-5)
    assert found["weight"] == len(answer)


def test_the_weight_of_a_medium_weighs_its_tokens(make_model, vocabulary):
    """The mean over an answer's tokens is a weighted one, and validation is that of next-token training."""
    model, answers = make_model(), make_answers(vocabulary)[1:2]
    cfg = LossConfig(softmax="joint", modality_weights={"text": 0.5, "image": 2.0})
    module = GrpoLoss(model, vocabulary, cfg, GrpoConfig(**OWN, beta=0.3))
    start = make_model()
    moved(model)
    [(question, answer, _)] = answers
    images = vocabulary.get_block_range("image")
    weights = torch.tensor([2.0 if token in images else 0.5 for token in answer])
    assert len(set(weights.tolist())) == 2
    with torch.no_grad():
        now, before = (score_alone(one, question, answer) for one in (model, start))
        each = -1.3 + 0.3 * (torch.exp(before - now) - (before - now) - 1)
        batch, values = pack_documents([render(question, answer).give_values(1.3, 0.0)])
        total, _ = module(*batch, values=values)
        torch.testing.assert_close(total, (weights * each).sum() / weights.sum(), rtol=0, atol=1e-5)
        total, found = module(*batch)
        torch.testing.assert_close(total, -(weights * now).sum(), rtol=0, atol=1e-4)
    assert found["weight"] == pytest.approx(float(weights.sum()))
