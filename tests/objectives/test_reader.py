"""A reader learnt through a model: its embeddings at the right places, the loss by hand, and what it learns to say."""

import numpy as np
import pytest
import torch
from torch import nn

from unimodal.objectives.next_token import HeadGroups
from unimodal.objectives.reader import ReaderLoss
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.loss import read_values, to_tensors

FEATURES = 3


class MapReader(nn.Module):
    """What `ReaderLoss` asks of a reader, over known features."""

    num_features = FEATURES

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 32)

    def map(self, seen):
        return self.linear(seen[0])


SEEN = torch.randn(5, FEATURES, 6, generator=torch.Generator().manual_seed(0))


def find_seen(numbers):
    return (SEEN[list(numbers)],)


def make_document(vocabulary, pictures, answer):
    """Pictures by number, in a question, and the words that answer."""
    start, end, pad = (
        vocabulary.get_start_id("image"),
        vocabulary.get_end_id("image"),
        vocabulary.get_control_id("<|pad|>"),
    )
    ids, numbers = [1], [0]
    for picture in pictures:
        ids += [start, *[pad] * FEATURES, end]
        numbers += [0, *[picture + 1] * FEATURES, 0]
    labels = [-100] * len(ids) + answer
    ids, numbers = np.array(ids + answer), np.array(numbers + [0] * len(answer), dtype=np.float32)
    return Rendered(ids, np.array(labels), np.zeros(len(ids), np.uint8), values=numbers[:, None])


def compute(objective, documents, length=48):
    batch = stack(pack(documents, length, 0))
    return objective(*to_tensors(batch), **read_values(batch))


@torch.no_grad()
def explain(objective, vocabulary, document):
    """The summed cross-entropy of one document, its features put in one by one."""
    model, groups, total = objective.model, HeadGroups.from_vocabulary(vocabulary), 0.0
    embedded, taken = [], {}
    for row, number in zip(document.ids.tolist(), document.values[:, 0].astype(int).tolist(), strict=True):
        if number:
            place = taken.setdefault(number, 0) % FEATURES
            taken[number] += 1
            embedded.append(objective.reader.linear(SEEN[number - 1, place]))
        else:
            embedded.append(model.get_input_embeddings()(torch.tensor([row]))[0])
    states = model.get_decoder()(inputs_embeds=torch.stack(embedded)[None], use_cache=False).last_hidden_state[0]
    logits = model.get_output_embeddings()(states)
    for at, label in enumerate(document.labels.tolist()):
        if label != -100:
            ids = torch.from_numpy(document.ids)
            [group], _ = groups.assign(ids[at : at + 1], ids[at - 1 : at])
            legal = [row for piece in groups.groups[int(group)].pieces for row in piece]
            total += float(logits[at - 1, legal].logsumexp(0) - logits[at - 1, label])
    return total


def test_the_loss_is_that_of_each_document_by_hand_packed_or_not(make_model, vocabulary):
    torch.manual_seed(0)
    objective = ReaderLoss(make_model(), vocabulary, MapReader(), find_seen)
    documents = [
        make_document(vocabulary, [2], [3, 4, 5]), make_document(vocabulary, [0, 2], [6, 7]),
        make_document(vocabulary, [], [8, 9]), make_document(vocabulary, [4, 4, 1], [3]),
    ]  # fmt: skip
    expected = [explain(objective, vocabulary, one) for one in documents]
    for document, wanted in zip(documents, expected, strict=True):
        total, parts = compute(objective, [document])
        assert float(total.detach()) == pytest.approx(wanted, rel=1e-4)
        assert parts["weight"] == (document.labels != -100).sum()
    total, _ = compute(objective, documents)
    assert float(total.detach()) == pytest.approx(sum(expected), rel=1e-4)
    total.backward()
    weight = objective.reader.linear.weight
    with torch.no_grad():
        at, ends = int(weight.grad.abs().argmax()), []
        for step in (1e-2, -2e-2):
            weight.view(-1)[at] += step
            ends.append(sum(explain(objective, vocabulary, one) for one in documents))
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(weight.grad.view(-1)[at]), rel=0.05)


def test_a_map_alone_makes_a_frozen_model_say_what_is_seen(make_model, vocabulary):
    torch.manual_seed(0)
    model = make_model().requires_grad_(False)
    objective = ReaderLoss(model, vocabulary, MapReader(), find_seen)
    documents = [make_document(vocabulary, [picture], [3 + picture]) for picture in range(5)]
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(objective.reader.parameters(), lr=0.05)
    first = float(compute(objective, documents)[0].detach())
    for _ in range(60):
        optimizer.zero_grad()
        total, _ = compute(objective, documents)
        total.backward()
        optimizer.step()
    assert float(total.detach()) < 0.2 * first
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_batch_without_pictures_reaches_the_reader_too(make_model, vocabulary):
    objective = ReaderLoss(make_model(), vocabulary, MapReader(), find_seen)
    total, _ = compute(objective, [make_document(vocabulary, [], [3, 4])])
    total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.reader.parameters())
