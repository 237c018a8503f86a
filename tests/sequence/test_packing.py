"""Packed rows hold every document once, whole, and apart from its neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.sequence.packing import pack, pad, stack
from unimodal.sequence.templates.own import IGNORE, Rendered

PAD = 9


def document(length: int, first: int = 10) -> Rendered:
    """Ids that say which document they are; even the first token labelled, to see that packing takes that off."""
    ids = np.arange(first, first + length, dtype=np.int64)
    return Rendered(ids, ids.copy(), np.full(length, 2, dtype=np.uint8))


@examples(100)
@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=30))
def test_every_document_comes_back_whole(lengths):
    documents = [document(n, 1000 * (i + 1)) for i, n in enumerate(lengths)]
    rows = pack(documents, 32, PAD)
    seen = []
    for row in rows:
        assert len(row.ids) == len(row.labels) == len(row.modality) == len(row.position_ids) == 32
        for segment, index in enumerate(row.documents, start=1):
            where = np.flatnonzero(row.segment_ids == segment)
            assert (np.diff(where) == 1).all()
            assert (row.ids[where] == documents[index].ids).all()
            assert (row.position_ids[where] == np.arange(len(where))).all()
            assert row.labels[where[0]] == IGNORE
            assert (row.labels[where[1:]] == documents[index].ids[1:]).all()
            assert (row.modality[where] == 2).all()
            seen.append(index)
        padding = row.segment_ids == 0
        assert (row.ids[padding] == PAD).all() and (row.labels[padding] == IGNORE).all()
        assert (row.modality[padding] == 0).all()
        assert not padding.any() or row.position_ids[padding][0] == 0
    assert sorted(seen) == list(range(len(lengths)))
    fill = sorted(int((row.segment_ids > 0).sum()) for row in rows)
    assert len(rows) < 2 or fill[0] + fill[1] > 32, "two rows could have been one"
    again = pack(documents, 32, PAD)
    assert all((a.ids == b.ids).all() for a, b in zip(rows, again, strict=True))


def test_no_query_sees_another_document_or_the_future():
    batch = stack(pack([document(5), document(9), document(3), document(12)], 16, PAD))
    mask = batch.make_attention_mask()  # [B, 1, N, N]
    assert mask.any(axis=-1).all(), "a query without a key makes NaN"
    for row, query, key in np.argwhere(mask[:, 0]):
        assert key <= query and batch.segment_ids[row, key] == batch.segment_ids[row, query]
    sizes = [5, 9, 3, 12]
    real = (mask[:, 0] & (batch.segment_ids > 0)[:, None, :]).sum()
    assert real == sum(n * (n + 1) // 2 for n in sizes)


def test_positions_alone_tell_documents_apart():
    """Hugging Face and the attention backends find the boundaries where a position is not one more than the last."""
    row = pack([document(5), document(9), document(1)], 20, PAD)[0]
    boundaries = np.flatnonzero(np.diff(row.position_ids, prepend=-2) != 1)
    assert boundaries.tolist() == np.flatnonzero(np.diff(row.segment_ids, prepend=-1) != 0).tolist()


def test_long_documents():
    documents = [document(40), document(8)]
    with pytest.raises(ValueError, match="document 0 has 40 tokens but a row holds 32"):
        pack(documents, 32, PAD)
    cut = pack(documents, 32, PAD, too_long="truncate")
    assert [row.documents for row in cut] == [(0,), (1,)]
    assert (cut[0].ids == documents[0].ids[:32]).all()
    assert [row.documents for row in pack(documents, 32, PAD, too_long="drop")] == [(1,)]
    with pytest.raises(ValueError, match="too_long"):
        pack(documents, 32, PAD, too_long="split")
    with pytest.raises(ValueError, match="length is 0"):
        pack(documents, 0, PAD)


def test_padding_without_packing():
    batch = pad([document(3), document(5)], PAD)
    assert batch.ids.shape == batch.labels.shape == (2, 5)
    assert batch.ids[0].tolist() == [10, 11, 12, PAD, PAD]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert pad([document(3)], PAD, length=8).ids.shape == (1, 8)
    with pytest.raises(ValueError, match="5 tokens but a row holds 4"):
        pad([document(5)], PAD, length=4)
    with pytest.raises(ValueError, match="no rows"):
        stack([])


def test_packing_many_documents_is_quick():
    rng = np.random.default_rng(0)
    documents = [document(int(n)) for n in rng.integers(4, 200, 3000)]
    rows = pack(documents, 512, PAD)
    used = sum(len(d) for d in documents) / (len(rows) * 512)
    assert used > 0.98
