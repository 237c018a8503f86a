"""`unimodal text`: what it trains, what it measures, and how it refuses."""

import json

import pytest

from tests.sequence.conftest import sentences
from unimodal.cli import app as cli
from unimodal.cli.text import DIGITS, KINDS
from unimodal.text import pretokens, trainers

pytestmark = pytest.mark.sweep("commands")


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["text", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err.strip().splitlines()[-1] if err.strip() else ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = sentences(200)
    (tmp_path / "en.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "upper.txt").write_text("\n".join(line.upper() for line in lines) + "\n")
    (tmp_path / "short.txt").write_text("\n".join(lines[:7]))
    (tmp_path / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    (tmp_path / "wide.txt").write_text("wide", encoding="utf-16-le")
    (tmp_path / "empty.txt").write_text("\n\n")
    return tmp_path


def test_the_command_knows_every_kind_and_rule():
    assert KINDS == trainers.KINDS and DIGITS == pretokens.DIGIT_RULES


def test_a_tokenizer_is_trained_measured_and_compared(capsys, folder):
    status, out, _ = run(
        capsys, "train", "en.txt", "upper.txt", "--kind", "bpe", "--size", 340, "--digits", "right", "--out", "a"
    )
    assert status == 0 and out == "a: bpe, 340 rows\n"
    assert json.loads((folder / "a" / "training.json").read_text())["digits"] == "right"
    assert run(capsys, "train", "en.txt", "--kind", "bytes", "--out", "b")[0] == 0
    (folder / "segments.tsv").write_text("walks\twalk s\n")
    (folder / "ids.jsonl").write_text("[97, 98]\n")
    status, out, _ = run(
        capsys, "report", "a", "--corpus", "en.txt", "short.txt", "--parallel", "en.txt", "upper.txt", "--segments",
        "segments.tsv", "--mixture", "low=en.txt", "up=upper.txt", "--merges", 20, "--ids", "ids.jsonl",
        "--json", "report.json", "--html", "report.html",
    )  # fmt: skip
    made = json.loads((folder / "report.json").read_text())
    assert status == 0 and set(made) >= {"text", "premium", "round trip", "morphemes", "mixture of the training data"}
    assert made["text"]["lines"] == 207 and "fertility" in out and "upper.txt" in out
    assert "<h2>premium</h2>" in (folder / "report.html").read_text()
    status, out, _ = run(capsys, "compare", "a", "b", "--corpus", "en.txt", "--json", "table.json")
    table = json.loads((folder / "table.json").read_text())["comparison"]
    assert status == 0 and list(table["fertility"]) == ["a", "b"] and out.splitlines()[0].split() == ["a", "b"]
    assert table["bytes a token"]["b"] == 1 and table["fertility"]["a"] < table["fertility"]["b"]


REFUSED = {
    "train latin.txt --kind bpe --size 300 --out x": "latin.txt is not UTF-8: line 1 holds the byte 0xf6",
    "train wide.txt --kind bpe --size 300 --out x": "wide.txt holds zero bytes",
    "train empty.txt --kind bpe --size 300 --out x": "there is no text in empty.txt",
    "train nothing.txt --kind bpe --size 300 --out x": "nothing.txt: no such file",
    "train en.txt --kind cpe --size 300 --out x": "--kind 'cpe' is unknown; choose bpe, ",
    "train en.txt --kind bpe --size 300 --digits odd --out x": "--digits 'odd' is unknown",
    "train en.txt --kind bpe --size 30000 --out x": "this text gives only",
    "train en.txt --kind bpe --out x": "bpe needs the size",
    "train en.txt --kind bpe --size 300 --out x/y": "there is no folder x to write y in",
    "train en.txt --kind bpe --size 300 --out .": ". is there already; name a new folder",
    "train en.txt --kind bpe --size 300 --segmenter f --out x": "'f' is not of the form module:function",
    "report t --corpus latin.txt --html x": "latin.txt is not UTF-8",
    "report t --corpus en.txt --parallel en.txt short.txt --html x": "short.txt has 7 lines and en.txt 200",
    "report t --corpus en.txt --parallel en.txt --html x": "at least two files",
    "report t --corpus en.txt --mixture a=en.txt b=short.txt --html x": "t has no merges (its model is Unigram)",
    "report t --corpus en.txt --mixture a=en.txt --html x": "two categories or more",
    "report t --corpus en.txt --mixture en.txt --html x": "give each category once, as NAME=FILE",
    "report t --corpus en.txt --segments en.txt --html x": "en.txt, line 1: ",
    "report t --corpus en.txt --ids en.txt --html x": "en.txt, line 1 is no JSON list of ids",
    "report t --corpus en.txt --html no/x": "there is no folder no",
    "report nothing --corpus en.txt --html x": "nothing: no such tokenizer",
    "report en.txt --corpus en.txt --html x": "en.txt is no readable tokenizer.json",
    "report t --html x": "Missing option '--corpus'",
    "compare t nothing --corpus en.txt --json x": "nothing: no such tokenizer",
}


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    settings = trainers.TrainingSettings("unigram", 370)
    lines = sentences(200)
    target = tmp_path_factory.mktemp("unigram") / "t"
    trainers.save(trainers.train(lines, settings), target, settings, lines)
    return target


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_wrong_is_one_line_and_nothing_is_written(capsys, folder, unigram, command):
    (folder / "t").symlink_to(unigram)
    before = sorted(folder.rglob("*"))
    status, out, err = run(capsys, *command.split())
    assert status == 2 and out == "" and err.startswith("unimodal: ") and REFUSED[command] in err
    assert sorted(folder.rglob("*")) == before
