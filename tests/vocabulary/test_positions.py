"""Rows and positions: what is folded comes back, in lists and arrays, and what is out of order is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, parse_vocabulary
from unimodal.vocabulary.positions import sum_blocks, unfold


def groups(name, *sizes, layout="flat"):
    return [Block(name=name, modality=name, group=g, size=size, layout=layout) for g, size in enumerate(sizes)]


def build(image="summed", audio="summed"):
    blocks = [*groups("image", 9, 5, 7, layout=image), *groups("audio", 4, 6, layout=audio)]
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
    return Vocabulary.build(20, blocks, layouts)


def render(vocabulary, picture, sound, words):
    """Words, a picture, a sound of its own length, words; labels on all but the first words."""
    rows = [
        *words,
        *vocabulary.encode_span("image", picture),
        *vocabulary.encode_span("audio", sound),
        *words,
    ]
    ids = np.array(rows, dtype=np.int64)
    labels = np.where(np.arange(len(ids)) < len(words), IGNORE, ids)
    return Rendered(ids, labels, np.zeros(len(ids), np.uint8))


def codes(data, steps, sizes):
    return [[data.draw(st.integers(0, size - 1)) for size in sizes] for _ in range(steps)]


@examples(30)
@given(st.data(), st.lists(st.integers(0, 19), min_size=1, max_size=5), st.integers(1, 4))
def test_what_is_folded_comes_back(data, words, length):
    for vocabulary in (build(), build(audio="flat")):
        document = render(vocabulary, codes(data, 4, (9, 5, 7)), codes(data, length, (4, 6)), words)
        positions = vocabulary.positions
        folded, begun = positions.fold(document.ids.tolist())
        assert begun == [] and unfold(folded) == document.ids.tolist()
        sound = length if vocabulary.is_summed("audio") else 2 * length
        assert len(folded) == positions.count(document.ids) == 2 * len(words) + (2 + 4) + (2 + sound)
        assert vocabulary.count_span_positions("audio", length) == 2 + sound
        whole = document.fold(positions)
        rows = np.concatenate([whole.ids[:, None], whole.further], 1)
        assert rows[rows >= 0].tolist() == document.ids.tolist() and len(whole) == len(folded)
        assert ((whole.labels == whole.ids) | (whole.labels == IGNORE)).all() and whole.labels[len(words)] >= 0
        assert whole.fold(positions) is whole
        cut = data.draw(st.integers(0, len(document.ids)))
        head, rest = positions.fold(document.ids[:cut].tolist())
        assert [*unfold(head), *rest] == document.ids[:cut].tolist()
        assert positions.count(document.ids[:cut]) == len(head) + bool(rest)


def test_packed_documents_keep_all_their_codes():
    vocabulary = build()
    rng = np.random.default_rng(0)
    documents = [
        render(vocabulary, rng.integers(0, 5, (4, 3)), rng.integers(0, 4, (n, 2)), [1] * n).fold(vocabulary.positions)
        for n in (1, 3, 2, 5)
    ]
    rows = pack(documents, 32, pad_id=0)
    batch = stack(rows)
    assert batch.further.shape == (*batch.ids.shape, 2)
    for row, packed in enumerate(rows):
        for segment, number in enumerate(packed.documents, start=1):
            inside = batch.segment_ids[row] == segment
            np.testing.assert_array_equal(batch.further[row][inside], documents[number].further)
        assert (batch.further[row][batch.segment_ids[row] == 0] == -1).all()


def test_the_layout_is_saved_and_a_flat_vocabulary_says_nothing_of_it():
    flat, summed = build("flat", "flat"), build()
    assert all("layout" not in block for block in flat.to_dict()["blocks"])
    assert parse_vocabulary(json.loads(json.dumps(summed.to_dict()))) == summed != flat
    assert flat.positions.is_flat and summed.positions.width == 3
    assert flat.positions.fold([3, 99_999]) == ([3, 99_999], [])  # ids of features lie beyond the rows


@pytest.mark.parametrize(
    "rows", ["image.1", "image image", "image image.1 image.1", "image audio.1 image.2", "image 3"]
)
def test_codes_out_of_order_are_refused(rows):
    vocabulary = build()
    blocks = {block.label: block.start for block in vocabulary.blocks}
    ids = [blocks.get(name) if name in blocks else int(name) for name in rows.split()]
    with pytest.raises(ValueError, match="stand together, in the order of their groups"):
        vocabulary.positions.fold(ids)
    with pytest.raises(ValueError, match="out of order or not complete"):
        vocabulary.positions.fold_array(np.array(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: sum_blocks(build().blocks, ["video"]), "summed names 'video', but there are codes of image, audio"),
        (lambda: sum_blocks(groups("image", 9), ["image"]), "block 'image' has one code a step; leave it out"),
        (
            lambda: Vocabulary.build(9, [*groups("image", 4), *groups("image", 4, 4, layout="summed")[1:]]),
            "image.1 is summed and image flat",
        ),
        (
            lambda: Vocabulary.build(
                9,
                [*groups("image", 4, 4, layout="summed"), *groups("video", 4, 4)],
                [SpanLayout("video", [Segment("image", 2), Segment("video", 2)])],
            ),
            "'video' mixes flat and summed blocks",
        ),
    ],
)
def test_what_cannot_be_summed_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        change()
