"""`unimodal text`: what it trains, what it measures, and how it refuses."""

import json

import pytest

from tests.sequence.conftest import sentences
from tests.tiny_bases import make_base, save_base
from unimodal.cli import app as cli
from unimodal.cli.text import DIGITS, KINDS, TRANSPLANTS
from unimodal.text import pretokens, trainers
from unimodal.text.corpora import read_lines, take_bytes
from unimodal.text.reports.opened import open_tokenizer
from unimodal.tuning.transplant.methods import METHODS

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
    assert list(METHODS) == list(TRANSPLANTS)


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


def test_a_tokenizer_is_put_under_a_base_and_measured(capsys, folder):
    save_base(folder / "base", make_base("llama", True))
    assert run(capsys, "train", "en.txt", "--kind", "bpe", "--size", 320, "--out", "a")[0] == 0
    (folder / "words.tsv").write_text("a\ta\n")
    status, out, err = run(
        capsys, "transplant", "base", "--tokenizer", "a", "--out", "b", "--data", "en.txt", "upper.txt", "--method",
        "wechsel", "--parallel", "en.txt", "upper.txt", "--dictionary", "words.tsv", "--copy-shared",
    )  # fmt: skip
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith("b: 320 text rows; ") and " copied, " in lines[0], err
    made = json.loads((folder / "b" / "transplant.json").read_text())
    before, after = made["before"], made["after"]
    assert lines[1].startswith(f"tokens: {before['tokens']:,} → {after['tokens']:,} (")
    assert lines[2].startswith(f"bits a byte before: {before['bits_per_byte']:.3f} ± ") and len(lines) == 4
    status, out, err = run(capsys, "cost", "base", "b", "--data", "en.txt", "upper.txt", "--json", "cost.json")
    costs = json.loads((folder / "cost.json").read_text())
    assert status == 0 and costs["base"].items() >= before.items() and costs["b"].items() >= after.items(), err
    assert f"{after['bits_per_byte']:.3f} ± {after['interval_95']:.3f}" in out.splitlines()[2]
    more = after["bits_per_byte"] - before["bits_per_byte"]
    assert costs["base"]["more_than_first"] is None and costs["b"]["more_than_first"][0] == pytest.approx(more)
    status, out, err = run(capsys, "cost", "b", "--data", "en.txt", "--bytes", 200)
    kept = take_bytes(read_lines(["en.txt"]), 200)
    assert status == 0 and 0 < sum(len(line) + 1 for line in kept) <= 200, err
    assert out.split()[-4].replace(",", "") == str(sum(len(open_tokenizer("b").encode(f"{line}\n")) for line in kept))
    # the result is a base itself, and a donor
    status, out, err = run(
        capsys, "transplant", "b", "--tokenizer", "a", "--out", "c", "--method", "omp", "--donor", "b"
    )
    assert status == 0 and out == "c: 320 text rows; 320 copied, 0 mixed, 0 filled\n", err
    (folder / "t").symlink_to("a")
    before = sorted(folder.rglob("*"))
    for options, said in MISUSED.items():
        status, out, err = run(capsys, "transplant", *f"base --tokenizer t --out x {options}".split())
        assert status == 2 and out == "" and err.startswith("unimodal: ") and said in err, options
        assert sorted(folder.rglob("*")) == before, options
    for words, said in MISMEASURED.items():
        status, out, err = run(capsys, *words.split())
        assert status == 2 and out == "" and err.startswith("unimodal: ") and said in err, words
        assert sorted(folder.rglob("*")) == before, words


MISMEASURED = {
    "cost base --data latin.txt --json x": "latin.txt is not UTF-8",
    "cost base --data empty.txt --json x": "there is no text in empty.txt",
    "cost nothing --data en.txt --json x": "base model 'nothing': no such folder",
    "cost base --data en.txt --bytes 0 --json x": "--bytes 0: give one or more",
    "cost base --data en.txt --json no/x": "there is no folder no",
    "transplant base --tokenizer t --out x --bytes 100": "--bytes is of the text that is measured; give --data",
}
#: options of `transplant` → what is said of them
MISUSED = {
    "--method best": "--method 'best' is unknown; choose mean, fvt, ",
    "--method clp": "name one with --donor",
    "--method fvt --donor base": "--donor is not read for --method fvt; leave it out",
    "--parallel en.txt upper.txt": "--parallel is not read for --method fvt",
    "--method omp --donor base": "--donor base lacks ",
    "--method omp --donor b --tokenizer a --atoms 0": "0 atoms: give one or more",
    "--atoms 8": "--atoms is not read for --method fvt",
    "--method omp --donor none": "base model 'none': no such folder",
    "--method trans-tokenization": "--parallel A B",
    "--method trans-tokenization --parallel en.txt short.txt": "short.txt has 7 lines and en.txt 200",
    "--method wechsel --parallel en.txt": "--parallel takes two files",
    "--method wechsel --vectors en.txt upper.txt": "the vector of word 1 holds no numbers",
    "--method wechsel --parallel en.txt upper.txt --dictionary latin.txt": "latin.txt is not UTF-8",
    "--method wechsel --parallel en.txt upper.txt --dictionary en.txt": "line 1 is no pair of words",
    "--method tokenadapt": "name it by --embedder",
    "--method tokenadapt --embedder en.txt": "--embedder en.txt cannot be loaded",
    "--method zett": "name it by --hypernetwork",
    "--method zett --hypernetwork en.txt": "en.txt holds no hypernetwork",
    "--data latin.txt": "latin.txt is not UTF-8",
    "--data empty.txt": "there is no text in empty.txt",
    "--out c": "c is not empty",
    "--out no/x": "there is no folder no",
    "--tokenizer nothing": "nothing: no such tokenizer",
    "--tokenizer en.txt": "en.txt is no readable tokenizer.json",
}

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
