"""Distillation: every part against its formula, written out over stock models, and a student that a teacher helps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objectives.judged import make_answers, pack_documents, render, score_alone
from unimodal.model.attention import set_attention
from unimodal.objectives.distillation.hidden import HiddenConfig, HiddenMatch, pair_blocks
from unimodal.objectives.distillation.likelihood import LikelihoodConfig, find_chunks, match_likelihoods
from unimodal.objectives.distillation.logits import LogitsConfig
from unimodal.objectives.distillation.relations import (
    RelationConfig,
    compare_neighbours,
    compare_within,
    contrast_tokens,
)  # fmt: skip
from unimodal.objectives.distillation.student import DistillationConfig, Teacher, TeacherLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.states import BlockStates

JOINT = LossConfig(softmax="joint", max_logits=400)


def logits_alone(model, question, answer):
    return model(torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]


def jsd(student, teacher, beta, temperature):
    """TRL's generalized_jsd_loss for logits [tokens, rows], summed: beta 0 and 1 are the two divergences."""
    student, teacher = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    if beta == 0:
        return F.kl_div(student, teacher, reduction="sum", log_target=True)
    if beta == 1:
        return F.kl_div(teacher, student, reduction="sum", log_target=True)
    mixed = torch.logsumexp(torch.stack([student + math.log(1 - beta), teacher + math.log(beta)]), 0)
    return beta * F.kl_div(mixed, teacher, reduction="sum", log_target=True) + (1 - beta) * F.kl_div(
        mixed, student, reduction="sum", log_target=True
    )


def pack(answers, length=64):
    return pack_documents([render(question, answer) for question, answer, _ in answers], length)[0]


KINDS = [("forward", 0, 1.0), ("reverse", 1, 1.0), ("jsd", 0.3, 1.0), ("forward", 0, 2.0)]


@pytest.mark.parametrize("length", [20, 64])
@pytest.mark.parametrize(("kind", "beta", "temperature"), KINDS)
def test_logits_and_their_gradient_are_trls(make_model, vocabulary, kind, beta, temperature, length):
    logits = LogitsConfig(kind=kind, temperature=temperature, beta=beta if kind == "jsd" else 0.5)
    student, teacher, answers = make_model(), make_model(seed=4, hidden_size=48), make_answers(vocabulary)
    set_attention(student, "varlen")
    cfg = DistillationConfig(teacher="x", share=0.3, logits=logits)
    module = TeacherLoss(student, vocabulary, JOINT, cfg, Teacher(teacher))
    plain, num, expected = make_model(), sum(len(answer) for _, answer, _ in answers), 0.0
    for question, answer, _ in answers:
        now = logits_alone(plain, question, answer)
        with torch.no_grad():
            known = logits_alone(teacher, question, answer)
        expected = (
            expected - 0.7 * score_alone(plain, question, answer).sum() + 0.3 * jsd(now, known, beta, temperature)
        )
    expected.backward()
    total, found = module(*pack(answers, length))
    total.backward()
    assert found["weight"] == num
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-4)
    for a, b in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_the_likeliest_rows_bound_the_divergence_and_all_rows_are_it(make_model, vocabulary):
    student, teacher, answers = make_model(), make_model(seed=4), make_answers(vocabulary)
    found = {}
    for top in (1, 8, 70, 0):
        cfg = DistillationConfig(teacher="x", share=1.0, logits=LogitsConfig(top=top))
        with torch.no_grad():
            _, parts = TeacherLoss(student, vocabulary, JOINT, cfg, Teacher(teacher))(*pack(answers))
        found[top] = parts["metrics"]["teacher_logits"][0]
    assert 0 < found[1] < found[8] < found[70] == pytest.approx(found[0], abs=1e-5)


class Memory(dict):
    def find(self, key):
        return self.get(key)

    def keep(self, key, record):
        self[key] = record


