"""Where rows lie: compressed files, tables, pretty JSON, folders of media, splits; and what stands in the way."""

import bz2
import gzip
import json
import lzma
import os
import shutil

import pytest

from unimodal.data.csv_rows import CsvRows
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.data.rows import JsonRows
from unimodal.media.image import save_image

ROWS = [{"prompt": "which?", "completion": f"number {number}"} for number in range(3)]
ANSWERS = [row["completion"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "prompt,completion\n" + "".join(f'"which?",{answer}\n' for answer in ANSWERS)


def read_answers(path, **settings):
    return [document.turns[-1].text for document in open_dataset(DatasetConfig(path=str(path), **settings))]


#: file → its content
FILES = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "rows.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=4),
    "lines.json": LINES,
    "wrapped.json": json.dumps({"data": ROWS}),
    "versioned.json": json.dumps({"version": "1.0", "info": {"data": []}, "data": ROWS, "end": 1}, indent=1),
    "one after the other.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "rows.csv": TABLE,
    "semicolons.csv": TABLE.replace(",", ";"),
    "rows.tsv": TABLE.replace(",", "\t"),
    "windows.csv": "\ufeff" + TABLE.replace("\n", "\r\n"),
    "lines.csv": TABLE.replace('"which?"', '"which, ""one""\nof them?"'),
}
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compression", PACK)
def test_a_file_of_rows_is_read_however_it_is_laid_out(tmp_path, name, compression):
    path = tmp_path / f"{name}{compression}"
    path.write_bytes(PACK[compression](FILES[name].encode()))
    found = open_dataset(DatasetConfig(path=str(path)))
    assert [document.turns[-1].text for document in found] == ANSWERS
    assert str(path) in found.describe_place(2).strip("'")


def test_one_pretty_object_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "data": "x"}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=2))
    assert read_answers(tmp_path / "one.json") == ["b"]
    assert JsonRows(tmp_path / "one.json").describe_place(0).endswith("row 1 (line 1)")


