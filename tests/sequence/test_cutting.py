"""Rows that are too long: cut where no medium is, into pieces that give the document again. The last answer alone."""

import random

import numpy as np
import pytest

from unimodal.sequence.cutting import RowFitter, keep_last_answer
from unimodal.sequence.document import Document, Image, Text, Turn
from unimodal.sequence.templates.own import IGNORE, Rendered


def make_document(rng, template, num_turns):
    """Turns of words and pictures; every second one is an answer."""
    size = template.vocabulary.get_block_range("image")
    per_picture = sum(s.count for s in template.vocabulary.get_layout("image").segments)
    turns = []
    for number in range(num_turns):
        parts = []
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.4:
                parts.append(Image(codes=np.array([rng.randrange(len(size)) for _ in range(per_picture)])[:, None]))
            else:
                parts.append(Text(" ".join(["red", "apple"] * rng.randint(1, 6))))
        turns.append(Turn("assistant" if number % 2 else "user", parts))
    return template.render(Document(turns))


def count_pictures(ids, template):
    start, end = template.vocabulary.get_start_id("image"), template.vocabulary.get_end_id("image")
    assert list(ids).count(start) == list(ids).count(end)
    inside = False
    for row in ids:  # start and end alternate: no span was cut
        assert not (row == start and inside) and not (row == end and not inside)
        inside = row == start or (inside and row != end)
    return list(ids).count(start)


def test_pieces_give_the_document_again_and_no_picture_is_cut(campaign, template):
    for rng in campaign(slice=25, whole=1000):
        document = make_document(rng, template, rng.randint(2, 9))
        longest = template.vocabulary.count_span_rows("image") + rng.randint(1, 120)
        fit = RowFitter(template.vocabulary, longest, "split")
        pieces = fit(document)
        assert all(0 < len(piece) <= longest for piece in pieces)
        for piece in pieces:
            count_pictures(piece.ids, template)
        if len(document) <= longest:
            assert pieces == [document]
            continue
        learnt = sum(int((piece.labels[1:] != IGNORE).sum()) for piece in pieces)
        all_learnt = int((document.labels != IGNORE).sum())
        assert all_learnt - len(pieces) - 1 <= learnt <= all_learnt  # the first token of a piece is not predicted
        [first] = RowFitter(template.vocabulary, longest, "truncate")(document) or [None]
        if first is not None:
            assert (first.ids == document.ids[: len(first)]).all()
        assert RowFitter(template.vocabulary, longest, "drop")(document) == []


def test_a_picture_that_is_longer_than_a_row_is_left_out_and_the_rest_kept(template):
    words = Document([Turn("user", [Text("red " * 4)]), Turn("assistant", [Text("apple " * 4)])])
    text = template.render(words)
    per_picture = sum(s.count for s in template.vocabulary.get_layout("image").segments)
    assert len(text) < per_picture
    picture = Image(codes=np.zeros((per_picture, 1), np.int64))
    both = template.render(Document([*words.turns[:1], Turn("assistant", [picture, Text("apple " * 4)])]))
    pieces = RowFitter(template.vocabulary, len(text) - 2, "split")(both)
    assert pieces and all(count_pictures(piece.ids, template) == 0 for piece in pieces)


def test_only_the_last_answer_is_learnt(template):
    turns = [Turn("user", [Text("red")]), Turn("assistant", [Text("apple")])]
    once, thrice = template.render(Document(turns)), template.render(Document(turns * 3))
    [masked] = RowFitter(template.vocabulary, 500, mask_history=True)(thrice)
    assert (masked.ids == thrice.ids).all() and (masked.labels[-len(once) + 1 :] == once.labels[1:]).all()
    assert (masked.labels != IGNORE).sum() == (once.labels != IGNORE).sum() * 1 == (thrice.labels != IGNORE).sum() // 3
    nothing = Rendered(np.arange(3), np.full(3, IGNORE), np.zeros(3, np.uint8))
    assert keep_last_answer(nothing) is nothing


@pytest.mark.parametrize("mode", ["drop", "error"])
def test_long_documents_are_left_out_by_default(template, mode):
    document = make_document(random.Random(1), template, 6)
    assert RowFitter(template.vocabulary, len(document) - 1, mode)(document) == []
    assert RowFitter(template.vocabulary, len(document), mode)(document) == [document]
