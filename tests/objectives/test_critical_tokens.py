"""cDPO against its authors' formulas: the contrast of two models, and token weights in DPO."""

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.judged import make_answers, pack_pairs, score_alone
from tests.objectives.test_preference import JOINT, moved
from unimodal.objectives.critical_tokens import CriticalConfig
from unimodal.objectives.preference import PreferenceConfig, PreferenceLoss


def estimate_alone(right, wrong, question, answer):
    """src/pipeline.py of the authors: cd_logits = 2 · right - wrong, and the probability of each token."""
    ids = torch.tensor([question + answer])
    logits = (1 + 1) * right(ids).logits - wrong(ids).logits
    found = logits.softmax(-1)[0, len(question) - 1 : -1]
    return found.gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("only_rejected", [True, False])
@pytest.mark.parametrize("form", ["sum", "token"])
def test_the_loss_and_its_gradient_are_the_authors(make_model, vocabulary, form, only_rejected):
    right, wrong, model = make_model(seed=1), make_model(seed=2), make_model()
    critical = CriticalConfig(right="right", wrong="wrong", form=form, only_rejected=only_rejected)
    module = PreferenceLoss(model, vocabulary, JOINT, PreferenceConfig(critical=critical, beta=0.5), [right, wrong])
    plain, start = make_model(), make_model()
    plain.load_state_dict(moved(model).state_dict())
    answers, expected = make_answers(vocabulary), 0.0
    for question, *sides in answers:
        weighted = []
        for answer, is_chosen in zip(sides, (True, False), strict=True):
            with torch.no_grad():
                before, s = score_alone(start, question, answer), estimate_alone(right, wrong, question, answer)
            weight = (torch.ones_like(s) if only_rejected else s) if is_chosen else 1 - s
            weighted.append(weight * (score_alone(plain, question, answer) - before))
        if form == "sum":
            expected = expected - F.logsigmoid(0.5 * (weighted[0].sum() - weighted[1].sum()))
        else:  # src/train/train_cdpo.py: token by token at equal places, padded with 0
            chosen, rejected = torch.nn.utils.rnn.pad_sequence(weighted, batch_first=True)
            expected = expected - F.logsigmoid(0.5 * (chosen - rejected)).mean()
    expected.backward()
    batch, values = pack_pairs(answers)
    total, found = module(*batch, values=values)
    total.backward()
    assert found["weight"] == len(answers)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=2e-5)


def test_a_token_that_only_the_wrong_model_writes_is_critical(make_model, vocabulary):
    """Both models are tuned until they know their answers; the first token that differs then weighs most."""
    question, common = [1, 2, 3], [4, 5]
    models = []
    for last in (6, 7):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.tensor([[*question, *common, last]])
        for _ in range(40):
            optimizer.zero_grad()
            model(ids, labels=torch.where(torch.arange(6) < 3, -100, ids)).loss.backward()
            optimizer.step()
        models.append(model.eval())
    with torch.no_grad():
        weights = 1 - estimate_alone(*models, question, [*common, 7])
    critical = CriticalConfig(right="right", wrong="wrong")
    module = PreferenceLoss(make_model(), vocabulary, JOINT, PreferenceConfig(critical=critical), models)
    batch, values = pack_pairs([(question, [*common, 6], [*common, 7])])
    from unimodal.model.attention import Packing

    _, rejected = module._find_critical(*batch, Packing.from_position_ids(batch[2]))
    torch.testing.assert_close(rejected[3:], weights, rtol=0, atol=1e-5)
    assert rejected[3:].argmax() == 2 and float(rejected[5]) > 0.9 > 0.1 > float(rejected[3:5].max())


def test_the_token_form_of_another_kind_is_refused(make_model, vocabulary):
    own = PreferenceConfig(kind="ipo", critical=CriticalConfig(right="a", wrong="b", form="token"))
    with pytest.raises(ValueError, match="form token goes with kind sigmoid, not ipo"):
        PreferenceLoss(make_model(), vocabulary, None, own, [make_model(), make_model()])
