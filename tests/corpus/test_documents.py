"""A corpus opens each document once: draws are right, no medium is opened again, a changed file is noticed."""

import base64
import gc
import io
import json
import os
import shutil
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch

from tests.tiny_model import tiny_folder
from unimodal.coder.media_coder import load_coder
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video
from unimodal.sequence.document import Document, Text, Turn
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def coder():
    return load_coder(tiny_folder())


@pytest.fixture(scope="module")
def template(coder):
    return Template(coder.vocabulary, TextTokenizer.load(tiny_folder()))


@pytest.fixture
def data(tmp_path):
    """Rows of every kind: files of all media, one of them twice and one as a copy, bytes, codes, and text alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        save_image(torch.rand(3, 20 + number, 30), folder / f"{number}.png")
    shutil.copy(folder / "1.png", folder / "copy.png")
    save_audio(torch.rand(4_000) - 0.5, folder / "0.wav", 16_000)
    save_video(torch.rand(4, 3, 16, 16), folder / "0.gif", 8)
    held = base64.b64encode((folder / "2.png").read_bytes()).decode()

    def ask(*parts, answer="a car"):
        return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}

    def words(text):
        return {"type": "text", "text": text}

    rows = [
        ask({"type": "image", "path": "0.png"}, words("what is this?")),
        ask(words("draw a car"), answer=[{"type": "image", "path": "0.png"}]),
        ask({"type": "image", "path": "copy.png"}, {"type": "image", "path": "1.png"}, words("which is larger?")),
        ask({"type": "audio", "path": "0.wav"}, {"type": "video", "path": "0.gif"}),
        ask(words("draw another"), answer=[{"type": "image", "data": held}]),
        ask({"type": "image", "codes": [1, 2] * 32}, words("and this?")),
        ask(words("hello"), answer="good morning"),
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(3):
            for name, content in ((f"{number}.png", (folder / f"{number}.png").read_bytes()), (f"{number}.txt", b"a")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def open_corpus(data, template, coder, *names, **settings):
    datasets = [DatasetConfig(path=str(data / name)) for name in names or ("rows.jsonl", "pairs.tar")]
    given = {"condition_dropout": 0.0, "length": 512, "codes": data.parent / "codes"} | settings
    return Corpus(CorpusConfig(datasets=datasets, **given), template, coder)


def draw_all(corpus):
    return [documents[item] for documents in corpus.sets.values() for item in range(len(documents) // 8)]


def expect_all(data, template, coder, *names):
    """The documents as a chat would render them, by the tokenizers alone."""
    expected = []
    for name in names or ("rows.jsonl", "pairs.tar"):
        for document in open_dataset(DatasetConfig(path=str(data / name))):
            turns = [Turn(turn.role, map(coder.encode_part, turn.parts)) for turn in document.turns]
            expected.append(template.render(Document(turns)))
    return expected


def are_same(left, right):
    return len(left) == len(right) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(left, right, strict=True)
        for name in ("ids", "labels", "modality")
    )


_opened: list[str] = []
_is_listening = False


def _listen(event, arguments):
    if _is_listening and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


@pytest.fixture
def opened():
    """The files that are opened during a test, by the interpreter's own audit."""
    global _is_listening
    if not _opened:
        sys.addaudithook(_listen)  # it cannot be taken away
        _opened.append("hooked")
    _opened[1:], _is_listening = [], True
    yield _opened
    _is_listening = False


def test_a_draw_of_an_encoded_document_opens_no_medium_and_no_row(data, template, coder, opened):
    expected = expect_all(data, template, coder)
    corpus = open_corpus(data, template, coder)
    assert corpus.encode() == 5  # three pictures, in files and tars and copies; a sound and a clip
    assert any(name.endswith("0.png") for name in opened)  # the audit sees it
    for name in data.iterdir():
        name.unlink()  # no draw misses them
    del opened[:]
    for _ in range(3):
        assert are_same(draw_all(corpus), expected)
    assert [name for name in opened if not name.startswith(str(data.parent / "codes"))] == []


def test_the_next_run_and_another_recipe_encode_nothing_and_open_no_medium(data, template, coder, opened):
    open_corpus(data, template, coder).encode()
    del opened[:]
    corpus = open_corpus(data, template, coder, condition_dropout=0.5, validation_share=0.3, seed=5)
    assert corpus.encode() == 0
    draw_all(corpus)
    assert not [name for name in opened if name.endswith((".png", ".wav", ".gif"))]
    assert open_corpus(data, template, coder, "rows.jsonl").encode() == 0
    (data / "others.jsonl").write_text(json.dumps({"image": "1.png", "text": "a new row of an old picture"}) + "\n")
    del opened[:]
    corpus = open_corpus(data, template, coder, "others.jsonl")
    assert corpus.encode() == 0 and are_same(draw_all(corpus), expect_all(data, template, coder, "others.jsonl"))


def test_a_draw_before_anything_is_encoded_is_the_same(data, template, coder):
    expected = expect_all(data, template, coder)
    corpus = open_corpus(data, template, coder)
    assert are_same(draw_all(corpus), expected) and corpus.encode() == 0