def test_a_table_names_the_line_of_a_bad_record(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\n"two\nlines",a\nb\n,c\n\nd,"e\n')
    found = CsvRows(path)
    assert [found.describe_place(index).rpartition(" ")[2] for index in range(len(found))] == ["2", "4", "5", "7"]
    assert found[0] == {"prompt": "two\nlines", "completion": "a"} and found[2] == {"prompt": None, "completion": "c"}
    with pytest.raises(ValueError, match="the row has 1 values for 2 columns; put values with ',' in quotes"):
        found[1]
    for content, message in (
        ("", "the first line is empty"),
        ("a,b,a\n1,2,3", "the first line names the column 'a' twice"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"x.csv: {message}"):
            CsvRows(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="the row is not UTF-8"):
        CsvRows(path)[0]


def test_lists_in_a_table_are_json(tmp_path, pictures):
    talk = json.dumps([{"role": "user", "content": "which?"}, {"role": "assistant", "content": "this"}])
    cells = [value.replace('"', '""') for value in (talk, '["cat/1.png", "dog/2.png"]')]
    (pictures / "x.csv").write_text('messages,images\n"{}","{}"\n'.format(*cells))
    [document] = open_dataset(DatasetConfig(path=str(pictures / "x.csv")))
    assert len(document.turns[0].parts) == 3
    (pictures / "x.csv").write_text('messages,images\n"[{""role"": ",\n')
    with pytest.raises(ValueError, match=r"x.csv line 2: messages is a text that is not JSON \(.* at character"):
        open_dataset(DatasetConfig(path=str(pictures / "x.csv")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}'),
        ("x.jsonl", '{"text": "a"}\n{"text": "a", "meta": {"text": 1, "text": 2}}'),
        ("x.json", '[{"text": "a"}, {"text": "a", "text": "b"}]'),
        ("x.json", '{\n"text": "a"}\n{"text": "a", "text": "b"}'),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"(line|row) 2.*: the key 'text' is given 2 times in one object; keep one"):
        open_dataset(DatasetConfig(path=str(tmp_path / name)))
    assert len(open_dataset(DatasetConfig(path=str(tmp_path / name), on_bad_row="skip"))) == 1


@pytest.fixture
def pictures(tmp_path, media_files):
    """cat/1.png, dog/2.png, dog/3.png"""
    folder = tmp_path / "pictures"
    for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(media_files / "a.png", folder / name)
    return folder


@pytest.fixture(scope="session")
def media_files(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("files")
    save_image(torch.zeros(3, 8, 8), folder / "a.png")
    return folder


def test_folders_of_classes(pictures):
    assert read_answers(pictures) == ["cat", "dog", "dog"]
    found = open_dataset(DatasetConfig(path=str(pictures)))
    assert found.format == "pairs" and found.describe_place(1).endswith("dog/2.png")
    (pictures / "cat" / "notes.md").write_text("x")
    assert dict(open_dataset(DatasetConfig(path=str(pictures))).ignored) == {"md": 1}
    shutil.copy(pictures / "cat/1.png", pictures / "0.png")
    with pytest.raises(ValueError, match="0.png: there is no 0.txt with its text, and it lies in no folder of a class"):
        open_dataset(DatasetConfig(path=str(pictures)))


def test_media_beside_their_texts(pictures):
    for name in ("cat/1", "dog/2", "dog/3"):
        (pictures / f"{name}.txt").write_text(f"the animal {name}\n")
    assert read_answers(pictures) == ["the animal cat/1", "the animal dog/2", "the animal dog/3"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_imagefolder_with_its_metadata(pictures, kind):
    rows = [("cat/1.png", "a cat"), ("dog/3.png", "a dog")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    table = ["file_name,text", *(f"{name},{text}" for name, text in rows)]
    (pictures / f"metadata.{kind}").write_text("\n".join(lines if kind == "jsonl" else table))
    (pictures / "more.jsonl").write_text("{}")
    assert read_answers(pictures) == ["a cat", "a dog"]
    assert open_dataset(DatasetConfig(path=str(pictures)))[1].turns[0].parts[0].path.endswith("dog/3.png")
    (pictures / f"metadata.{kind}").write_text("file_name,text\ngone.png,x" if kind == "csv" else
                                               '{"file_name": "gone.png", "text": "x"}')  # fmt: skip
    with pytest.raises(ValueError, match="gone.png is not in"):
        open_dataset(DatasetConfig(path=str(pictures)))


def test_splits_by_folder_and_by_name(tmp_path, pictures):
    for split in ("train", "test"):
        shutil.copytree(pictures / "cat", tmp_path / "by_folder" / split / split)
        (tmp_path / "by_name").mkdir(exist_ok=True)
        (tmp_path / "by_name" / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    (tmp_path / "repository" / "data").mkdir(parents=True)
    (tmp_path / "repository" / "README.md").write_text("x")
    for split in ("train", "test"):
        (tmp_path / "repository" / "data" / f"{split}-00000.jsonl").write_text(json.dumps({"text": split}))
    for name in ("by_folder", "by_name", "repository"):
        assert read_answers(tmp_path / name) == ["train"]
        assert read_answers(tmp_path / name, split="test") == ["test"]
        with pytest.raises(ValueError, match="has no split 'dev'; it has test, train: set split"):
            open_dataset(DatasetConfig(path=str(tmp_path / name), split="dev"))


def test_nothing_to_read_says_so(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no file of .* and no media; name the file"):
        open_dataset(DatasetConfig(path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="no such file.*; if it is a dataset of the hub set format to huggingface"):
        open_dataset(DatasetConfig(path="somebody/pets"))
    for name in ("none/pets", str(tmp_path / "none" / "pets")):  # a mistyped path is not looked up on the hub
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="pets: no such file, folder or pattern of files; check the path$"):
            open_dataset(DatasetConfig(path=name, format="huggingface"))
    with pytest.raises(ValueError, match="no such file, folder or pattern of files; check the path"):
        open_dataset(DatasetConfig(path=str(tmp_path / "gone.jsonl"), format="huggingface"))


def test_a_split_that_nothing_has_is_an_error(tmp_path, pictures):
    (tmp_path / "rows").mkdir()
    for name in ("rows/a.jsonl", "rows/b.jsonl", "rows/test.csv", "train.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": "x"}) if name.endswith("l") else "text\nx\n")
    (tmp_path / "rows" / "test.csv").rename(tmp_path / "test.csv")
    for path in ("train.jsonl", "rows", "rows/*.jsonl", "rows/a.jsonl", pictures):
        assert len(open_dataset(DatasetConfig(path=str(tmp_path / path))))
        with pytest.raises(ValueError, match="has no splits, so split 'test' would choose nothing; leave split out"):
            open_dataset(DatasetConfig(path=str(tmp_path / path), split="test"))
    assert len(open_dataset(DatasetConfig(path=str(tmp_path / "test.csv"), split="test"))) == 1


@pytest.mark.parametrize("compression", PACK)
def test_plain_text_is_learnt_in_pieces_of_whole_lines(tmp_path, compression):
    """A long line is cut between characters, and what was written comes back in order."""
    lines = ["", *(f"строка {number} " + "слово " * (number % 40) for number in range(60)), "ё" * 2000, " ", "end"]
    text = "\n".join(lines) + "\n"
    path = tmp_path / f"text.txt{compression}"
    path.write_bytes(PACK[compression](text.encode()))
    pieces = read_answers(path)
    assert "".join(pieces) == text.removeprefix("\n")
    assert all(len(piece.encode()) <= 1024 for piece in pieces) and len(pieces) > 5
    inside = [piece for piece in pieces if not piece.endswith("\n")]
    assert inside and all(set(piece.splitlines()[-1]) == {"ё"} for piece in inside)


def test_text_in_another_encoding_is_one_line_that_names_the_file_and_the_line(tmp_path):
    for name, data, reason in (
        ("latin.txt", "fine\n" * 300 + "schön\n", "latin.txt line 205: the text is not UTF-8"),
        ("wide.txt", "wide\n".encode("utf-16-le"), "wide.txt line 1: the text holds zero bytes"),
        ("blank.txt", "\n \n", "no usable row"),
    ):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode("latin-1"))
        with pytest.raises(ValueError, match=reason) as caught:
            read_answers(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "windows.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert read_answers(tmp_path / "windows.txt") == ["one\ntwo\n"]


@pytest.mark.parametrize("name", ["", " "])
def test_no_path_is_not_the_folder_of_work(name):
    with pytest.raises(ValueError, match="the path of a dataset is"):
        open_dataset(DatasetConfig(path=name))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="rows.jsonl is no file that can be read more than once"):
        open_dataset(DatasetConfig(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize("ending", [".zst", ".lz4", ".zip"])
def test_a_file_that_cannot_be_unpacked_is_not_left_out_of_its_folder(tmp_path, ending):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / f"b.jsonl{ending}").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"b.jsonl{ending} would be left out"):
        open_dataset(DatasetConfig(path=str(tmp_path)))
    assert read_answers(tmp_path / "*.jsonl") == ANSWERS
