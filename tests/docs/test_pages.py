"""The pages tell the truth: their commands and programs are run as they stand, their links lead somewhere.

A fenced block in `bash`, `console` or `python` is run, unless a line `<!-- test: needs … -->` stands before it and says
what this suite lacks. The blocks of a page run in order, in one folder that holds what a checkout holds; Python blocks
share their names; `$` lines of a console are commands and the lines behind them what they print.
"""

import contextlib
import io
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import Commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = {"bash", "console", "python"}
BLOCK = re.compile(r"(?:^<!-- test: needs (?P<lack>.+?) -->\n+)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    kind: str
    body: str
    line: int
    lack: str | None


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, without those inside other blocks."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["kind"], found["body"], text.count("\n", 0, found.start("body")) + 1, found["lack"])
        for found in BLOCK.finditer(text)
    ]


def pages_to_run() -> list[Path]:
    return [page for page in PAGES if any(block.kind in RUN and block.lack is None for block in read_blocks(page))]


def read_commands(block: Block) -> list[tuple[str, list[str]]]:
    """(command, the lines that it is said to print) of a shell or console block."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.body.replace("\\\n", " ").splitlines():
        if block.kind == "bash":
            commands += [(line, [])] if line.strip() and not line.lstrip().startswith("#") else []
        elif line.startswith("$ "):
            commands.append((line[2:], []))
        elif commands:
            commands[-1][1].append(line)
    return commands


def run_command(command: str, commands: Commands) -> tuple[int, str, str]:
    """Status, stdout and stderr of `unimodal …` (in this process, torch is imported once) or `python …`."""
    words = shlex.split(command, comments=True)
    if words[0] == "unimodal":
        from unimodal.cli.app import main

        out, err, status = io.StringIO(), io.StringIO(), 0
        argv, sys.argv = sys.argv, words
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            sys.argv = argv
        return status, out.getvalue(), err.getvalue()
    assert words[0] == "python", f"{command!r} cannot be run here; mark its block with <!-- test: needs … -->"
    run = commands.run([sys.executable, *words[1:]])
    return run.returncode, run.stdout, run.stderr


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that holds what a checkout holds, where files may be written."""
    for entry in ROOT.iterdir():
        if entry.name not in {".git", "data", "runs"}:
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.mark.sweep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages_to_run(), ids=lambda page: page.name)
def test_the_commands_and_programs_of_a_page_do_what_it_says(page, checkout, commands):
    names: dict[str, object] = {"__name__": "__page__"}
    for block in read_blocks(page):
        where = f"{page.name}:{block.line}"
        if block.kind not in RUN or block.lack is not None:
            continue
        if block.kind == "python":
            exec(compile(block.body, where, "exec"), names)
            continue
        for command, lines in read_commands(block):
            status, out, err = run_command(command, commands)
            assert status == 0, f"{where}: {command}\n{err[-2000:]}"
            if lines:
                assert out.rstrip("\n").splitlines() == lines, f"{where}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert sorted(target for target in targets if not (page.parent / target).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    """Names in `code` with a folder of the checkout in front are files of it, or patterns of some."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    named = re.findall(r"`((?:unimodal|recipes|tools|tests|docs|model_cards)/[\w./*-]+)`", text)
    named = [name for name in named if "NAME" not in name]  # stands for any name
    assert sorted({name for name in named if not any(ROOT.glob(name.rstrip("/")))}) == []


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
