"""The mixture keeps its shares, shows every document once an epoch, and resumes exactly, as do the batches."""

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.data.mixture import Batches, Mixture
from unimodal.sequence.templates.own import IGNORE, Rendered

PAD = 0


def documents(name: str, count: int, lengths=(3, 20)) -> list[Rendered]:
    """Documents whose first id tells which one it is."""
    rng = np.random.default_rng(count)
    made = []
    for index in range(count):
        ids = np.full(int(rng.integers(*lengths)), 1000 * (ord(name) - 96) + index, np.int64)
        labels = ids.copy()
        labels[0] = IGNORE
        made.append(Rendered(ids, labels, np.zeros(len(ids), np.uint8)))
    return made


SETS = {"a": documents("a", 30), "b": documents("b", 70), "c": documents("c", 11)}
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 0.5}


def drawn(mixture: Mixture, count: int) -> list[int]:
    return [int(mixture.next()[1].ids[0]) for _ in range(count)]


def test_shares_and_epochs():
    mixture = Mixture(SETS, WEIGHTS, seed=0)
    names = [mixture.next()[0] for _ in range(9000)]
    for name, weight in WEIGHTS.items():
        share = weight / 4.5
        assert abs(names.count(name) - 9000 * share) < 4 * np.sqrt(9000 * share * (1 - share))
        assert mixture.count_epochs()[name] == pytest.approx(names.count(name) / len(SETS[name]))


def test_every_document_of_a_set_once_an_epoch():
    mixture = Mixture(SETS, WEIGHTS, seed=0)
    of_a = (int(document.ids[0]) for name, document in iter(mixture.next, None) if name == "a")
    for _ in range(3):
        assert sorted(islice(of_a, 30)) == [1000 + index for index in range(30)]


@given(before=st.integers(0, 300), seed=st.integers(0, 1000))
def test_a_mixture_resumes_exactly(before, seed):
    mixture = Mixture(SETS, WEIGHTS, seed=seed)
    drawn(mixture, before)
    state = json.loads(json.dumps(mixture.state_dict()))
    expected = drawn(mixture, 60)
    resumed = Mixture(SETS, WEIGHTS, seed=seed)
    drawn(resumed, 7)
    resumed.load_state_dict(state)
    assert drawn(resumed, 60) == expected


def test_ranks_share_one_sequence():
    whole = drawn(Mixture(SETS, WEIGHTS, seed=5), 90)
    parts = [drawn(Mixture(SETS, WEIGHTS, seed=5, rank=rank, num_ranks=3), 30) for rank in range(3)]
    assert [document for group in zip(*parts, strict=True) for document in group] == whole


def test_seeds_differ_and_a_new_set_leaves_the_others_orders_alone():
    assert drawn(Mixture(SETS, WEIGHTS, seed=0), 50) != drawn(Mixture(SETS, WEIGHTS, seed=1), 50)

    def order_of_a(mixture):
        return list(islice((int(d.ids[0]) for name, d in iter(mixture.next, None) if name == "a"), 30))

    fewer = {name: SETS[name] for name in ("a", "b")}
    assert order_of_a(Mixture(SETS, WEIGHTS, seed=0)) == order_of_a(Mixture(fewer, seed=0))


def test_a_set_of_weight_zero_is_left_out():
    mixture = Mixture({**SETS, "empty": []}, {**WEIGHTS, "c": 0, "empty": 0}, seed=0)
    assert {mixture.next()[0] for _ in range(200)} == {"a", "b"}


def test_user_mistakes():
    with pytest.raises(ValueError, match="weights are given for"):
        Mixture(SETS, {"a": 1})
    with pytest.raises(ValueError, match="the weight of b is -1"):
        Mixture(SETS, {**WEIGHTS, "b": -1})
    with pytest.raises(ValueError, match="all weights are 0"):
        Mixture(SETS, dict.fromkeys(SETS, 0))
    with pytest.raises(ValueError, match="empty is empty"):
        Mixture({"empty": []})
    with pytest.raises(ValueError, match="shares"):
        Mixture(SETS, {**WEIGHTS, "a": 1}).load_state_dict(Mixture(SETS, WEIGHTS).state_dict())
    with pytest.raises(ValueError, match="seed 1 but this one has 0"):
        Mixture(SETS, WEIGHTS).load_state_dict(Mixture(SETS, WEIGHTS, seed=1).state_dict())
    with pytest.raises(ValueError, match="tokens_per_batch is 10"):
        Batches(Mixture(SETS), length=20, tokens_per_batch=10, pad_id=PAD)
    with pytest.raises(ValueError, match=r"more than 2 tokens \(length\)"):
        Batches(Mixture(SETS), length=2, tokens_per_batch=10, pad_id=PAD).next_batch()


def batches(arrangement: str, length: int = 24, seed: int = 0) -> Batches:
    mixture = Mixture(SETS, WEIGHTS, seed=seed)
    return Batches(mixture, length, 4 * length, PAD, arrangement, batches_per_window=5)


def fields(batch) -> list[np.ndarray]:
    return [batch.ids, batch.labels, batch.modality, batch.position_ids, batch.segment_ids]


def equal(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(fields(left), fields(right), strict=True))


@pytest.mark.parametrize("arrangement", ["pack", "pad"])
@pytest.mark.parametrize("before", [0, 1, 4, 5, 13, 27])
def test_batches_resume_exactly(arrangement, before):
    """Also in the middle of a window, and after a second save straight after the resume."""
    source = batches(arrangement)
    for _ in range(before):
        source.next_batch()
    state = json.loads(json.dumps(source.state_dict()))
    expected = [source.next_batch() for _ in range(20)]
    resumed = batches(arrangement)
    resumed.next_batch()
    resumed.load_state_dict(state)
    assert json.loads(json.dumps(resumed.state_dict())) == state
    assert all(equal(resumed.next_batch(), batch) for batch in expected)
    assert resumed.num_too_long == source.num_too_long


