"""The loss of draft heads against a plain loop over answers, packed and alone; and which weights it moves."""

import pytest
import torch

from unimodal.model.draft_heads import DraftHeadSettings, make_draft_heads
from unimodal.objectives.future_tokens import compute_future_losses, find_answer_starts, sum_future_losses
from unimodal.objectives.next_token import IGNORE, HeadGroups, shift_labels

WIDTH = 16
SETTINGS = {
    "future": DraftHeadSettings(num_ahead=4, num_states=3, num_vectors=2),
    "medusa": DraftHeadSettings(kind="medusa", num_ahead=3),
    "medusa, own rows": DraftHeadSettings(kind="medusa", num_ahead=2, own_rows=True),
}


@pytest.fixture(scope="module")
def documents(vocabulary):
    """(ids, labels): a picture that is asked for, one that is named, and two answers of one conversation."""
    span = vocabulary.encode_span
    picture, sound = list(span("image", [0, 15, 7, 7])), list(span("audio", [1, 2, 11]))
    asked = ([1, 3, 4, *picture, 6], [IGNORE] * 3 + [*picture, 6])
    named = ([1, *picture, 5, 9, 8, 2], [IGNORE] * (1 + len(picture)) + [5, 9, 8, 2])
    twice = ([1, 3, 5, 7, 4, *sound, 2], [IGNORE, IGNORE, 5, 7, IGNORE, *sound, 2])
    return [asked, named, twice]


@pytest.fixture(scope="module")
def network(vocabulary):
    """A table of states by token and position, an embedding and a head: a frozen LM in small."""
    torch.manual_seed(0)
    states = torch.randn(vocabulary.size, 40, WIDTH)
    return states, torch.nn.Embedding(vocabulary.size, WIDTH), torch.nn.Linear(WIDTH, vocabulary.size, bias=False)


def arrange(rows):
    """Documents one behind the other in rows → ids, labels and positions, [B, N]."""
    length = max(sum(len(ids) for ids, _ in row) for row in rows) + 1
    ids, labels, positions = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    labels.fill_(IGNORE)
    for number, row in enumerate(rows):
        at = 0
        for own, learnt in row:
            end = at + len(own)
            ids[number, at:end], labels[number, at:end] = torch.tensor(own), torch.tensor(learnt)
            positions[number, at:end] = torch.arange(len(own))
            labels[number, at] = IGNORE
            at = end
        positions[number, at:] = torch.arange(length - at)
    return ids, labels, positions


def compute(heads, network, vocabulary, rows):
    states, embed, head = network
    ids, labels, positions = arrange(rows)
    groups, targets = HeadGroups.from_vocabulary(vocabulary), shift_labels(labels, positions)
    hidden = states[ids, positions]
    return compute_future_losses(heads, hidden, ids, targets, positions, embed, head, groups)


