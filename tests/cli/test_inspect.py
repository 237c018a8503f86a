"""`unimodal inspect`: what it prints and writes, and how it refuses."""

import json

import pytest

from tests.tiny_bases import make_base, save_base
from unimodal.cli import app as cli
from unimodal.cli.inspect import REPORTS
from unimodal.evaluation import inspection

pytestmark = pytest.mark.sweep("commands")


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err.strip().splitlines()[-1] if err.strip() else ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / "base", make_base("llama", True))
    (tmp_path / "a.txt").write_text("0A1B2C3D4E5F6G7H8I9J")
    (tmp_path / "b.txt").write_text("KLMKLMKLMKLM")
    (tmp_path / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    return tmp_path


def test_the_command_knows_every_report():
    assert list(REPORTS) == list(inspection.REPORTS)


def test_a_stock_model_is_looked_into(capsys, folder):
    status, out, _ = run(capsys, "base", "heads", "--text", "a.txt", "b.txt", "--json", "report.json", "--tokens", 9)
    made = json.loads((folder / "report.json").read_text())
    assert status == 0 and "heads a layer  4" in out and made["model"]["tokens read"] == ["a.txt 9", "b.txt 9"]


REFUSED = {
    "base heart": "REPORT 'heart' is unknown; choose heads, ",
    "nothing heads": "model 'nothing': no such folder",
    "base heads --text latin.txt": "latin.txt is not UTF-8",
    "base heads --text no.txt": "no.txt: no such file",
    "base heads --answer A": "--answer is not for the report heads, which reads --prompt, --text, --tokens",
    "base heads --tokens 0": "--tokens 0: give one or more",
    "base heads --plot a.gif": "a plot is written as .svg or .png, not as .gif",
    "base heads --json no/a.json": "there is no folder no",
    "base heads --prompt AB": "prompt has 2 tokens; give at least 5",
    "base media --file no.png": "no.png",
    "base heads --json .": "--json . is a folder; name a file",
    "base hidden --set rows=1e9": "--set rows=1e9: '1e9' is no whole number",
    "base hidden --set length=nan": "'nan' is no whole number",
    "base hidden --set share=inf": "--set share=inf: 'inf' is no number to count with",
    "base attribution --prompt AB --answer A --set draws=0": "draws 0: give one or more",
    "base attribution --prompt AB --answer A --set draws=1.5": "'1.5' is no whole number",
    "base attribution --prompt AB --answer A --set kept=-1": "kept -1: give one or more",
    "base attribution --prompt AB --answer A --set replaced=2": "replaced 2: give a share",
    "base attribution --prompt ☃ --answer A": "the tokenizer of base has no token for '☃'",
    "base attribution --prompt AB --answer ☃": "the tokenizer of base has no token for the answer '☃'",
    "base media": "reads text only, and this report is about tokens of media",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_one_line(capsys, folder, line):
    status, out, said = run(capsys, *line.split())
    assert status == 2 and not out and REFUSED[line] in said
    assert not list(folder.glob("*.json")) and not list(folder.glob("*.svg"))