@pytest.mark.parametrize("arrangement", ["pack", "pad"])
def test_batches_hold_the_documents_of_the_mixture(arrangement):
    """The windows together hold the mixture's documents in any order, none lost, none twice; the budget is kept."""
    source, mixture = batches(arrangement), Mixture(SETS, WEIGHTS, seed=0)
    seen, sizes = [], []
    while len(seen) < 100 or source.state_dict()["dealt"]:  # to the end of a window
        batch = source.next_batch()
        sizes.append(batch.ids.size)
        assert batch.ids.size <= source.tokens_per_batch
        for row, segments in zip(batch.ids, batch.segment_ids, strict=True):
            for segment in range(1, segments.max() + 1):
                ids = row[segments == segment]
                assert len(set(ids.tolist())) == 1  # a document is never split or mixed
                seen.append((int(ids[0]), len(ids)))
    expected = [mixture.next()[1] for _ in range(len(seen))]
    assert sorted(seen) == sorted((int(document.ids[0]), len(document)) for document in expected)
    assert np.mean(sizes) > 0.5 * source.tokens_per_batch


@pytest.mark.parametrize("arrangement", ["pack", "pad"])
@pytest.mark.parametrize("lengths", [(3, 20), (60, 200), (2, 512)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_batch_is_nearly_empty_and_no_document_is_lost(arrangement, lengths, seed):
    """A batch of three documents would count as a step, and weigh as much as the full ones beside it."""
    sets = {name: documents(name, 150 + ord(name), lengths) for name in "abc"}
    made = Batches(Mixture(sets, seed=seed), 512, 1024, PAD, arrangement, batches_per_window=6)
    found = [made.next_batch() for _ in range(60)]
    sizes = [batch.ids.size if arrangement == "pad" else (batch.ids != PAD).sum() for batch in found]
    assert min(sizes) > (0.3 if arrangement == "pad" else 0.6) * 1024  # rows of one length may be few
    firsts = [int(one) for batch in found for one in batch.ids[(batch.position_ids == 0) & (batch.ids != PAD)]]
    assert sorted(firsts) == sorted(drawn(Mixture(sets, seed=seed), len(firsts)))


def test_too_long_documents_are_left_out_and_counted():
    source = batches("pack", length=10)
    lengths = []
    for _ in range(10):
        batch = source.next_batch()
        lengths += [int((row == segment).sum()) for row in batch.segment_ids for segment in range(1, row.max() + 1)]
    assert max(lengths) <= 10 and source.num_too_long > 0


def test_batches_of_other_settings_are_refused():
    with pytest.raises(ValueError, match="settings"):
        batches("pack").load_state_dict(batches("pad").state_dict())


@pytest.mark.parametrize("arrangement", ["pack", "pad"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_whole_pass_takes_every_document_once_and_ends_with_a_batch(arrangement, num_ranks):
    """Also of a set in which each document stands several times, at another place in every pass."""
    [once], passes = [documents("a", 53)], 3
    several = [Rendered(d.ids + 10_000 * place, d.labels, d.modality) for place in range(4) for d in once]

    def make(rank):
        mixture = Mixture({"a": several}, None, 7, rank, num_ranks, {"a": 53})
        return Batches(mixture, 24, 96, PAD, arrangement, batches_per_window=3, pass_draws=53)

    seen = [[] for _ in range(passes)]
    for rank in range(num_ranks):
        counted, batches = make(rank), make(rank)
        for number in range(passes):
            for _ in range(counted.count_pass()):
                batch = batches.next_batch()
                begins = (batch.position_ids == 0) & (batch.segment_ids > 0)
                seen[number] += batch.ids[begins].tolist()
    for number, ids in enumerate(seen):
        assert sorted(ids) == [1000 + index + 10_000 * number for index in range(53)]
    assert len({tuple(ids) for ids in seen}) == passes


def test_a_document_may_become_several_pieces_or_none():
    def fit(document):
        return [document[:5], document[5:17]] if len(document) > 12 else [document] if len(document) > 5 else []

    batches = Batches(Mixture({"a": SETS["a"]}), 12, 48, PAD, fit=fit, pass_draws=30)
    tokens = 0
    for _ in range(Batches(Mixture({"a": SETS["a"]}), 12, 48, PAD, fit=fit, pass_draws=30).count_pass()):
        tokens += int((batches.next_batch().segment_ids > 0).sum())
    assert tokens == sum(min(len(document), 17) for document in SETS["a"] if len(document) > 5)
    assert batches.num_too_long == sum(len(document) <= 5 for document in SETS["a"])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
def test_another_number_of_ranks_leaves_no_document_out(before, after):
    def make(rank, num_ranks):
        return Batches(Mixture({"a": SETS["b"]}, None, 3, rank, num_ranks), 24, 48, PAD, batches_per_window=2)

    def take(batches, num):
        found = [batches.next_batch() for _ in range(num)]
        return [row for b in found for row in b.ids[(b.position_ids == 0) & (b.segment_ids > 0)].tolist()]

    first = [make(rank, before) for rank in range(before)]
    seen = [row for batches in first for row in take(batches, 5)]
    states = [json.loads(json.dumps(batches.state_dict())) for batches in first]
    then = []
    for rank in range(after):
        batches = make(rank, after)
        batches.load_other_ranks(states)
        then += take(batches, 20)
    assert {*seen, *then} >= {2000 + index for index in range(70)}
    assert len(then) == len(set(then)) or len(then) > 70