@pytest.mark.parametrize("softmax", ["joint", "block"])
def test_kept_targets_are_those_of_the_teacher_however_documents_are_packed(make_model, vocabulary, softmax):
    answers, store, loss = make_answers(vocabulary), Memory(), LossConfig(softmax=softmax)
    cfg = DistillationConfig(teacher="x", share=1.0, logits=LogitsConfig(top=20), cache="kept")
    module = TeacherLoss(make_model(), vocabulary, loss, cfg, Teacher(make_model(seed=4), store=store))
    plain = TeacherLoss(
        make_model(), vocabulary, loss, cfg.model_copy(update={"cache": None}), Teacher(make_model(seed=4))
    )
    with torch.no_grad():
        first, _ = module(*pack(answers, 20))
        assert len(store) == len(answers)
        module._teacher[0].model.get_input_embeddings().weight.zero_()  # it is not asked again
        again, _ = module(*pack(answers[::-1], 128))
        whole, _ = plain(*pack(answers, 64))
    torch.testing.assert_close(first, whole, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-3)


def test_hidden_states_come_near_the_teachers(make_model, vocabulary):
    assert pair_blocks(2, 6, "all") == [(0, 2), (1, 5)] and pair_blocks(4, 2, "last") == [(3, 1)]
    student, teacher = make_model(), make_model(seed=4, hidden_size=48, num_layers=4)
    cfg = DistillationConfig(teacher="x", share=1.0, hidden=HiddenConfig())
    module = TeacherLoss(student, vocabulary, JOINT, cfg, Teacher(teacher))
    batch, states = pack(make_answers(vocabulary)[:1]), []
    for model in (make_model(), teacher):
        found = model(batch[0], output_hidden_states=True).hidden_states
        states.append([*found[1:-1]])  # without the last, which has its norm behind it
    kept = (batch[1][0, 1:] >= 0).nonzero().flatten()
    module.hidden.pairs = module.hidden.pairs[:1]
    module.hidden.maps = module.hidden.maps[:1]
    total, parts = module(*batch)
    mapped, wanted = module.hidden.maps[0](states[0][0][0, kept]), states[1][1][0, kept]
    expected = (mapped - wanted).square().mean() / wanted.square().mean()
    assert parts["metrics"]["teacher_hidden"][0] == pytest.approx(float(expected), abs=1e-5)
    total.backward()
    assert (
        module.hidden.maps[0].weight.grad.abs().sum() > 0
        and student.model.layers[0].mlp.up_proj.weight.grad is not None
    )


