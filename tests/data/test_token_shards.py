"""Shards give back what was written, survive interruption, and are read in a seeded order that resumes exactly."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.data.order import Cursor
from unimodal.data.token_shards import (
    Skipped,
    TokenShards,
    is_done,
    prepare_shards,
    write_shard,
    write_token_shards,
)
from unimodal.sequence.templates.own import IGNORE, Rendered

HASHES = {"text": "aa", "image": "bb"}


def make(index: int, vocabulary_size: int = 9000) -> Rendered:
    """A document that depends on its number alone."""
    rng = np.random.default_rng(index)
    length = int(rng.integers(1, 30))
    ids = rng.integers(0, vocabulary_size, length)
    labels = np.where(rng.random(length) < 0.5, ids, IGNORE)
    return Rendered(ids, labels, rng.integers(0, 4, length).astype(np.uint8))


def write(folder, num_documents=25, documents_per_shard=10, make=make, vocabulary_size=9000, **options):
    return write_token_shards(
        folder, make, num_documents, vocabulary_size, HASHES, documents_per_shard=documents_per_shard, **options
    )


def same(left: Rendered, right: Rendered) -> bool:
    names = ("ids", "labels", "modality")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


@pytest.mark.parametrize("vocabulary_size", [9000, 1 << 16, (1 << 16) + 1, 200_000])
def test_documents_come_back_whole(tmp_path, vocabulary_size):
    """Also ids beyond 16 bits and the largest id; labels and modality survive the flags."""

    def biggest(index):
        made = make(index, vocabulary_size)
        made.ids[0] = made.labels[0] = vocabulary_size - 1
        return made

    shards = write(tmp_path / "s", make=biggest, vocabulary_size=vocabulary_size)
    assert len(shards) == 25 and shards.manifest.num_shards == 3
    for index in range(25):
        read = shards[index]
        assert same(read, biggest(index))
        assert read.ids.dtype == read.labels.dtype == np.int64 and read.modality.dtype == np.uint8
        assert shards.lengths[index] == len(read)
    assert shards.num_tokens == sum(len(make(index)) for index in range(25))
    with pytest.raises(IndexError):
        shards[25]
    shards.verify()


def test_shards_written_in_any_order_are_the_same_bytes(tmp_path):
    """So each of several workers can write some of them."""
    manifest = write(tmp_path / "one").manifest
    folder = tmp_path / "many"
    prepare_shards(folder, manifest)
    for shard in (1, 2, 0):
        with pytest.raises(ValueError, match="missing or unfinished"):
            TokenShards(folder)
        write_shard(folder, manifest, shard, map(make, manifest.list_documents(shard)))
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 1 + 3 * 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (folder / name).read_bytes()


def test_a_shard_of_other_media_files_is_not_done(tmp_path):
    manifest = write(tmp_path).manifest
    write_shard(tmp_path, manifest, 1, map(make, manifest.list_documents(1)), media="aa")
    assert [is_done(tmp_path, manifest, shard) for shard in range(3)] == [True, False, True]
    assert is_done(tmp_path, manifest, 1, "aa") and not is_done(tmp_path, manifest, 1, "bb")
    assert same(TokenShards(tmp_path)[10], make(10))  # whoever trains does not ask for them


def test_an_interrupted_run_goes_on_and_redoes_nothing_that_is_done(tmp_path):
    made = []

    def failing(index):
        if index == 17:
            raise KeyboardInterrupt
        made.append(index)
        return make(index)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", make=failing)
    assert not list((tmp_path / "s").glob(".partial*"))
    assert made == list(range(17))
    again = []
    shards = write(tmp_path / "s", make=lambda index: again.append(index) or make(index))
    assert again == list(range(10, 25))
    assert all(same(shards[index], make(index)) for index in range(25))


def test_a_shard_without_its_marker_or_with_short_files_never_counts(tmp_path):
    folder = tmp_path / "s"
    write(folder)
    (folder / "shard-00001" / "done.json").unlink()
    with pytest.raises(ValueError, match="shard-00001 is missing or unfinished"):
        TokenShards(folder)
    write(folder)
    whole = (folder / "shard-00002" / "ids.bin").read_bytes()
    (folder / "shard-00002" / "ids.bin").write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="wrong size"):
        TokenShards(folder)
    (folder / "shard-00002" / "ids.bin").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match="damaged"):
        TokenShards(folder).verify()


def test_another_tokenizer_or_plan_is_an_error_that_names_both(tmp_path):
    write(tmp_path / "s", record={"weights": 1})
    with pytest.raises(ValueError, match="image tokenizer bb but cc"):
        TokenShards(tmp_path / "s", {"image": "cc", "text": "aa"})
    TokenShards(tmp_path / "s", {"image": "bb"})
    with pytest.raises(ValueError, match="holds other shards: num_documents is 25, not 30"):
        write(tmp_path / "s", num_documents=30, record={"weights": 1})
    with pytest.raises(ValueError, match="holds other shards: record"):
        write(tmp_path / "s", record={"weights": 2})
    with pytest.raises(ValueError, match="no token shards"):
        TokenShards(tmp_path)
    (tmp_path / "s" / "manifest.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match="not a manifest"):
        TokenShards(tmp_path / "s")


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="document 0 is empty or has ids outside 0 … 9"):
        write(tmp_path / "s", vocabulary_size=10)


@given(num_documents=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_an_epoch_visits_every_document_once(num_documents, seed):
    cursor = Cursor(num_documents, seed)
    for epoch in (1, 2):
        assert sorted(cursor.next() for _ in range(num_documents)) == list(range(num_documents))
        assert (cursor.epoch, cursor.position) == (epoch, 0)


@given(num_documents=st.integers(1, 200), before=st.integers(0, 500))
def test_a_cursor_resumes_exactly(num_documents, before):
    cursor = Cursor(num_documents, seed=3)
    for _ in range(before):
        cursor.next()
    state = json.loads(json.dumps(cursor.state_dict()))
    expected = [cursor.next() for _ in range(50)]
    resumed = Cursor(num_documents, seed=3)
    resumed.load_state_dict(state)
    assert [resumed.next() for _ in range(50)] == expected


def test_the_order_is_shuffled_and_depends_on_seed_and_epoch():
    """Rank correlation of place and document is small, and so is the agreement of two epochs or seeds."""
    count = 5000

    def order(cursor):
        return np.array([cursor.next() for _ in range(count)])

    cursor = Cursor(count, seed=0)
    first, second, other = order(cursor), order(cursor), order(Cursor(count, seed=1))
    for permutation in (first, second, other):
        assert abs(np.corrcoef(permutation, np.arange(count))[0, 1]) < 0.05
        assert abs(np.corrcoef(permutation[1:], permutation[:-1])[0, 1]) < 0.05
    for left, right in ((first, second), (first, other)):
        assert (left == right).mean() < 0.01 and abs(np.corrcoef(left, right)[0, 1]) < 0.05


def test_a_cursor_of_other_data_is_refused():
    cursor = Cursor(10, seed=0)
    with pytest.raises(ValueError, match="num_documents 10 but this data has 11"):
        Cursor(11, seed=0).load_state_dict(cursor.state_dict())
    with pytest.raises(ValueError, match="seed 0 but this data has 1"):
        Cursor(10, seed=1).load_state_dict(cursor.state_dict())


@pytest.mark.parametrize("missing", [{3}, {0, 9, 10, 24}, set(range(10, 20)), set(range(25))])
def test_skipped_documents_leave_no_gap_and_are_listed(tmp_path, missing):
    """Also where a whole shard, or all of them, have none."""

    def some(index):
        return Skipped(f"row {index}") if index in missing else make(index)

    shards = write(tmp_path / "s", make=some)
    kept = [index for index in range(25) if index not in missing]
    assert len(shards) == len(shards.lengths) == len(kept)
    assert all(same(shards[place], make(index)) for place, index in enumerate(kept))
    assert shards.skipped == [f"row {index}" for index in sorted(missing)]
    counts = np.bincount(np.concatenate([[], *(make(index).modality for index in kept)]).astype(int), minlength=4)
    assert list(shards.count_tokens(("text", "image", "audio", "video")).values()) == counts.tolist()
    shards.verify()
