"""Files are written whole or not at all, with the permissions and links that a plain write keeps."""

import os
import resource
import stat

import pytest

from unimodal.files import (
    is_hub_id,
    open_atomic_path,
    read_json,
    suggest_path,
    write_bytes_atomically,
    write_text_atomically,
)


def test_atomic_write_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text_atomically(path, "é")
    write_text_atomically(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "weights.bin"
    write_bytes_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the kernel refuses the rest, as on a full disk
    try:
        with pytest.raises(ValueError, match=r"weights.bin cannot be written \(File too large\); free space"):
            write_bytes_atomically(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_ctrl_c_inside_the_block_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), open_atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), real_fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b))[1])
    write_bytes_atomically(tmp_path / "file", b"data")
    assert events == ["fsync", "replace", "fsync"]


def test_permissions_are_those_of_a_plain_write_or_of_the_old_file(tmp_path):
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_bytes(b"")
    write_bytes_atomically(atomic, b"")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    atomic.chmod(0o640)
    write_bytes_atomically(atomic, b"again")
    assert stat.S_IMODE(atomic.stat().st_mode) == 0o640


def test_a_link_is_followed_not_replaced(tmp_path):
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_key_that_is_given_twice_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    told = r"a.json cannot be read as JSON \(the key 'b' is given 2 times in one object; keep one of them\); "
    with pytest.raises(ValueError, match=told):
        read_json(path)


def test_a_path_into_a_folder_of_models_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smol").mkdir(parents=True)
    assert is_hub_id("models/smoll")  # a folder of that name alone says nothing
    (tmp_path / "models" / "smol" / "config.json").write_text("{}")
    assert not is_hub_id("models/smoll") and is_hub_id("owner/smoll") and not is_hub_id("./models")
    assert suggest_path("models/smoll") == "; did you mean models/smol?" and suggest_path("owner/smoll") == ""
