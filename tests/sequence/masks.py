"""What masking promises of every sequence format."""

import numpy as np

from unimodal.sequence.document import Document
from unimodal.sequence.templates.own import IGNORE


def check_masks(template, document, masks):
    """Turns that are masked keep their ids and lose their labels: a mask and its opposite share all labels out."""

    def render(learn):
        turns = [type(turn)(turn.role, turn.parts, keep) for turn, keep in zip(document.turns, learn, strict=False)]
        return template.render(Document(turns))

    masks = masks[: len(document.turns)]
    assert len(masks) == len(document.turns)
    whole, some, others = template.render(document), render(masks), render([not mask for mask in masks])
    for one in (some, others):
        assert np.array_equal(one.ids, whole.ids) and np.array_equal(one.modality, whole.modality)
    assert not ((some.labels != IGNORE) & (others.labels != IGNORE)).any()
    assert np.array_equal(np.maximum(some.labels, others.labels), whole.labels)
    answers = [keep for turn, keep in zip(document.turns, masks, strict=True) if turn.role == "assistant"]
    assert bool((some.labels != IGNORE).any()) == any(answers)
