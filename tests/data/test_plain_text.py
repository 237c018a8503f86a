"""Definitions and novels: nothing of the held-out side is in the training side; the real packages where they are."""

from pathlib import Path

import pytest

from unimodal.data import plain_text

RAW = Path(__file__).resolve().parents[2] / "data" / "raw"
LINE = '{at:08d} 03 n 01 {word} 0 001 @ 00001740 n 0000 | {meaning}; "an example of {word}"\n'


def test_meanings_are_read_without_examples_and_split_by_word(tmp_path):
    folder = tmp_path / "wordnet-base"
    folder.mkdir()
    words = [f"word_{n}" for n in range(400)]
    for part in ("noun", "verb", "adj", "adv"):
        lines = [LINE.format(at=n, word=w, meaning=f"the {part} {w}") for n, w in enumerate(words)]
        (folder / f"data.{part}").write_text("  1 the licence\n" + "".join(lines))
    train, test = (plain_text.read_definitions(tmp_path, split) for split in ("train", "test"))
    assert len(train) + len(test) == 1600
    assert not {word for word, _ in train} & {word for word, _ in test}
    assert 0 < len(test) < 0.1 * len(train)
    assert train[0] == ("word 0", "the noun word_0")


def test_a_missing_package_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*data.noun: no such file; [^\n]*fetch_data.py"):
        plain_text.read_definitions(tmp_path)


@pytest.mark.skipif(not (RAW / "r-cran-janeaustenr").is_dir(), reason="the novels were not fetched")
def test_a_novel_is_held_out_whole():
    pytest.importorskip("rdata")
    train, test = (plain_text.read_paragraphs(RAW, split) for split in ("train", "test"))
    assert any("Anne Elliot" in paragraph for paragraph in test)
    assert not any("Captain Wentworth" in paragraph for paragraph in train)
    assert len(train) > 4 * len(test) > 1000
    assert not set(train) & set(test)
