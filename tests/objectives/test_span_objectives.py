"""Objectives over spans of codes, each against its formula written out document by document under a stock forward."""

import warnings

import pytest
import torch

from tests.objectives.test_masked_codes import arrange
from unimodal.objectives.any_order import AnyOrderConfig, AnyOrderLoss, draw_ranks
from unimodal.objectives.entities import number_entities
from unimodal.objectives.next_token import IGNORE
from unimodal.objectives.next_x import NextXConfig, NextXLoss
from unimodal.objectives.noise import add_noise, draw_logit_normal
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.parallel_copies import ParallelCopies, ParallelCopyConfig
from unimodal.objectives.silence import PATIENCE
from unimodal.objectives.spans import choose_spans
from unimodal.objectives.token_unify import TASKS, TokenUnify, TokenUnifyConfig, draw_task, hide_by_task
from unimodal.vocabulary import Vocabulary


@pytest.fixture
def documents(vocabulary):
    """(ids, labels): a picture that is asked for, behind words that are learnt, and one that is only read."""
    picture = list(vocabulary.encode_span("image", [0, 15, 7, 7]))
    return [
        ([1, 3, 4, *picture, 6], [IGNORE, 3, 4, *picture, 6]),
        ([1, 5, 6, 9, *picture, 2], [IGNORE] * 4 + [*picture, 2]),
        ([1, *picture, 5, 9, 2], [IGNORE] * (1 + len(picture)) + [5, 9, 2]),
    ]


def score(objective, states, place, target):
    """The negative log-likelihood of a code or word among the rows that are legal there."""
    [group], _ = objective.groups.assign(torch.tensor([target]), torch.tensor([0]))
    spec = objective.groups.groups[int(group)]
    legal = [row for piece in spec.pieces for row in piece] + list(spec.exits)
    with torch.no_grad():
        logits = objective.model.get_output_embeddings()(states[place])
    return float(logits[legal].logsumexp(0) - logits[target])


def run(objective, ids, positions, seen):
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
    with torch.no_grad():
        decoder = objective.model.get_decoder()
        return decoder(
            input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=mask, use_cache=False
        ).last_hidden_state[0]


def causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def check_sum(objective, documents, expected, count, rel=1e-4):
    """Each in its row, and all in one."""
    for rows in ([[one] for one in documents], [documents]):
        total, parts = objective.eval()(*arrange(rows))
        assert float(total.detach()) == pytest.approx(expected, rel=rel) and parts["weight"] == pytest.approx(count)
    return parts


def find_span(objective, document):
    """The span of a document, as an evaluated objective chooses it, and its words before: (place, target)."""
    own_ids, own_labels = document
    ids, labels, positions = arrange([[document]])
    spans = choose_spans(ids, labels, positions, objective.group_of_row, known=objective.known)
    last = int(spans[0].places[0]) if spans else len(own_ids)
    words = [(place - 1, own_ids[place]) for place in range(1, last) if own_labels[place] != IGNORE]
    return (spans[0] if spans else None), words


