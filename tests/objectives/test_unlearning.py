"""Unlearning against the published formula over a stock model, and what is forgotten and kept of it."""

import pytest
import torch

from tests.objectives.judged import make_answers, pack_documents, render, score_alone
from tests.objectives.test_preference import JOINT, moved
from unimodal.model.attention import set_attention
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.unlearning import UnlearningConfig, UnlearningLoss, replace_expressions

KEEP = (True, False, False, True, False, True)
GENERIC = [((4, 5), (6,)), ((7,), (8, 9, 10))]


def logits_alone(model, question, answer):
    return model(torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]


def pack_rows(answers, keep=KEEP, length=64):
    return pack_documents(
        [render(q, a).give_values(1 if k else -1) for (q, a, _), k in zip(answers, keep, strict=True)]
    )


@pytest.mark.parametrize("length", [20, 64])
@pytest.mark.parametrize("targets", ["labels", "distribution"])
def test_the_loss_and_its_gradient_are_the_papers(make_model, vocabulary, targets, length):
    """v_start - α relu(v_reinforced - v_start); its likeliest row, or all of it, is learnt in place of the label."""
    reinforced, model = make_model(seed=3), make_model()
    set_attention(model, "varlen")
    cfg = UnlearningConfig(reinforced="x", strength=2.0, targets=targets, keep_weight=0.5)
    module = UnlearningLoss(model, vocabulary, JOINT, cfg, reinforced)
    plain, start = make_model(), make_model()
    plain.load_state_dict(moved(model).state_dict())
    answers, expected, weight = make_answers(vocabulary), 0.0, 0.0
    for (question, answer, _), keep in zip(answers, KEEP, strict=True):
        with torch.no_grad():
            base, known = (logits_alone(one, question, answer) for one in (start, reinforced))
        now = logits_alone(plain, question, answer).log_softmax(-1)
        generic = base - 2.0 * torch.relu(known - base)
        if keep:
            expected = expected + 0.5 * (base.softmax(-1) * (base.log_softmax(-1) - now)).sum()
        elif targets == "labels":
            expected = expected - now.gather(1, generic.argmax(1)[:, None]).sum()
        else:
            expected = expected + (generic.softmax(-1) * (generic.log_softmax(-1) - now)).sum()
        weight += 0.5 * len(answer) if keep else len(answer)
    expected.backward()
    batch, values = pack_rows(answers, length=length)
    total, found = module(*batch, values=values)
    total.backward()
    assert found["weight"] == pytest.approx(weight)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-4)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_generic_expressions_stand_in_the_places_of_the_others():
    ids = torch.tensor([[1, 4, 5, 2, 7, 3, 4], [5, 7, 1, 4, 5, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 0, 1]])
    text, places, mapped = replace_expressions(ids, positions, GENERIC)
    assert text.tolist() == [[1, 6, 2, 8, 9, 10, 3, 4, 5, 8, 9, 10, 1, 6, 0, 0]]
    assert places.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 0, 1]]
    assert mapped.tolist() == [0, 1, 1, 2, 3, 6, 7, 8, 9, 12, 13, 13, 14, 15]


def test_the_start_reads_the_generic_text(make_model, vocabulary):
    """An answer behind "4 5" is learnt as the start would go on behind "6"; the reinforced model knows nothing."""
    model, start = make_model(), make_model()
    cfg = UnlearningConfig(reinforced="x", targets="distribution")
    module = UnlearningLoss(model, vocabulary, JOINT, cfg, make_model(), GENERIC[:1])
    batch, values = pack_documents([render([1, 2, 4, 5], [11, 12]).give_values(-1)])
    with torch.no_grad():
        total, _ = module(*batch, values=values)
        wanted, now = logits_alone(start, [1, 2, 6], [11, 12]), logits_alone(start, [1, 2, 4, 5], [11, 12])
        known = torch.relu(now - wanted)
        generic = (wanted - 5.0 * known).log_softmax(-1)
    torch.testing.assert_close(total, (generic.exp() * (generic - now.log_softmax(-1))).sum(), rtol=0, atol=1e-5)


@pytest.mark.sweep("small trainings")
def test_what_is_forgotten_falls_and_what_is_kept_stays(make_model, vocabulary):
    """A model that begins to know six answers forgets three of them."""
    answers, model = make_answers(vocabulary), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def learn(steps, only=lambda row: True):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = sum(-score_alone(model, q, a).mean() for (q, a, _), k in zip(answers, KEEP, strict=True) if only(k))
            loss.backward()
            optimizer.step()

    learn(8)
    known = {name: value.clone() for name, value in model.state_dict().items()}
    learn(40, only=lambda keep: not keep)
    reinforced = make_model()
    reinforced.load_state_dict(model.state_dict())
    model.load_state_dict(known)
    module = UnlearningLoss(model, vocabulary, JOINT, UnlearningConfig(reinforced="x"), reinforced)
    batch, values = pack_rows(answers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def measure(keep):
        with torch.no_grad():
            scores = [score_alone(model, q, a).mean() for (q, a, _), k in zip(answers, KEEP, strict=True) if k is keep]
        return float(torch.stack(scores).mean().exp())

    before = measure(True), measure(False)
    for _ in range(40):
        optimizer.zero_grad()
        total, found = module(*batch, values=values)
        (total / found["weight"]).backward()
        optimizer.step()
    kept, forgotten = measure(True), measure(False)
    assert min(before) > 0.2 and kept > 0.8 * before[0] and forgotten < 0.5 * before[1]


def test_the_weight_of_a_medium_weighs_its_tokens(make_model, vocabulary):
    answers = make_answers(vocabulary)
    images = vocabulary.get_block_range("image")
    cfg = LossConfig(softmax="joint", modality_weights={"text": 0.0, "image": 2.0})
    module = UnlearningLoss(make_model(), vocabulary, cfg, UnlearningConfig(reinforced="x"), make_model(seed=3))
    alike = UnlearningLoss(make_model(), vocabulary, JOINT, UnlearningConfig(reinforced="x"), make_model(seed=3))
    batch, values = pack_rows(answers)
    ids, labels, positions = batch
    pictures = torch.where((labels >= images.start) & (labels < images.stop), labels, -100)
    with torch.no_grad():
        total, found = module(ids, labels, positions, values=values)
        expected, parts = alike(ids, pictures, positions, values=values)
    torch.testing.assert_close(total, 2 * expected, rtol=0, atol=1e-4)
    assert found["weight"] == 2 * parts["weight"] > 0