def test_a_student_of_the_same_width_begins_at_the_identity():
    match = HiddenMatch(HiddenConfig(), 2, 2, 8, 8)
    states = [torch.randn(1, 5, 8) for _ in range(2)]
    assert float(match(states, states, torch.arange(5), torch.ones(5))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "weights", [[1.0] * 12, [1.0, 2.0, 0.5] * 4, [0.0, 3.0] * 6], ids=["equal", "uneven", "some 0"]
)
def test_relations_are_their_formulas(weights):
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(12, 6, generator=g), torch.randn(12, 9, generator=g)
    w = torch.tensor(weights)

    def mean(numbers, of):
        return sum(float(a) * float(b) for a, b in zip(numbers, of, strict=True)) / float(sum(of))

    cosine = [F.cosine_similarity(x[:, None], x[None], dim=-1) for x in (student, teacher)]
    local = []
    for i in range(12):
        near = sorted((j for j in range(12) if j != i), key=lambda j: -float(cosine[1][i, j]))[:4]
        p, q = ((c[i, near] / 0.1).softmax(0) for c in (cosine[1], cosine[0]))
        local.append((p * (p / q).log()).sum())
    found = float(compare_neighbours(student, teacher, w, 4, 0.1))
    assert found == pytest.approx(mean(local, weights), rel=1e-4)
    mapped = torch.randn(12, 9, generator=g)
    scores = F.cosine_similarity(mapped[:, None], teacher[None], dim=-1) / 0.1
    found = float(contrast_tokens(mapped, teacher, w, 0.1))
    assert found == pytest.approx(mean(-scores.log_softmax(1).diagonal(), weights), rel=1e-4)
    documents = torch.tensor([0] * 5 + [3] * 7)
    pairs = [(i, j) for a, b in ((0, 5), (5, 12)) for i in range(a, b) for j in range(a, b)]
    squares = [(cosine[0][i, j] - cosine[1][i, j]) ** 2 for i, j in pairs]
    found = float(compare_within(student, teacher, documents, w))
    assert found == pytest.approx(mean(squares, [weights[i] * weights[j] for i, j in pairs]), rel=1e-4)
    assert float(compare_neighbours(teacher, teacher, w, 4, 0.1)) == pytest.approx(0, abs=1e-6)
    assert float(compare_within(teacher, teacher, documents, w)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "parts",
    [{}, {"logits": {"kind": "jsd", "top": 12}}, {"hidden": {"blocks": "last"}}, {"relations": {}}],
    ids=["logits", "top", "hidden", "relations"],
)
@pytest.mark.sweep("small trainings")
def test_a_teacher_helps_a_student_on_what_it_is_not_told(make_model, vocabulary, parts):
    """A teacher that knows the answers: every part falls, and with logits the labels are learnt as well as alone."""
    answers = make_answers(vocabulary)
    batch = pack(answers)
    teacher = make_model(seed=4, hidden_size=48)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
    known = PackedLoss(teacher, vocabulary, JOINT)
    for _ in range(60):
        optimizer.zero_grad()
        total, found = known(*batch)
        (total / found["weight"]).backward()
        optimizer.step()

    def train(module, steps=12):
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            total, found = module(*batch)
            (total / found["weight"]).backward()
            optimizer.step()
        return found

    cfg = DistillationConfig.model_validate({"teacher": "x", "share": 0.5, **parts})
    module = TeacherLoss(make_model(), vocabulary, JOINT, cfg, Teacher(teacher))
    before = module(*batch)[1]["metrics"]
    after = train(module)["metrics"]
    assert all(after[name][0] < before[name][0] for name in after)
    if not parts:
        alone = make_model()
        train(PackedLoss(alone, vocabulary, JOINT))
        with torch.no_grad():
            helped = float(PackedLoss(module.model, vocabulary, JOINT)(*batch)[0])
            assert helped < 1.1 * float(PackedLoss(alone, vocabulary, JOINT)(*batch)[0])


# -- across tokenizers


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from tests.tiny_model import SENTENCES
    from unimodal.text.tokenizer import train_text_tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    return [train_text_tokenizer(SENTENCES, size, folder / str(size)) for size in (380, 430)]


def test_chunks_end_where_both_tokenizers_end(tokenizers):
    own, other = tokenizers
    words = " the old man walks under seven trees"
    ids = own.encode(words)
    batch = [torch.tensor([x]) for x in ([own.size, *ids, own.size], [-100, *ids, -100], list(range(len(ids) + 2)))]
    for which in ("words", "shared"):
        chunks = find_chunks(*batch, own, other, 7, which)
        assert chunks.ids[0, 0] == 7 and chunks.position_ids[0].tolist() == list(range(chunks.ids.shape[1]))
        theirs = chunks.ids[0, 1:].tolist()
        texts = []
        for number in range(chunks.num):
            mine = [row for row, of in zip(batch[0][0].tolist(), chunks.mine.tolist(), strict=True) if of == number]
            read = [row for row, of in zip(theirs, chunks.other[1:].tolist(), strict=True) if of == number]
            assert own.decode(mine) == other.decode(read) != ""
            texts.append(own.decode(mine))
        assert "".join(texts) == words
        if which == "words":
            assert all(text.startswith(" ") for text in texts)


def test_text_that_is_not_learnt_has_no_chunks(tokenizers):
    own, other = tokenizers
    ids = own.encode(" a blue car")
    batch = [torch.tensor([x]) for x in (ids, [-100] * len(ids), list(range(len(ids))))]
    assert find_chunks(*batch, own, other, 0, "shared").num == 0