def test_entities_are_those_of_the_paper():
    def draw(unit, size=2, rows=4, columns=4, **more):
        return number_entities(rows * columns, unit, size, columns, **more).view(rows, columns).tolist()

    assert draw("cell") == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert draw("subsample") == [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]
    assert draw("scale") == [[0, 2, 1, 2], [2, 2, 2, 2], [1, 2, 1, 2], [2, 2, 2, 2]]
    assert draw("token", rows=1) == [[0, 1, 2, 3]] and draw("whole", rows=1) == [[0, 0, 0, 0]]
    assert draw("scale", rows=1, columns=7, lengths=(1, 2, 4)) == [[0, 1, 1, 2, 2, 2, 2]]
    for unit, size in (("cell", 2), ("subsample", 4), ("cell", 8)):  # the authors' code has 4 cells of 8 × 8
        found = number_entities(256, unit, size, 16)
        assert found.bincount().tolist() == [256 // len(found.unique())] * len(found.unique())
    with pytest.raises(ValueError, match="cells of size 3 do not divide 4 rows of 4 codes"):
        draw("cell", size=3)
    with pytest.raises(ValueError, match="scales of 1, 2 codes are not a span of 4"):
        draw("scale", rows=1, lengths=(1, 2))
    with pytest.raises(ValueError, match="a cell is a part of a raster, and the codes are not in raster order"):
        number_entities(16, "cell")


def test_noise_is_of_the_level_asked_for():
    codes, rows = torch.full((20_000,), 5), range(0, 10)
    generator = torch.Generator().manual_seed(0)
    noisy = add_noise(codes, torch.full((20_000,), 0.6), rows, 99, 0.25, generator)
    assert float((noisy == 99).float().mean()) == pytest.approx(0.6 * 0.75, abs=0.015)
    assert float((noisy == 5).float().mean()) == pytest.approx(0.4 + 0.6 * 0.25 / 10, abs=0.015)
    assert noisy[noisy != 99].unique().tolist() == list(rows)
    levels = draw_logit_normal(20_000, generator)
    assert float((levels / (1 - levels)).log().std()) == pytest.approx(1, abs=0.03)
    assert float(levels.median()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("unit", ["token", "subsample", "scale", "whole"])
def test_next_x_predicts_each_entity_from_noisy_ones(make_model, vocabulary, documents, unit):
    """Of 2 rows of 2: block-causal over entities, clean targets at their own places, from what is noisy itself."""
    own = NextXConfig(unit=unit, wrong=0.3)
    objective = NextXLoss(make_model().eval(), vocabulary, own=own, columns={"image": 2})
    expected, count = 0.0, 0
    for document in documents:
        span, words = find_span(objective, document)
        ids, seen = list(document[0]), causal(len(document[0]))
        if span is not None:
            entity = {"token": [0, 1, 2, 3], "subsample": [0, 1, 2, 3], "scale": [0, 1, 1, 1], "whole": [0] * 4}[unit]
            if unit == "subsample":
                own_objective = number_entities(4, "subsample", 2, 2).tolist()
                assert own_objective == entity
            levels = draw_logit_normal(max(entity) + 1, span.generator)[torch.tensor(entity)]
            clean = torch.tensor(ids)[span.places]
            rows = vocabulary.get_block_range("image")
            noisy = add_noise(clean, levels, rows, objective.mask_id, 0.3, span.generator)
            for number, place in enumerate(span.places.tolist()):
                ids[place] = int(noisy[number])
                for other, one in enumerate(span.places.tolist()):
                    seen[place, one] = entity[other] <= entity[number]
        states = run(objective, ids, range(len(ids)), seen)
        wanted = words + ([] if span is None else [(p, document[0][p]) for p in span.places.tolist()])
        expected += sum(score(objective, states, place, target) for place, target in wanted)
        count += len(wanted)
    check_sum(objective, documents, expected, count)


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_any_order_is_the_density_of_each_code_given_those_before_it(make_model, vocabulary, documents, order):
    """One forward for each code: the words before, the codes of lower ranks, and a mask at the place asked for."""
    objective = AnyOrderLoss(make_model().eval(), vocabulary, own=AnyOrderConfig(order=order))
    expected, count = 0.0, 0
    for document in documents:
        span, words = find_span(objective, document)
        states = run(objective, document[0], range(len(document[0])), causal(len(document[0])))
        expected += sum(score(objective, states, place, target) for place, target in words)
        count += len(words)
        if span is None:
            continue
        ranks = draw_ranks(4, objective.own, span.generator)
        asked = sorted((int(rank), place) for place, rank in enumerate(ranks) if rank)
        assert [rank for rank, _ in asked] == list(range(1, len(asked) + 1))
        assert order == "random" or asked == sorted(asked, key=lambda pair: pair[1])
        first = int(span.places[0])
        for rank, place in asked:
            known = [one for one in range(4) if ranks[one] < rank]
            ids = [*document[0][:first], *(document[0][first + one] for one in known), objective.mask_id]
            positions = [*range(first), *(first + one for one in known), first + place]
            seen = causal(len(ids))
            for a, one in enumerate(known):
                for b, other in enumerate(known):
                    seen[first + a, first + b] = bool(ranks[other] <= ranks[one])
            seen[-1] = True
            states = run(objective, ids, positions, seen)
            expected += score(objective, states, len(ids) - 1, document[0][first + place])
            count += 1
    check_sum(objective, documents, expected, count)


def test_parallel_copies_leave_the_causal_loss_as_it_is(make_model, vocabulary, documents):
    """All labels as ever, and a noisy copy of the span that sees the words before it and itself."""
    own = ParallelCopyConfig(weight=0.5, wrong=0.2)
    objective = ParallelCopies(make_model().eval(), vocabulary, own=own)
    batch = arrange([documents])
    plain, parts = PackedLoss(make_model(), vocabulary)(*batch)
    expected, copied = float(plain.detach()), 0.0
    for document in documents:
        span, _ = find_span(objective, document)
        if span is None:
            continue
        first, clean = int(span.places[0]), torch.tensor(document[0])[span.places]
        level = torch.rand((), generator=span.generator).expand(4)
        rows = vocabulary.get_block_range("image")
        noisy = add_noise(clean, level, rows, objective.mask_id, 0.2, span.generator).tolist()
        seen = causal(first + 4)
        seen[first:, first:] = True
        states = run(objective, [*document[0][:first], *noisy], range(first + 4), seen)
        copied += sum(score(objective, states, first + n, int(code)) for n, code in enumerate(clean))
    found = check_sum(objective, documents, expected + 0.5 * copied, parts["weight"])
    assert found["metrics"]["loss_copies"] == (pytest.approx(copied, rel=1e-4), 8.0)
    assert found["blocks"] == {name: (pytest.approx(nats, rel=1e-4), n) for name, (nats, n) in parts["blocks"].items()}
    assert sum(float(term.detach()) for term in found["terms"].values()) == pytest.approx(expected + 0.5 * copied)


def test_token_unify_mixes_its_tasks_by_their_weights(make_model, vocabulary, documents):
    generator, counts = torch.Generator().manual_seed(0), dict.fromkeys(TASKS, 0)
    for _ in range(600):
        counts[draw_task(TokenUnifyConfig(random=3, next=2, next_all=1), generator)] += 1
    assert [count / 600 for count in counts.values()] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.06)

    only_next = TokenUnify(make_model(), vocabulary, own=TokenUnifyConfig(random=0, next_all=0))
    plain, parts = PackedLoss(make_model(), vocabulary)(*arrange([documents]))
    check_sum(only_next, documents, float(plain.detach()), parts["weight"])

    objective = TokenUnify(make_model(), vocabulary, own=TokenUnifyConfig(random=0, next=0))
    expected, count = 0.0, 0
    for document in documents:
        span, words = find_span(objective, document)
        ids, wanted = list(document[0]), list(words)
        if span is not None:
            assert draw_task(objective.own, span.generator) == "next_all"
            hidden = hide_by_task("next_all", span)
            begin = int(hidden.int().argmax())
            assert hidden.tolist() == [place >= begin for place in range(4)]
            for place in span.places[begin:].tolist():  # each from the words and the codes before `begin`
                ids[place] = objective.mask_id
                wanted.append((place - 1, document[0][place]))
        seen = causal(len(ids))
        if span is not None:
            seen[span.places[:, None], span.places] = True
        states = run(objective, ids, range(len(ids)), seen)
        expected += sum(score(objective, states, place, target) for place, target in wanted)
        count += len(wanted)
    parts = check_sum(objective, documents, expected, count)
    terms = {name: float(term.detach()) for name, term in parts["terms"].items()}
    assert set(terms) <= {"next_all", "others"} and sum(terms.values()) == pytest.approx(expected, rel=1e-4)
    span, _ = find_span(objective, documents[0])
    places = [int(hide_by_task("next_all", span).int().argmax()) for _ in range(400)]
    assert [places.count(n) / 400 for n in range(4)] == pytest.approx([0.25] * 4, abs=0.08)


def test_what_does_not_go_together_is_one_line(make_model, vocabulary):
    with pytest.raises(ValueError, match="objective.next_x: block 'image': a cell is a part of a raster"):
        NextXLoss(make_model(), vocabulary)
    with pytest.raises(ValueError, match="block 'image': cells of size 3 do not divide 2 rows of 2"):
        NextXLoss(make_model(), vocabulary, own=NextXConfig(size=3, columns={"image": 2}))
    for kind, wrong, message in (
        (TokenUnifyConfig, {"random": 0, "next": 0, "next_all": 0}, "are all 0; give one of them a weight"),
        (AnyOrderConfig, {"most_given": 1.0}, "most_given"),
        (ParallelCopyConfig, {"weight": 0}, "weight"),
        (NextXConfig, {"unit": "row"}, "unit"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**wrong)


def test_a_corpus_without_such_spans_is_told_once(make_model, vocabulary):
    module = TokenUnify(make_model(), vocabulary).train()
    ids = torch.tensor([[1, 2, 3, 4]])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2 * PATIENCE):
            module(ids, ids, torch.arange(4)[None])
    assert [str(one.message)[:30] for one in found] == ["objective.token_unify has foun"]


def test_a_vocabulary_of_words_has_no_spans(make_model):
    text = Vocabulary.build(20, [], [])
    with pytest.raises(ValueError, match="of a fixed number of codes, and the vocabulary has none"):
        AnyOrderLoss(make_model(), text)
