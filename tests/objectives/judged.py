"""Pairs and labelled answers over the tests' vocabulary, packed, and each answer alone under a stock model."""

import torch

from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered, join_group

PAD = 0


def make_answers(vocabulary, num=6, seed=0):
    """(question, chosen answer, rejected answer) of ragged lengths, of text and pictures; of each the ids."""
    g = torch.Generator().manual_seed(seed)

    def text(length):
        return torch.randint(1, 20, (length,), generator=g).tolist()

    def picture():
        return vocabulary.encode_span("image", torch.randint(0, 16, (4,), generator=g))

    found = []
    for number in range(num):
        sides = [text(1 + number % 3), text(2 + number % 4)]
        if number % 2:
            sides = [side + picture() for side in sides]
        found.append((text(2 + number % 3), *sides))
    return found


def render(question, answer):
    import numpy as np

    ids = np.array(question + answer)
    labels = np.array([-100] * len(question) + answer)
    return Rendered(ids, labels, np.zeros(len(ids), np.uint8))


def pack_documents(items, length=64):
    """Rendered documents or groups → the tensors of one batch, and its values."""
    batch = stack(pack(items, length, PAD))
    tensors = [torch.from_numpy(array) for array in (batch.ids, batch.labels, batch.position_ids)]
    return tensors, torch.from_numpy(batch.values)


def pack_pairs(answers, length=64):
    pairs = [
        join_group([render(question, chosen).give_values(1), render(question, rejected).give_values(-1)])
        for question, chosen, rejected in answers
    ]
    return pack_documents(pairs, length)


def score_alone(model, question, answer):
    """The log-probability of each token of an answer under a stock model, alone in its batch: [tokens]."""
    ids = torch.tensor([question + answer])
    found = model(ids).logits[0].log_softmax(-1)
    return found[len(question) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
