"""Records by key in append-only files: what one process writes the others read, and a kill costs no whole record."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from unimodal.corpus import record_cache
from unimodal.corpus.record_cache import RecordCache

ROOT = Path(__file__).resolve().parents[2]


def key(number: int) -> bytes:
    """Three numbers share the first half."""
    return (number // 3).to_bytes(8, "big") + number.to_bytes(8, "little")


def record(number: int) -> bytes:
    return bytes([number % 251]) * (1 + 37 * (number % 50))


def found(cache: RecordCache, numbers) -> list[int]:
    """The numbers whose records are there; all of those must be right."""
    there = []
    for number in numbers:
        hit = cache.get(key(number))
        if hit is not None:
            place, content = hit
            assert content == record(number) == cache.read(place)
            there.append(number)
    return there


@pytest.fixture
def filled(tmp_path):
    cache = RecordCache(tmp_path / "cache")
    for number in range(40):
        cache.add(key(number), record(number))
    return tmp_path / "cache"


def test_what_is_written_is_read_by_this_process_and_the_next(filled):
    again = RecordCache(filled)
    assert found(again, range(50)) == list(range(40))
    again.add(key(41), record(41))
    assert found(again, range(50)) == [*range(40), 41]
    assert found(RecordCache(filled), range(50)) == [*range(40), 41]


def test_a_temporary_folder_goes_with_the_cache(tmp_path):
    cache = RecordCache(None)
    cache.add(key(1), record(1))
    assert cache.get(key(1)) is not None and cache.folder.is_dir()
    folder = cache.folder
    del cache
    assert not folder.exists()


def test_records_beyond_those_held_in_a_dict_are_sorted_in(tmp_path, monkeypatch):
    monkeypatch.setattr(record_cache, "MOST_RECENT", 7)
    cache = RecordCache(tmp_path)
    for number in range(60):
        cache.add(key(number), record(number))
        assert found(cache, [number, number // 2]) == [number, number // 2]
    assert found(cache, range(70)) == list(range(60))


def test_others_are_noticed_when_a_share_is_finished(tmp_path):
    first, second = RecordCache(tmp_path), RecordCache(tmp_path)
    first.add(key(1), record(1))
    second.add(key(2), record(2))
    assert found(first, [1, 2]) == [1]
    for cache in (first, second):
        cache.finish_writing()
    assert found(first, [1, 2]) == found(second, [1, 2]) == [1, 2]
    first.add(key(3), record(3))  # the files of this process again
    assert len(list(tmp_path.glob("*.index"))) == 2
    assert found(RecordCache(tmp_path), range(5)) == [1, 2, 3]


def test_wherever_a_kill_cuts_a_file_off_no_other_record_is_lost(filled, tmp_path):
    [index], [data] = filled.glob("*.index"), filled.glob("*.data")
    entry = index.stat().st_size // 40
    whole = {path: path.read_bytes() for path in (index, data)}
    for path, cuts in ((index, range(1, 2 * entry)), (data, range(1, len(record(39)) + len(record(38))))):
        for cut in [*cuts][:: max(1, len(cuts) // 40)]:
            path.write_bytes(whole[path][:-cut])
            there = found(RecordCache(filled), range(40))
            assert there == list(range(len(there))) and len(there) >= 38
        path.write_bytes(whole[path])
    for garbage in (b"\0" * 400, os.urandom(400)):  # blocks that the disk never got
        index.write_bytes(whole[index][:-40] + garbage)
        assert found(RecordCache(filled), range(40)) == list(range(39))


def test_a_damaged_record_is_missing_and_is_replaced_for_good(filled):
    [data] = filled.glob("*.data")
    content = bytearray(data.read_bytes())
    content[len(record(0)) + len(record(1))] ^= 1
    data.write_bytes(content)
    cache = RecordCache(filled)
    assert found(cache, range(40)) == [0, 1, *range(3, 40)]
    cache.add(key(2), record(2))
    assert found(cache, range(40)) == found(RecordCache(filled), range(40)) == list(range(40))


def test_a_killed_writer_leaves_a_prefix(commands, tmp_path):
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from tests.corpus.test_record_cache import key, record\n"
        "from unimodal.corpus.record_cache import RecordCache\n"
        "cache = RecordCache(Path(sys.argv[1]))\n"
        "for number in range(10**9): cache.add(key(number), record(number))\n"
    )
    process = commands.begin([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(path.stat().st_size for path in tmp_path.glob("*.index")) < 40 * 300:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    there = found(RecordCache(tmp_path), range(2_000))
    assert there == list(range(len(there))) and len(there) >= 300


def _write(folder: Path, numbers: range) -> None:
    cache = RecordCache(folder)
    for number in numbers:
        cache.add(key(number), record(number))
    cache.finish_writing()


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    shares = [range(first, first + 200) for first in (0, 100, 200, 300)]  # some records twice
    processes = [context.Process(target=_write, args=(tmp_path, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    assert found(RecordCache(tmp_path), range(600)) == list(range(500))


def test_a_fork_writes_to_files_of_its_own(tmp_path):
    cache = RecordCache(tmp_path)
    cache.add(key(0), record(0))
    if (child := os.fork()) == 0:
        cache.add(key(1), record(1))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    cache.add(key(2), record(2))
    assert found(RecordCache(tmp_path), range(4)) == [0, 1, 2] and len(list(tmp_path.glob("*.data"))) == 2


def test_files_of_an_older_cache_are_not_looked_at(filled):
    (filled / "ab").mkdir()
    (filled / "ab" / "abcdef.npy").write_bytes(b"x" * 80)
    shutil.copy(filled / "ab" / "abcdef.npy", filled / "odd.index")  # no entries of ours
    assert found(RecordCache(filled), range(50)) == list(range(40))
