"""Compression as a setting of an answer: asked for by name or as a method, told, and refused in one line."""

import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from tests.tiny_model import tiny_folder, tiny_model
from unimodal.compression import METHODS, estimate_kept, open_methods
from unimodal.compression.learned import DecoderShape
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.fit import FIT
from unimodal.compression.tokens.tokenflex import TokenFLEX
from unimodal.compression.trained import save_compressor
from unimodal.pipeline import load
from unimodal.pipeline.compression import (
    check_methods,
    describe_kept,
    describe_methods,
    identify_methods,
    load_methods,
    read_methods,
)
from unimodal.pipeline.requests import UnfitRequestError, prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Image, Text, Turn


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def draw(seed):
    """A PNG of noise."""
    memory = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(memory, "PNG")
    return memory.getvalue()


@pytest.fixture(scope="module")
def documents(model):
    turns = [model.user_turn([Image(data=draw(seed)), "What is this?"]) for seed in range(3)]
    return [Document([turn]) for turn in turns] + [Document([Turn("user", "Hello")])]


@pytest.mark.parametrize("asked", ["divprune:0.5", "h2o:0.25", "fastv:0.5,snapkv:0.5", DivPrune(0.25), ["stride:0.3"]])
def test_an_answer_is_that_in_the_open_context_and_what_was_kept_is_told(model, documents, asked):
    told = []
    answers = model.answers(documents, to="text", tokens=8, compress=asked, on_compressed=told.append)
    for document, answer in zip(documents, answers, strict=True):
        with open_methods(read_methods(asked), model.engine):
            assert model.answers([document], to="text", tokens=8, seeds=[0])[0] == answer
    assert sorted(event.row for event in told) == [0, 1, 2, 3]
    kept = {event.row: (event.num_tokens, event.num_kept) for event in told}
    assert all(kept[row][1] < kept[row][0] for row in range(3)) and kept[3][0] == kept[3][1]


def test_rows_with_and_without_in_one_call(model, documents):
    each = [AnswerSettings(to="text", tokens=6, compress=name) for name in ("pooling:0.5", None, "pooling:0.5", "h2o")]
    alone = [model.answers([d], s)[0] for d, s in zip(documents, each, strict=True)]
    assert model.answers(documents, each) == alone
    assert not model.engine.intercepted


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("divprun:0.5", "did you mean divprune"),
        ("divprune:0", "keep is 0"),
        ("divprune:1.5", "keep is 1.5"),
        ("divprune:nan", "finite"),
        ("divprune:half", "no share"),
        ("", "no compression method ''"),
        ("divprune,", "no compression method ''"),
        ("tokenflex:0.5", "learned"),
        ([3], "no method"),
        (3, "no method"),
        ({"divprune": 0.25}, "no method"),
        (METHODS["divprune"], "no method"),
    ],
)
def test_what_no_model_could_do_is_one_line(asked, message):
    with pytest.raises(ValueError, match=message) as caught:
        AnswerSettings(compress=asked)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_too_long_for_a_file_is_unknown():
    with pytest.raises(ValueError, match="no compression method"):
        load_methods("x" * 5000)


@pytest.mark.parametrize("changes", [{"decoder": "jacobi"}, {"search": "best-of-n", "to": "image"}])
def test_what_needs_the_whole_prompt_is_refused(changes):
    with pytest.raises(ValueError, match="leave one of them out"):
        AnswerSettings(compress="stride:0.5", **changes)
    assert AnswerSettings(compress="stride:0.5", decoder="plain").methods == (METHODS["stride"](0.5),)


@pytest.mark.parametrize(
    ("asked", "message"), [(TokenFLEX(0.5), "projector"), (METHODS["fastv"](0.5, layer=40), "layer 40")]
)
def test_what_this_model_cannot_do_is_a_fault_of_the_field(model, documents, asked, message):
    with pytest.raises(UnfitRequestError, match=message) as caught:
        prepare(model, documents[0], AnswerSettings(to="text", compress=asked))
    assert caught.value.field == "compress"


@pytest.mark.parametrize("asked", ["stride:0.5,divprune:0.5", "stride:0.5,snapkv:0.5", "snapkv:0.5,h2o:0.5"])
def test_what_will_be_kept_is_known_before(model, documents, asked):
    settings = AnswerSettings(to="text", tokens=2, compress=asked)
    prepared, told = prepare(model, documents[0], settings), []
    model.answers(documents[:1], settings, on_compressed=told.append)
    assert told[0].num_kept == estimate_kept(prepared.prompt, prepared.methods, model.vocabulary) < told[0].num_tokens