def test_a_file_changed_in_place_gets_new_codes_and_no_other_is_encoded_again(data, template, coder):
    corpus = open_corpus(data, template, coder, "rows.jsonl")
    corpus.encode()
    before = draw_all(corpus)
    picture = data / "0.png"
    size, changed = picture.stat().st_size, picture.stat().st_mtime_ns
    torch.manual_seed(7)
    save_image(torch.rand(3, 20, 30), picture)
    with picture.open("ab") as stream:  # the size does not give it away
        stream.write(b"\0" * max(0, size - picture.stat().st_size))
    os.truncate(picture, size)
    assert picture.stat().st_size == size and picture.stat().st_mtime_ns != changed
    corpus = open_corpus(data, template, coder, "rows.jsonl")
    assert corpus.encode() == 1
    after = draw_all(corpus)
    assert are_same(after, expect_all(data, template, coder, "rows.jsonl"))
    assert [not are_same([a], [b]) for a, b in zip(after, before, strict=True)] == [True, True, *[False] * 5]


def test_a_file_that_was_only_touched_is_hashed_and_not_encoded(data, template, coder, opened):
    corpus = open_corpus(data, template, coder, "rows.jsonl")
    corpus.encode()
    before = draw_all(corpus)
    os.utime(data / "0.png", ns=(1, 1))
    for times in (2, 0):  # its content is hashed for each of its two rows, and never again
        del opened[:]
        corpus = open_corpus(data, template, coder, "rows.jsonl")
        assert corpus.encode() == 0 and are_same(draw_all(corpus), before)
        assert (
            0 < sum(name.endswith(".png") for name in opened) <= times
            if times
            else not [name for name in opened if name.endswith(".png")]
        )


def test_a_changed_row_is_another_document(data, template, coder):
    open_corpus(data, template, coder, "rows.jsonl").encode()
    rows = (data / "rows.jsonl").read_text()
    (data / "rows.jsonl").write_text(rows.replace("what is this?", "what was that?"))
    corpus = open_corpus(data, template, coder, "rows.jsonl")
    assert corpus.encode() == 0
    assert template.parse(draw_all(corpus)[0].ids).turns[0].parts[1] == Text("what was that?")


def test_ranks_encode_a_share_each_and_draw_what_the_others_made(data, template, coder, monkeypatch):
    expected = expect_all(data, template, coder)
    ranks = [open_corpus(data, template, coder) for _ in range(3)]
    shares = [corpus.encode(rank, 3) for rank, corpus in enumerate(ranks)]
    assert sum(shares) >= 5 and max(shares) < 5
    monkeypatch.setattr(type(coder), "encode_with_grids", None)  # nobody encodes any more
    for corpus in ranks:
        assert are_same(draw_all(corpus), expected)


def test_a_damaged_cache_is_made_again(data, template, coder):
    expected = expect_all(data, template, coder, "rows.jsonl")
    corpus = open_corpus(data, template, coder, "rows.jsonl")
    corpus.encode()
    [file] = (data.parent / "codes").glob("*.data")
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert are_same(draw_all(corpus), expected)
    assert are_same(draw_all(open_corpus(data, template, coder, "rows.jsonl")), expected)
    assert open_corpus(data, template, coder, "rows.jsonl").encode() == 0


def test_the_cache_of_another_tokenizer_is_not_used(data, template, coder, monkeypatch):
    open_corpus(data, template, coder, "rows.jsonl").encode()
    monkeypatch.setitem(coder.sha256, "image", "0" * 64)
    assert open_corpus(data, template, coder, "rows.jsonl").encode() == 3


def test_a_medium_that_is_gone_is_refused_as_its_dataset_says(data, template, coder, capsys):
    dataset = DatasetConfig(path=str(data / "rows.jsonl"), on_bad_row="skip")
    cfg = CorpusConfig(datasets=[dataset], length=512, codes=data.parent / "codes")
    corpus = Corpus(cfg, template, coder)
    (data / "0.wav").unlink()
    assert corpus.encode() == 3  # the clip beside it is not needed either
    assert "rows.jsonl line 4: " in capsys.readouterr().err
    [documents] = corpus.sets.values()
    assert are_same([documents[3]], [documents[4]])  # the next one stands in for it


def test_masks_are_kept_with_a_document_and_are_part_of_what_it_is(tmp_path, template):
    """The same texts masked otherwise are another document; a kept one comes back with its masks."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for name, mask in (("plain", {}), ("masked", {"loss": False})):
        messages = [talk[0], talk[1] | mask, *talk]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    for _ in range(2):  # the second time from the cache
        counts = []
        for name in ("plain", "masked"):
            corpus = open_corpus(tmp_path, template, None, f"{name}.jsonl", codes=tmp_path / "codes")
            corpus.encode()
            counts.append(int((draw_all(corpus)[0].labels >= 0).sum()))
        assert counts[0] == 2 * counts[1] > 0


def test_memory_does_not_grow_with_the_documents_that_were_drawn(tmp_path, template):
    """Nothing is held of a document but where it lies: some tens of bytes, whatever its length."""

    def count_bytes(num_rows):
        path = tmp_path / f"{num_rows}.jsonl"
        rows = ({"messages": [{"role": "assistant", "content": f"{n} " + "tree " * 200}]} for n in range(num_rows))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tracemalloc.start()
        corpus = open_corpus(tmp_path / "x", template, None, f"../{num_rows}.jsonl", codes=tmp_path / str(num_rows))
        corpus.encode()
        for _ in range(2):
            for rendered in draw_all(corpus):
                assert len(rendered) > 200
        gc.collect()  # free lists too
        found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del corpus
        return found

    (tmp_path / "x").mkdir()
    count_bytes(20)
    few, many = count_bytes(30), count_bytes(230)
    assert (many - few) / 200 < 100  # about 70: where it stands, where it is kept, which were chosen
