"""KTO against its formula and against TRL's batches: the answer of the one before behind each question."""

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.judged import make_answers, pack_documents, render, score_alone
from tests.objectives.test_preference import JOINT, moved, with_adapters
from unimodal.model.attention import set_attention
from unimodal.objectives.kto import KtoConfig, KtoLoss, exchange_answers

GOOD = (True, False, True, True, False, False)


def pack_labels(answers, length=64):
    return pack_documents([render(q, a).give_values(1 if good else -1) for (q, a, _), good in answers], length)


@pytest.mark.parametrize(
    "settings", [{}, {"baseline": False}, {"good_weight": 1.5, "bad_weight": 0.5, "beta": 0.4}], ids=str
)
def test_the_loss_and_its_gradient_are_trls(make_model, vocabulary, settings):
    cfg = KtoConfig(**settings)
    # documents of one row lie by length, the longest first; the baseline depends on who comes after whom
    answers = sorted(zip(make_answers(vocabulary), GOOD, strict=True), key=lambda pair: -len(pair[0][0] + pair[0][1]))
    model = make_model()
    set_attention(model, "varlen")
    module = KtoLoss(model, vocabulary, JOINT, cfg)
    plain, start = make_model(), make_model()
    plain.load_state_dict(moved(model).state_dict())

    def ratio(question, answer):
        with torch.no_grad():
            before = score_alone(start, question, answer).sum()
        return score_alone(plain, question, answer).sum() - before

    z = torch.zeros(())
    if cfg.baseline:
        sides = [(question, answer) for (question, answer, _), _ in answers]
        pairs = zip(sides, [sides[-1], *sides[:-1]], strict=True)
        with torch.no_grad():
            z = torch.stack([ratio(question, other) for (question, _), (_, other) in pairs]).mean().clamp(min=0)
    expected = torch.zeros(())
    for (question, answer, _), good in answers:
        now = ratio(question, answer)
        if good:
            expected = expected + cfg.good_weight * (1 - F.sigmoid(cfg.beta * (now - z)))
        else:
            expected = expected + cfg.bad_weight * (1 - F.sigmoid(cfg.beta * (z - now)))
    expected.backward()
    batch, values = pack_labels(answers, 128)
    total, found = module(*batch, values=values)
    total.backward()
    assert found["weight"] == len(answers) and len(batch[0]) == 1
    assert found["metrics"]["baseline"][0] == pytest.approx(float(z), abs=1e-5)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_answers_go_behind_the_next_question_and_padding_stays_out(vocabulary):
    answers = list(zip(make_answers(vocabulary), GOOD, strict=True))
    for length in (14, 40):
        batch, _ = pack_labels(answers, length)
        ids, labels, positions, further = exchange_answers(*batch, None)
        assert further is None and int((positions == 0).sum()) == len(answers)
        assert int((labels != -100).sum()) == int((batch[1] != -100).sum())
        learnt = labels[0] != -100
        assert torch.equal(ids[0][learnt], labels[0][learnt])


def test_with_adapters_good_answers_rise_and_bad_ones_fall(make_model, vocabulary):
    answers = list(zip(make_answers(vocabulary), GOOD, strict=True))
    module = KtoLoss(with_adapters(make_model()), vocabulary, JOINT)
    assert module.start.copy is None
    batch, values = pack_labels(answers)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        total, found = module(*batch, values=values)
        total.backward()
        optimizer.step()
    good, bad = found["metrics"]["reward_chosen"], found["metrics"]["reward_rejected"]
    assert good[0] / good[1] > bad[0] / bad[1] + 0.05


@pytest.mark.parametrize("good", [True, False])
def test_a_lone_answer_has_no_baseline_and_is_told_once(make_model, vocabulary, good):
    """TRL refuses such a batch: behind its own question the answer would be compared with itself."""
    [(question, answer, _)] = make_answers(vocabulary, 1)
    model, start = make_model(), make_model()
    module = KtoLoss(model, vocabulary, JOINT).train()
    moved(model)
    batch, values = pack_labels([((question, answer, None), good)])
    with pytest.warns(UserWarning, match="holds one answer: it adds nothing to the baseline") as told:
        for _ in range(2):
            total, found = module(*batch, values=values)
    assert len(told) == 1 and found["metrics"]["baseline"] == (0.0, 1.0)
    with torch.no_grad():
        score = (score_alone(model, question, answer) - score_alone(start, question, answer)).sum()
    sign = 1 if good else -1
    assert (exchange_answers(*batch, None)[1] == -100).all()
    assert float(total.detach()) == pytest.approx(float(1 - F.sigmoid(module.own.beta * sign * score)), abs=1e-5)
    total.backward()


def test_a_lone_answer_without_a_baseline_is_nothing_to_tell(make_model, vocabulary, recwarn):
    [(question, answer, _)] = make_answers(vocabulary, 1)
    batch, values = pack_labels([((question, answer, None), True)])
    KtoLoss(make_model(), vocabulary, JOINT, KtoConfig(baseline=False)).train()(*batch, values=values)
    assert not recwarn.list


def test_weights_that_leave_nothing_to_learn_are_refused():
    with pytest.raises(ValueError, match="both 0, and nothing would be learnt"):
        KtoConfig(good_weight=0, bad_weight=0)