def test_a_session_keeps_whole_caches(model, documents):
    with pytest.raises(ValueError, match="session"):
        model.answers(documents[:1], to="text", session=model.engine.open_session(), compress="stride:0.5")


def test_a_chat_of_several_turns(model):
    picture = Image(data=draw(9))
    first = model.user_turn([picture, "What is this?"])
    answer = model.chat(first.parts, to="text", tokens=4, compress="divprune:0.5")
    history = [first, Turn("assistant", [output.part for output in answer])]
    told = []
    model.chat(
        [picture, Text("And this?")], history, to="text", tokens=4, compress="stride:0.5", on_compressed=told.append
    )
    [event] = told
    num_codes = len(first.parts[0].require_codes())
    assert event.num_tokens - event.num_kept == 2 * (num_codes - round(num_codes / 2))


def test_methods_are_described_as_they_are_asked_for():
    methods = read_methods("divprune:0.25, snapkv")
    assert describe_methods(methods) == "divprune:0.25,snapkv:0.5"
    assert "12 of 40 tokens" in describe_kept(methods, 40, 12)
    assert "nothing to shorten" in describe_kept(methods, 40, 40)
    assert "attends to a share" in describe_kept(read_methods("fasa"), 40, 40)
    assert "in fewer bits" in describe_kept(read_methods("kivi:0.25"), 40, 40)
    assert "nothing to shorten" in describe_kept(read_methods("kivi:1"), 40, 40)
    assert "cost less" in describe_kept((METHODS["acm"](0.5),), 40, 40)


# ---- folders of trained methods


@pytest.fixture
def trained(model, tmp_path):
    """A folder with a compressor for the tiny model, and the method that is in it."""
    torch.manual_seed(0)
    shape = DecoderShape.of(model.engine.model.config)
    method = FIT(0.5, groups=2, reader=FIT.make_part(shape))
    save_compressor(tmp_path / "fit, mine", method, shape)
    return tmp_path / "fit, mine", method


def test_a_folder_names_a_trained_method(model, documents, trained):
    folder, method = trained
    [found] = load_methods(f"{folder}:0.25")
    [whole] = load_methods([str(folder)])
    assert found.keep == 0.25 and found.groups == 2 and replace(whole, reader=method.reader) == method
    both = load_methods((f"{folder}", "divprune:0.5, snapkv"))
    assert [type(one).__name__ for one in both] == ["FIT", "DivPrune", "SnapKV"]
    told = []
    answers = [
        model.answers(documents[:1], to="text", tokens=4, compress=asked, on_compressed=told.append)
        for asked in (load_methods(str(folder)), method)
    ]
    assert answers[0] == answers[1] and told[0].num_kept == told[1].num_kept < told[0].num_tokens
    same, other = identify_methods([method]), identify_methods([replace(method, groups=4)])
    assert same == identify_methods(load_methods(str(folder))) != other
    assert same.startswith("fit:0.5@") and identify_methods(load_methods("stride")) == "stride:0.5"


def test_a_folder_that_does_not_fit_is_one_line(model, trained, tmp_path, monkeypatch):
    folder, _ = trained
    wide = FIT(0.5, reader=FIT.make_part(DecoderShape(8, 2)))
    save_compressor(tmp_path / "wide", wide, DecoderShape(8, 2))
    (tmp_path / "empty").mkdir()
    for asked, message in [
        (f"{tmp_path}/nowhere:0.5", "no such folder"),
        (f"{tmp_path}/empty", "compressor.json.* cannot be read"),
        (f"{folder}:half", "'half' is no share"),
        (f"{folder}:2", "keep is 2"),
        ("divprun", "did you mean divprune"),
        ("fit", "--compress FOLDER"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            load_methods(asked)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="trained for states of 8 values"):
        check_methods(model, load_methods(f"{tmp_path}/wide"))
    with pytest.raises(ValueError, match="no compression method"):  # a request of a server opens no folder
        AnswerSettings(compress=str(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stride").mkdir()  # a method's name is the method's
    assert load_methods("stride:0.5") == (METHODS["stride"](0.5),)


@pytest.mark.parametrize(
    "narrow",
    [{"weights": "bfloat16"}, {"weights": "int8"}, {"weights": "int4"}, {"kv": "bfloat16"}, {"kv": "int8"}],
    ids=str,
)
def test_narrow_weights_and_caches_are_refused_beside_it(narrow):
    """The model's own forward has neither."""
    loaded = load(tiny_folder(), device="cpu", **narrow)
    loaded.chat("hello", to="text", tokens=2)
    with pytest.raises(ValueError, match="compress is not read with (weights|kv) ") as caught:
        loaded.chat("hello", to="text", tokens=2, compress="stride:0.5")
    assert caught.value.field == "compress"