def test_likelihoods_are_matched_as_in_the_authors_code():
    """tokenkit/training/losses.py: binary_ce with temperature 100 and epsilon 1e-6."""
    teacher, student = torch.tensor([-0.5, -20.0, -3.0, 0.0]), torch.tensor([-2.0, -1.0, -300.0, -0.1])
    y, x = teacher.double() / 100 - 1e-6, student.double() / 100 - 1e-6
    expected = -(y.exp() * x + (1 - y.exp()) * torch.log(1 - x.exp()))
    torch.testing.assert_close(match_likelihoods(student, teacher, 100.0).double(), expected, rtol=1e-4, atol=1e-6)
    values = torch.linspace(-40, -0.01, 200)
    losses = match_likelihoods(values, torch.full((200,), -5.0), 100.0)
    assert float(values[losses.argmin()]) == pytest.approx(-5.0, abs=0.3)  # least where both agree


def test_a_teacher_of_another_tokenizer_is_matched(tokenizers):
    """Every chunk's probabilities under both models, one by one; and the student comes nearer to them."""
    from unimodal.model.build import NanoConfig, build_nano
    from unimodal.vocabulary import Vocabulary

    own, other = tokenizers
    sizes = NanoConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=64
    )
    vocabulary = Vocabulary.build(own.size, [], [])
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    student = build_nano(vocabulary.size, sizes.model_copy(update={"init_std": 0.2}), seed=0, **ids)
    teacher = build_nano(other.size, sizes.model_copy(update={"init_std": 0.2}), seed=5, **ids).eval()
    cfg = DistillationConfig(teacher="x", share=1.0, likelihood=LikelihoodConfig(chunks="words", temperature=10.0))
    module = TeacherLoss(student, vocabulary, None, cfg, Teacher(teacher, other, own, begin=1))
    words = " what is this? the old man"
    tokens = own.encode(words)
    user = vocabulary.get_control_id("<|user|>")
    document = render([user], tokens)
    batch, _ = pack_documents([document, document])
    with torch.no_grad():
        mine = student(torch.tensor([[user, *tokens]])).logits[0].log_softmax(-1)
        read = other.encode(words)
        theirs = teacher(torch.tensor([[1, *read]])).logits[0].log_softmax(-1)
        arrays = document.ids, document.labels, np.arange(len(document))
        chunks = find_chunks(*(torch.tensor(x)[None] for x in arrays), own, other, 1, "words")
        sums = torch.zeros(2, chunks.num)
        for place, row in enumerate(tokens):
            sums[0, chunks.mine[place + 1]] += mine[place, row]
        for place, row in enumerate(read):
            sums[1, chunks.other[place + 1]] += theirs[place, row]
        expected = match_likelihoods(*sums, 10.0).mean()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        total, parts = module(*batch)
        total.backward()
        optimizer.step()
        found.append(parts["metrics"]["teacher_likelihood"][0])
    assert found[0] == pytest.approx(float(expected), abs=1e-5) and found[-1] < found[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": {}, "logits": {}}, "likelihood is for a teacher of another tokenizer, and logits"),
        ({"cache": "kept", "hidden": {}}, "cache keeps the teacher's logits alone"),
        ({"cache": "kept"}, "say how many by logits.top"),
    ],
)
def test_parts_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationConfig.model_validate({"teacher": "x", **settings})
    assert RelationConfig().sample == 256


