"""A model that learnt its codes under a mask of its own: its folder says so, and only what it learnt is asked of it."""

import json
import shutil

import numpy as np
import pytest

from tests.tiny_model import tiny_folder
from unimodal.export.stock import EXPORT_FILE, export_model
from unimodal.generation import make_decoder
from unimodal.model_folder.layout import PROCESSOR_FILE
from unimodal.model_folder.settings import read_processor
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.pipeline import load
from unimodal.pipeline.rows import make_row
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Turn
from unimodal.tuning.push import PushSettings, check_push
from unimodal.tuning.save import find_writing

pytestmark = pytest.mark.sweep("the pipeline")


@pytest.fixture
def make_folder(tmp_path):
    def make(**settings):
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder(), folder)
        writing = find_writing(ObjectiveConfig.model_validate({"masked_codes": settings}))
        processor = read_processor(folder).model_copy(update={"writing": writing})
        (folder / PROCESSOR_FILE).write_text(json.dumps(processor.model_dump(mode="json")))
        return folder

    return make


def test_its_own_decoder_is_used_unless_the_answer_is_of_words(make_folder):
    model = load(make_folder(own_place=True), device="cpu")
    drawn = model.generate("a red apple", "image", seed=3)
    assert model.engine.stats.forwards < 30  # not one for each of 64 codes
    method = make_decoder("masked", sees_ahead=True, own_place=True)
    model._fast_decoders["masked"] = method
    assert np.array_equal(model.generate("a red apple", "image", seed=3, decoder="masked").part.codes, drawn.part.codes)
    plain = load(tiny_folder(), device="cpu")
    for to in ("text", "audio"):  # sounds have no fixed number of codes: they are learnt one after the other
        own, other = (one.generate("a red apple", to, seed=3) for one in (model, plain))
        assert own.text == other.text and str(own.part) == str(other.part)


def test_what_it_never_learnt_is_refused_in_one_line(make_folder):
    model = load(make_folder(), device="cpu")
    refused = r"has image codes written one after the other, and this model learnt them with masked_codes alone; ask "
    for way, changes in {
        "decoder plain": {"decoder": "plain"},
        "decoder sjd": {"decoder": "sjd"},
        "search": {"search": "best-of-n"},
    }.items():
        with pytest.raises(ValueError, match=f"{way} {refused}without, with decoder masked or window-dif"):
            model.generate("a red apple", "image", **changes)
    document = Document([Turn("user", "draw a red apple.")])
    with pytest.raises(ValueError, match=f"a batch that is shared {refused}"):
        make_row(model, document, AnswerSettings(to="image"))
    make_row(model, document, AnswerSettings(to="text"))
    assert model.generate("what is this?", "text", decoder="plain", seed=1).text is not None


def test_one_that_learnt_both_is_asked_either_way(make_folder):
    folder = make_folder(share=0.5)
    model, plain = load(folder, device="cpu"), load(tiny_folder(), device="cpu")
    asked = {"seed": 3, "decoder": "plain"}
    own, other = (one.generate("a red apple", "image", **asked).part.codes for one in (model, plain))
    assert np.array_equal(own, other)
    make_row(model, Document([Turn("user", "draw a red apple.")]), AnswerSettings(to="image"))


def test_an_export_is_refused_or_says_how_it_is_written(make_folder, tmp_path):
    folder = make_folder(share=0.5)
    export_model(folder, tmp_path / "out")
    assert read_processor(tmp_path / "out").writing == read_processor(folder).writing
    assert json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    shutil.rmtree(folder)
    folder = make_folder()
    with pytest.raises(ValueError, match="learnt its codes with masked_codes alone .* not exported, nor to GGUF: use"):
        export_model(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    settings = PushSettings(repo="me/it", license="mit", data="pictures")
    with pytest.raises(ValueError, match="push: a model that learnt its codes with masked_codes alone"):
        check_push(settings, writing=read_processor(folder).writing)


def test_a_base_keeps_what_it_is(make_folder):
    folder = make_folder()
    assert find_writing(ObjectiveConfig(), folder) == read_processor(folder).writing
    assert find_writing(ObjectiveConfig(), tiny_folder()) is None and find_writing(ObjectiveConfig()) is None
    told = json.loads((folder / PROCESSOR_FILE).read_text())
    told["writing"]["decoders"]["masked"]["passess"] = 3
    (folder / PROCESSOR_FILE).write_text(json.dumps(told))
    with pytest.raises(ValueError, match="writing.decoders.masked: there is no setting 'passess'; choose from passes"):
        load(folder, device="cpu").generate("a red apple", "image")
