"""Opening a dataset: bad rows are counted or fatal, never lost; lengths, limits, columns, folders and fingerprints."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.config import Config, load_config
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.sequence.document import Document

BAD = {"messages": [{"role": "wizard", "content": "x"}]}


def good(number):
    return {"messages": [{"role": "user", "content": "which?"}, {"role": "assistant", "content": f"number {number}"}]}


def answer(document):
    assert isinstance(document, Document)
    return document.turns[-1].text


@pytest.fixture
def write(tmp_path):
    def write(rows, name="x.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


@given(bad=st.lists(st.booleans(), min_size=1, max_size=30), limit=st.none() | st.integers(1, 10))
def test_every_row_is_a_document_or_a_named_bad_row(tmp_path_factory, bad, limit):
    """Under skip: documents in file order, and exactly the bad lines before the last document, each with its line."""
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_text("".join(json.dumps(BAD if wrong else good(line)) + "\n" for line, wrong in enumerate(bad, 1)))
    wanted = [line for line, wrong in enumerate(bad, 1) if not wrong][:limit]
    cfg = DatasetConfig(path=str(path), format="trl", on_bad_row="skip", limit=limit)
    if not wanted:
        with pytest.raises(ValueError, match=f"has no usable row; the first of {len(bad)} bad rows is .*line 1: role"):
            open_dataset(cfg)
        return
    found = open_dataset(cfg)
    assert [answer(document) for document in found] == [f"number {line}" for line in wanted]
    assert [found.describe_place(index) for index in range(len(found))] == [f"{path} line {line}" for line in wanted]
    last = wanted[-1] if len(wanted) == limit else len(bad)
    named = [int(row.where.rpartition(" ")[2]) for row in found.bad_rows]
    assert named == [line for line, wrong in enumerate(bad, 1) if wrong and line <= last] and found.num_bad == len(
        named
    )
    if any(bad[:last]):
        with pytest.raises(
            ValueError, match=f"line {named[0]}: role 'wizard' is unknown.*; mend it, or set on_bad_row"
        ):
            open_dataset(cfg.model_copy(update={"on_bad_row": "fail"}))


def test_it_is_a_sequence(write):
    found = open_dataset(DatasetConfig(path=write(map(good, range(5)))))
    assert answer(found[-1]) == "number 4" and [answer(d) for d in found[1:4:2]] == ["number 1", "number 3"]
    with pytest.raises(IndexError):
        found[5]
    assert found[2] in found and found.index(found[3]) == 3
    assert answer(pickle.loads(pickle.dumps(found))[3]) == "number 3"  # data loaders send it to their workers


def test_columns_are_renamed(write):
    path = write([{"dialog": good(1)["messages"], "other": 1}, {"dialog": good(2)["messages"]}])
    with pytest.raises(ValueError, match="no format is known for the columns dialog, other"):
        open_dataset(DatasetConfig(path=path))
    assert len(open_dataset(DatasetConfig(path=path, columns={"messages": "dialog"}))) == 2
    with pytest.raises(ValueError, match="there is no column 'dialogue' to call messages; it has dialog, other"):
        open_dataset(DatasetConfig(path=path, columns={"messages": "dialogue"}))


def test_a_renamed_column_does_not_replace_another_in_silence(write):
    path = write([{"text": "one", "b": "two"}, {"text": None, "b": "three"}])
    with pytest.raises(ValueError, match="line 1: columns calls 'b' 'text', but there is a column 'text' too.*ignore"):
        open_dataset(DatasetConfig(path=path, columns={"text": "b"}))
    found = open_dataset(DatasetConfig(path=path, columns={"text": "b"}, ignore=("text",)))
    assert [document.turns[0].text for document in found] == ["two", "three"]


def test_folders_and_patterns(write, tmp_path):
    for name in ("many/b.jsonl", "many/a.jsonl"):
        write([good(name)], name)
    expected = ["number many/a.jsonl", "number many/b.jsonl"]
    for path in (tmp_path / "many", tmp_path / "many" / "?.jsonl"):
        assert [answer(d) for d in open_dataset(DatasetConfig(path=str(path)))] == expected
    write([good(0)], "many/c.json")
    with pytest.raises(ValueError, match=r"holds files of several kinds \(.json, .jsonl\); name the file"):
        open_dataset(DatasetConfig(path=str(tmp_path / "many")))
    (tmp_path / "none").mkdir()
    for path, message in (
        ("none", "holds no file of"),
        ("gone.jsonl", "no such file, folder or pattern"),
        ("gone", "no such"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(DatasetConfig(path=str(tmp_path / path)))
    (tmp_path / "x.xlsx").write_text("a,b")
    with pytest.raises(ValueError, match="x.xlsx: a dataset is a file of .jsonl"):
        open_dataset(DatasetConfig(path=str(tmp_path / "x.xlsx")))


def test_a_format_may_begin_with_rows_of_text_alone(write):
    """Detection looks at many first rows, so a mixed file is not misread by its first."""
    rows = [good(n) for n in range(50)]
    marked = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}]
    rows.append({"messages": marked, "images": ["gone.png"]})
    with pytest.raises(ValueError, match="line 51: gone.png is not in"):
        open_dataset(DatasetConfig(path=write(rows)))
    assert open_dataset(DatasetConfig(path=write(rows), on_bad_row="skip")).format == "llama_factory"


def test_the_fingerprint_changes_with_what_decides_the_documents(write, tmp_path):
    rows = [good(1), BAD, good(2)]

    def fingerprint(rows=rows, name="x.jsonl", **settings):
        settings = {"on_bad_row": "skip", **settings}
        return open_dataset(DatasetConfig(path=write(rows, name), **settings)).compute_fingerprint()

    same = fingerprint()
    assert fingerprint() == fingerprint(weight=3.0) == fingerprint(name="moved.jsonl") == same
    others = [fingerprint(limit=1), fingerprint(rows=[good(1), good(2)]), fingerprint(rows=[good(1), BAD, good(3)])]
    others.append(fingerprint(pairs={"question": "?"}))
    assert len({same, *others}) == 5


def test_settings_from_the_command_line():
    class Mix(Config):
        datasets: dict[str, DatasetConfig] = {}

    found = load_config(
        Mix, None, ["datasets.pets.path=a.jsonl", "datasets.pets.weight=0.5", "datasets.pets.pairs.wish='{text}!'"]
    )
    assert found.datasets["pets"] == DatasetConfig(path="a.jsonl", weight=0.5, pairs={"wish": "{text}!"})
    with pytest.raises(ValueError, match="unknown key 'datasets.pets.wait'; did you mean 'weight'"):
        load_config(Mix, None, ["datasets.pets.path=a", "datasets.pets.wait=1"])
    with pytest.raises(ValueError, match="on_bad_row"):
        load_config(Mix, None, ["datasets.pets.path=a", "datasets.pets.on_bad_row=drop"])