@torch.no_grad()
def loop(heads, network, vocabulary, documents):
    """By hand: for every answer, every state but the last, every place: the log-probability among the legal rows."""
    states, embed, head = network
    groups, num = HeadGroups.from_vocabulary(vocabulary), heads.num_ahead
    found = [[] for _ in range(num)]
    for ids, labels in documents:
        runs, at = [], 1
        while at < len(ids):
            end = at
            while end < len(ids) and labels[end] != IGNORE:
                end += 1
            runs += [(at, end)] if end > at else []
            at = end + 1
        for start, end in runs:  # the answer is ids[start:end]; its first state is that before it
            for t in range(start - 1, end - 2):
                old = max(start - 1, t - heads.num_states + 1)
                known = torch.stack([states[ids[s], s] for s in range(old, t + 1)])[None]
                passing = heads.begin(known)
                for place in range(num):
                    if t + 2 + place >= end:
                        break
                    before, target = ids[t + 1 + place], ids[t + 2 + place]
                    out = passing.read(embed(torch.tensor([before])))
                    own = heads.get_head(place)
                    logits = (head if own is None else own)(out)[0]
                    [group], [_] = groups.assign(torch.tensor([target]), torch.tensor([before]))
                    spec = groups.groups[int(group)]
                    legal = [row for piece in spec.pieces for row in piece] + list(spec.exits)
                    found[place].append(float(logits[legal].logsumexp(0) - logits[target]))
    return found


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_loss_is_the_plain_loops_packed_or_not(kind, network, vocabulary, documents):
    torch.manual_seed(1)
    heads = make_draft_heads(SETTINGS[kind], WIDTH, vocabulary.size)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = loop(heads, network, vocabulary, documents)
    assert min(map(len, expected)) > 4
    for rows in ([[one] for one in documents], [documents], [documents[1:], documents[:1]]):
        losses = compute(heads, network, vocabulary, rows)
        for one, right in zip(losses, expected, strict=True):
            torch.testing.assert_close(one.loss.sort().values, torch.tensor(right).sort().values, atol=1e-5, rtol=1e-5)
        summed = sum_future_losses(losses, 0.5)
        weights = [0.5 ** (place + 1) for place in range(len(expected))]
        total = sum(weight * sum(right) for weight, right in zip(weights, expected, strict=True))
        assert float(summed.total.detach()) == pytest.approx(total, rel=1e-5)
        assert summed.weight == pytest.approx(sum(w * len(r) for w, r in zip(weights, expected, strict=True)))
        assert summed.per_block["ahead_1"] == (pytest.approx(sum(expected[0]), rel=1e-5), len(expected[0]))


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_weight_of_the_heads_learns_and_none_of_the_model(kind, network, vocabulary, documents):
    heads = make_draft_heads(SETTINGS[kind], WIDTH, vocabulary.size).double()
    states, embed, head = (part.double() for part in network)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    embed.requires_grad_(False), head.requires_grad_(False)
    network = (states, embed, head)
    total = sum_future_losses(compute(heads, network, vocabulary, [documents])).total
    total.backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in heads.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope, sums = float((parameter.grad * step).sum()), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(step, alpha=sign * 1e-5)
                sums.append(float(sum_future_losses(compute(heads, network, vocabulary, [documents])).total))
                parameter.sub_(step, alpha=sign * 1e-5)
        assert (sums[0] - sums[1]) / 2e-5 == pytest.approx(slope, rel=1e-3, abs=1e-4), name
    for part in network[1:]:
        part.float().requires_grad_(True)


def test_answers_begin_where_their_targets_do():
    targets = torch.tensor([[IGNORE, 5, 5, IGNORE, 5, 5, 5]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1]])
    assert find_answer_starts(targets, positions).tolist() == [[0, 1, 1, 3, 4, 5, 5]]


def test_some_of_the_states_are_learnt_from_by_chance(network, vocabulary, documents):
    heads = make_draft_heads(SETTINGS["medusa"], WIDTH)
    states, embed, head = network
    ids, labels, positions = arrange([documents])
    groups, targets = HeadGroups.from_vocabulary(vocabulary), shift_labels(labels, positions)
    rest = (heads, states[ids, positions], ids, targets, positions, embed, head, groups)
    whole, found = compute_future_losses(*rest)[0].loss.tolist(), set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        some = compute_future_losses(*rest, most=3, generator=generator)[0].loss.tolist()
        assert len(some) == 3 and all(min(abs(one - other) for other in whole) < 1e-6 for one in some)
        found.add(tuple(some))
    assert len(found) > 10


def test_a_batch_without_answers_has_no_loss(network, vocabulary, documents):
    heads = make_draft_heads(SETTINGS["future"], WIDTH)
    silent = [([1, 2, 3, 4], [IGNORE] * 4)]
    summed = sum_future_losses(compute(heads, network, vocabulary, [silent]))
    assert float(summed.total) == 0 and summed.count == 0 and summed.weight == 0
    summed.total.backward()
