"""Sink, dead and alive tokens: the authors' rule, planted ones, and a whole model of ours."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as Pillow

from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import make_report, media
from unimodal.evaluation.inspection.forward import ForwardChange, list_hidden
from unimodal.evaluation.inspection.media_maps import map_scores, measure_influence
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.sequence.document import Audio, Image


@pytest.fixture(scope="module")
def opened():
    model = tiny_model()
    return OpenedModel("tiny", model.decoder, model.template.text, model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Pillow.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return [Image(path=folder / f"{name}.png") for name in ("a", "b", "c")]


def find_useless_tokens(input_embeds, vocab, target_ids, top_k=3):
    """The rule of the authors' model: tokens one of whose nearest words is a target."""
    sims = torch.nn.functional.cosine_similarity(input_embeds[:, None], vocab[None], dim=-1)
    ids = sims.argsort(-1, descending=True)[:, :top_k]
    return torch.tensor([bool(set(row.tolist()) & set(target_ids)) for row in ids])


def test_tokens_are_told_as_the_authors_tell_them():
    embedded, words = torch.randn(40, 8), torch.randn(25, 8)
    nearest, _ = media.find_nearest(embedded, words)
    kinds = media.classify(nearest, [3, 4], [9])
    assert ((kinds == 2) == find_useless_tokens(embedded, words, [3, 4]).numpy()).all()
    useless = find_useless_tokens(embedded, words, [3, 4, 9]).numpy()
    assert ((kinds > 0) == useless).all() and 0 < useless.sum() < 40


def make_measures(nearest, received):
    return media.MediumMeasures("", None, None, torch.zeros(3, 2), torch.tensor(nearest), torch.tensor(received), None)


def test_words_that_come_back_are_sinks_where_they_are_looked_at():
    one = make_measures([[5, 0, 0], [7, 0, 0], [1, 0, 0]], [0.9, 0.01, 0.02])
    two = make_measures([[5, 0, 0], [7, 0, 0], [2, 0, 0]], [0.8, 0.02, 0.01])
    assert media.find_recurring([one, two], times=2.0) == ([5], [7])
    assert media.find_recurring([one, two], times=5.0) == ([], [5, 7])


def test_planted_dead_codes_are_found_and_hiding_is_measured(opened, pictures):
    """Codes of one block get the row of one word: they come back in every picture."""
    table = opened.decoder.get_input_embeddings().weight
    kept = table.detach().clone()
    block = opened.loaded.vocabulary.group_blocks("semantic")[0]
    try:
        with torch.no_grad():
            table[block.start : block.start + block.size] = table[17]
        report = make_report("media", opened, InspectionInput(files=pictures, answer="a face"))
    finally:
        with torch.no_grad():
            table.copy_(kept)
    word = repr(opened.text.decode([17]))
    assert report.sections["recurring words"][word]["media"] == 3
    steps = sum(s.count for s in opened.loaded.vocabulary.get_layout("image").segments if s.block == "semantic")
    assert report.sections["recurring words"][word]["tokens"] == 3 * steps
    for found in report.arrays.values():
        assert found["kinds"][:steps] == ["dead"] * steps
    rows = report.sections["kinds of tokens"]
    assert rows["dead"]["tokens"] + rows["alive"]["tokens"] + rows["sink"]["tokens"] == 3 * 64
    assert rows["dead"]["alike across media"] > 0.5
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 4, "three media, and their depths"


def test_hiding_nothing_changes_nothing_and_hiding_all_does(opened, pictures, monkeypatch):
    """And each choice of tokens is read once."""
    read = opened.read_prompt("what is this?", pictures[:1], "a face")
    assert len(read.spans[0].at) == 64 and read.labels[read.spans[0].at[0]].startswith("<|")
    every = read.spans[0].at.tolist()
    change = ForwardChange(hidden=list_hidden(len(read), range(len(read)), every))
    gained = (opened.measure_losses(read.ids, change) - opened.measure_losses(read.ids))[read.answer - 1 :].mean()
    asked = []
    measure = type(opened).measure_losses
    monkeypatch.setattr(type(opened), "measure_losses", lambda *given: asked.append(given) or measure(*given))
    meter = media.HidingMeter(opened, read)
    assert meter.measure([]) == 0.0 and not asked
    assert meter.measure(every) == meter.measure(every[::-1]) == pytest.approx(float(gained), abs=1e-6)
    assert abs(gained) > 1e-4
    assert len(asked) == 2


def test_scores_over_a_picture_keep_their_sum_and_lie_where_the_code_shows(opened, pictures):
    read = opened.read_prompt("what is this?", pictures[:1], "a face")
    span = read.spans[0]
    scores = np.zeros(64)
    scores[50] = 2.0
    found = map_scores(opened, span, scores)
    assert found.heat.shape == (64, 64) and found.heat.sum() == pytest.approx(2.0, rel=1e-4)
    influence = measure_influence(opened.loaded, span, list(range(64)))[50, 0]
    np.testing.assert_allclose(found.heat, 2 * influence, rtol=1e-4, atol=1e-9)
    influence = measure_influence(opened.loaded, span, [50])[0, 0]
    changed = np.array(span.part.codes)
    size = opened.loaded.vocabulary.group_blocks("image")[0].size
    changed[50] = (changed[50] + np.random.default_rng(0).integers(1, np.array([size]))[0]) % size
    plain, other = opened.loaded.coder.decode("image", [span.part.codes, changed])
    change = (plain - other).abs().mean(0).numpy()
    np.testing.assert_allclose(influence, change / change.sum(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("count", [0, 1])
def test_one_medium_is_not_enough(opened, pictures, count):
    with pytest.raises(ValueError, match="give two media or more, all of one kind"):
        make_report("media", opened, InspectionInput(files=pictures[:count]))


def test_media_that_the_model_lacks_are_refused(open_tiny, opened, pictures):
    with pytest.raises(ValueError, match="llama reads text only"):
        make_report("media", open_tiny("llama"), InspectionInput(files=pictures))
    with pytest.raises(ValueError, match="give two media or more, all of one kind"):
        make_report("media", opened, InspectionInput(files=[pictures[0], Audio(path="a.wav")]))
    with pytest.raises(ValueError, match="llama reads and writes text only, and no image"):
        open_tiny("llama").read_prompt("A", pictures[:1])
    with pytest.raises(ValueError, match="layer 9 is not there; tiny has 0 to 2"):
        make_report("media", opened, InspectionInput(files=pictures, answer="a", settings={"layer": 9}))