def test_the_teachers_distributions_are_weighed_by_medium(make_model, vocabulary):
    student, teacher, answers = make_model(), make_model(seed=4), make_answers(vocabulary)
    cfg = LossConfig(softmax="joint", modality_weights={"text": 0.0, "image": 2.0})
    images, terms = vocabulary.get_block_range("image"), []
    with torch.no_grad():
        for question, answer, _ in answers:
            chosen = torch.tensor([token in images for token in answer])
            now, known = (logits_alone(model, question, answer)[chosen] for model in (student, teacher))
            terms += [jsd(one[None], other[None], 0, 1.0) for one, other in zip(now, known, strict=True)]
        own = DistillationConfig(teacher="x", share=1.0, logits=LogitsConfig())
        total, parts = TeacherLoss(student, vocabulary, cfg, own, Teacher(teacher))(*pack(answers))
    assert parts["metrics"]["teacher_logits"][0] == pytest.approx(float(torch.stack(terms).mean()), abs=1e-5)
    assert float(total) / parts["weight"] == pytest.approx(parts["metrics"]["teacher_logits"][0], abs=1e-5)


WEIGHTS = {"equal": {}, "images alone": {"text": 0.0, "image": 2.0}, "text alone": {"image": 0.0},
           "uneven": {"text": 0.5, "image": 3.0}}  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_teachers_states_are_weighed_by_medium(make_model, vocabulary, weights):
    """Hidden states and relations against their formulas over the stock models' states, document by document."""
    student, teacher, answers = make_model(), make_model(seed=4, num_layers=2), make_answers(vocabulary, 3)
    images, states, weight, documents = vocabulary.get_block_range("image"), ([], []), [], []
    own = DistillationConfig(teacher="x", share=1.0, hidden=HiddenConfig(weight=0.7), relations=RelationConfig())
    cfg = LossConfig(softmax="joint", modality_weights=weights)
    module = TeacherLoss(student, vocabulary, cfg, own, Teacher(teacher))
    module.hidden.pairs, module.hidden.maps = module.hidden.pairs[:1], module.hidden.maps[:1]
    # the documents of one row lie by length, the longest first
    for number, (question, answer, _) in enumerate(sorted(answers, key=lambda one: -len(one[0] + one[1]))):
        here = slice(len(question) - 1, len(question + answer) - 1)
        for of, model in zip(states, (student, teacher), strict=True):
            with torch.no_grad(), BlockStates(model).collect() as found:
                model(torch.tensor([question + answer]))
            of.append([one[0, here] for one in found])
        weight += [weights.get("image" if token in images else "text", 1.0) for token in answer]
        documents += [number] * len(answer)
    weight, documents = torch.tensor(weight), torch.tensor(documents)
    first, last = ([torch.cat([one[at] for one in of]) for of in states] for at in (0, -1))
    error = sum(w * float(x) for w, x in zip(weight, (first[0] - first[1]).square().mean(1), strict=True))
    size = sum(w * float(x) for w, x in zip(weight, first[1].square().mean(1), strict=True))
    with torch.no_grad():
        total, parts = module(*pack(answers, 128))
        part = weight > 0
        num = torch.arange(int(part.sum()))
        terms = module.relations(last[0][part], last[1][part], documents[part], num, weight[part])
    relations = float(terms["local"] + 0.1 * terms["global"] + terms["inner"])
    assert parts["metrics"]["teacher_hidden"][0] == pytest.approx(float(error / size), rel=1e-4)
    assert parts["metrics"]["teacher_relations"][0] == pytest.approx(relations, rel=1e-4)
    assert float(total) / float(weight.sum()) == pytest.approx(0.7 * float(error / size) + relations, rel=1e-4)


def test_likelihoods_of_text_that_weighs_nothing_are_refused(make_model, vocabulary):
    own = DistillationConfig(teacher="x", likelihood=LikelihoodConfig())
    with pytest.raises(ValueError, match=r"likelihood learns text, which loss.modality_weights gives 0"):
        cfg = LossConfig(modality_weights={"text": 0})
        TeacherLoss(make_model(), vocabulary, cfg, own, Teacher(make_model()))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_of_a_medium_is_a_number_from_0_on(weight):
    with pytest.raises(ValueError, match="greater than or equal to 0|finite number"):
        LossConfig(modality_weights={"text": weight})
