"""Readers: every row has its line, a broken row is one row's error, and a file's hash is its content's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.data.rows import JoinedRows, JsonlRows, JsonRows

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=6)


@given(rows=ROWS, indent=st.sampled_from([None, 0, 2]), wrapped=st.booleans())
def test_json_rows_come_back_with_their_lines(rows, indent, wrapped, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps({"data": rows} if wrapped else rows, indent=indent, ensure_ascii=False), "utf-8")
    assert JsonRows.can_read(path)
    found = JsonRows(path)
    assert [found[index] for index in range(len(found))] == rows
    lines = path.read_text("utf-8").split("\n")
    for index in range(len(rows)):
        line = int(found.describe_place(index).rpartition("line ")[2].rstrip(")"))
        assert "{" in lines[line - 1] and f"row {index + 1} " in found.describe_place(index)


@given(rows=ROWS, blanks=st.lists(st.integers(0, 2), min_size=6, max_size=6), end=st.sampled_from(["\n", "\r\n"]))
def test_jsonl_rows_come_back_with_their_lines(rows, blanks, end, tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    text, lines = "", []
    for row, blank in zip(rows, blanks, strict=False):
        text += end * blank
        lines.append(text.count("\n") + 1)
        text += json.dumps(row) + end
    path.write_bytes(text.encode())
    found = JsonlRows(path)
    assert [found[index] for index in range(len(found))] == rows
    assert [int(found.describe_place(index).rpartition(" ")[2]) for index in range(len(found))] == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "the line is not JSON"),
        (b"[1]", "a row must be an object with columns, this one is list"),
        (b'{"a": "\xff"}', "the line is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_is_its_own_error(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}')
    found = JsonlRows(tmp_path / "x.jsonl")
    assert len(found) == 3 and found[0] == {"a": 1} and found[2] == {"a": 3}
    with pytest.raises(ValueError, match=message):
        found[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a"', "x.json is not JSON: .*line 1"),
        (b'[{"a": 1}\n {"a": 2}]', "x.json is not JSON: Expecting ',' delimiter: line 2"),
        (b'[{"a": 1}', "x.json is not JSON"),
        (b'{"data": [{}], "train": [{}]}', "holds several lists of rows; keep the one"),
        (b'{"data": [{}], "a": ', "x.json is not JSON"),
        (b"[3", "x.json is not JSON"),
        (b'"text"', "holds no list of rows"),
        (b"", "holds no list of rows"),
        (b'[{"a": "\xff"}]', "x.json is not UTF-8"),
    ],
)
def test_a_broken_json_file_is_one_line(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        JsonRows(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_byte_order_marks_are_no_content(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert JsonlRows(tmp_path / "x.jsonl")[0] == JsonRows(tmp_path / "x.json")[0] == {"a": 1}


def test_json_files_with_a_row_a_line_are_told_apart(tmp_path):
    for content, fits in (
        ('{"a": 1}\n{"a": 2}\n', False),
        (' [{"a": 1}]', True),
        ('{"data": [{}]}', True),
        ('{"data": 1}', False),
        ('{"version": "1", "data": [{}]}', True),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', True),
        ('{"a": [{}]}', False),
    ):
        (tmp_path / "x.json").write_text(content)
        assert JsonRows.can_read(tmp_path / "x.json") is fits


def test_joined_rows_know_their_files(tmp_path):
    for name, count in (("a", 2), ("b", 0), ("c", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({name: row}) + "\n" for row in range(count)))
    parts = [JsonlRows(tmp_path / f"{name}.jsonl") for name in "abc"]
    joined = JoinedRows(parts)
    assert [joined[index] for index in range(len(joined))] == [{"a": 0}, {"a": 1}, {"c": 0}, {"c": 1}, {"c": 2}]
    assert joined.describe_place(2).endswith("c.jsonl line 1") and joined.describe_place(1).endswith("a.jsonl line 2")
    assert joined.compute_sha256() != JoinedRows(parts[:2]).compute_sha256()
    (tmp_path / "a.jsonl").write_text('{"a": 0}\n{"a": 9}\n')
    assert JoinedRows([JsonlRows(tmp_path / "a.jsonl"), *parts[1:]]).compute_sha256() != joined.compute_sha256()
