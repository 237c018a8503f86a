"""Documents are values: frozen, comparable, and the same after a copy; their JSON is tested in tests/data."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from unimodal.sequence.document import Audio, Document, Image, Media, Text, Turn, Video, make_part


def example() -> Document:
    return Document(
        [
            Turn("system", "be brief"),
            Turn("user", [Text("what is this?"), Image(path="a b.png"), Audio(codes=[1, 2, 3]), Text("")]),
            Turn("assistant", [Video(codes=[[1, 2], [3, 4]]), Text("a clip"), Text("of a cat")]),
            Turn("user", []),
        ]
    )


def test_copies_are_equal():
    document = example()
    assert pickle.loads(pickle.dumps(document)) == copy.deepcopy(document) == document


def test_canonical_joins_texts_and_drops_empty_ones():
    turns = example().canonicalize().turns
    assert turns[1].parts == (Text("what is this?"), Image(path="a b.png"), Audio(codes=[1, 2, 3]))
    assert turns[2].parts[1:] == (Text("a clip of a cat"),)
    assert turns[2].text == example().turns[2].text == "a clip of a cat"
    assert example().canonicalize().canonicalize() == example().canonicalize()
    assert Turn("user", [Text(""), Text("a"), Text(""), Text("b")]).canonicalize() == Turn("user", "a b")


def test_without_text_keeps_media_and_the_answer():
    turns = example().drop_text().turns
    assert [len(turn.parts) for turn in turns] == [0, 2, 3, 0]
    assert turns[2] == example().turns[2]


def test_parts_own_their_codes():
    codes = torch.arange(3)
    part = Image(codes=codes)
    codes[0] = 9
    assert part.codes.tolist() == [0, 1, 2] and part.codes.dtype == np.int64
    with pytest.raises(ValueError):
        part.codes[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.path = "x"
    assert part == Image(codes=[0, 1, 2]) and hash(part) == hash(Image(codes=[0, 1, 2]))
    assert part != Audio(codes=[0, 1, 2]) and part != Image(codes=[0, 1, 3]) and part != Image(path="a.png")
    assert len({Image(path="a.png"), Image(path="a.png"), Audio(path="a.png")}) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image(),
        lambda: Image(codes=[1], path="a.png"),
        lambda: Image(codes=[]),
        lambda: Image(codes=[1.5]),
        lambda: Image(codes=[[[1]]]),
        lambda: Text(3),
        lambda: Text("\ud800"),
        lambda: Turn("robot", []),
        lambda: Turn("user", ["plain string"]),
        lambda: Media(path="a"),
        lambda: make_part("smell", path="a"),
        lambda: Image(codes=[1]).require_codes() is not None and Image(path="a").require_codes(),
    ],
)
def test_user_mistakes_are_value_errors(make):
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value)


def test_media_may_be_bytes():
    part = Image(data=b"\x89PNG")
    assert part == Image(data=b"\x89PNG") and hash(part) == hash(Image(data=b"\x89PNG"))
    assert part not in (Image(data=b"other"), Audio(data=b"\x89PNG"), Image(path="a.png"), Image(codes=[1]))
    assert part.source == b"\x89PNG" and Image(path="a.png").source == "a.png"
    assert "PNG" not in repr(part)  # a film would fill the log
    with pytest.raises(ValueError, match="must be bytes, got str"):
        Image(data="text")
    with pytest.raises(ValueError, match="not several or none"):
        Image(data=b"x", path="a.png")
