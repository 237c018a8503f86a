"""Sinks, massive activations, drains and dormant heads: the published measures, and a sink that was put there."""

import json

import pytest
import torch
from matplotlib.figure import Figure

from tests.evaluation.inspection.conftest import WORDS
from tests.evaluation.inspection.planted import TOKEN, plant_sink
from tests.tiny_bases import BASES, REFUSED, TOKENIZER, WINDOW, make_base
from unimodal.evaluation.inspection import heads, make_report
from unimodal.evaluation.inspection.forward import ForwardChange, list_hidden, watch
from unimodal.evaluation.inspection.opened import open_base
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.model.base import LoadedBase

CLOSED = ("falcon", "bloom")  # attention by code of their own
SEES = {**BASES, **{kind: REFUSED[kind][0] for kind in ("bloom", "gpt_oss", "gemma4_text")}}


@pytest.mark.sweep
@pytest.mark.parametrize("kind", SEES)
def test_a_watched_forward_is_the_model_s_own(kind, open_tiny):
    """Logits and weights are what the model itself gives; heads are silenced and tokens hidden, and nothing else."""
    settings = REFUSED[kind][0] if kind in REFUSED else {}
    model = open_tiny(kind, **settings).decoder
    before = model.config._attn_implementation
    ids = torch.arange(3, 15)[None].repeat(2, 1)
    ids[1] += 9
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        seen = watch(model, ids)
        torch.testing.assert_close(seen.logits, plain, atol=1e-4, rtol=1e-4)
        total = seen.attention.sum(-1)
        assert (total < 1 + 1e-5).all() and ((total - 1).abs() < 1e-5).all() == (kind != "gpt_oss")  # its own sinks
        assert len(seen.states) == 3 and seen.attention.shape == (2, 2, 4, 12, 12)
        change = ForwardChange(hidden=list_hidden(12, [11], [8]))
        if kind == "bloom":  # it makes its positions of the mask
            with pytest.raises(ValueError, match="its own code, in which no token can be hidden"):
                watch(model, ids, change=change)
            change = ForwardChange()
        hidden = watch(model, ids, attention=False, change=change).logits
        torch.testing.assert_close(hidden[:, :11], plain[:, :11], atol=1e-4, rtol=1e-4)
        assert (hidden[:, 11] - plain[:, 11]).abs().max() > 1e-5 or kind == "bloom"
        if kind in CLOSED:
            with pytest.raises(ValueError, match="its own code, in which single heads and layers cannot be changed"):
                watch(model, ids, change=ForwardChange(silenced=frozenset({(0, 1)})))
        else:
            silenced = watch(model, ids, change=ForwardChange(silenced=frozenset({(0, 1)})))
            length = WINDOW if "sliding_window" in BASES.get(kind, {}) else 12
            assert int(seen.visible[0].sum(-1).max()) == length, "a window of eight, or all"
            assert not silenced.calls[0].outputs[:, :, 1].any() and silenced.calls[0].outputs[:, :, 0].any()
            assert (silenced.logits - plain).abs().max() > 1e-5
    assert model.config._attn_implementation == before


@pytest.mark.sweep
@pytest.mark.parametrize("kind", SEES)
def test_the_report_is_made_of_every_base(kind, open_tiny):
    opened = open_tiny(kind, **(REFUSED[kind][0] if kind in REFUSED else {}))
    report = make_report("heads", opened, InspectionInput(texts={"a": WORDS, "b": WORDS[::-1]}))
    assert report.sections["model"]["layers"] == 2 and report.sections["model"]["heads a layer"] == 4
    rows = report.sections["heads that differ between texts"]
    losses = [name for name in next(iter(rows.values())) if name.startswith("loss")]
    assert len(rows) == 4 and len(losses) == (0 if kind in CLOSED else 2)
    if losses:
        name, row = next(iter(rows.items()))
        _, layer, _, head = name.split()
        ids = opened.read_text(WORDS).ids
        change = ForwardChange(silenced=frozenset({(int(layer), int(head))}))
        expected = opened.measure_losses(ids, change).mean() - opened.measure_losses(ids).mean()
        assert row["loss if silenced, a"] == pytest.approx(float(expected), abs=1e-5)


def test_what_a_key_receives_is_the_mean_of_the_queries_behind_it():
    weights = torch.rand(2, 3, 9, 9).tril()
    visible = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    visible[:, 7, 2] = False  # a window hides it
    received = heads.measure_received(weights, visible)
    for key in range(9):
        queries = [at for at in range(key + 1, 9) if (at, key) != (7, 2)]
        if len(queries) < heads.LEAST_QUERIES:
            assert not received[:, :, key].any()
        else:
            torch.testing.assert_close(received[:, :, key], weights[:, :, queries, key].mean(2))


def test_massive_activations_are_told_by_the_published_rule():
    states = torch.ones(3, 5, 8)
    states[1, 2, 6] = -1500.0
    states[2, 2, 6] = -300.0
    layer, token, feature, value, ratio = heads.list_massive(states)[0]
    assert (layer, token, feature, value, ratio) == (1, 2, 6, -1500.0, 1500.0)
    assert abs(value) > heads.MASSIVE and ratio > heads.MASSIVE_RATIO


@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_planted_sink_is_found_where_it_was_put(place):
    opened = open_base(LoadedBase("planted", plant_sink(), TOKENIZER))
    words = [character for character in WORDS if character != chr(48 + TOKEN)]
    words.insert(place, chr(48 + TOKEN))
    report = make_report("heads", opened, InspectionInput(texts={"a": "".join(words)}))
    [(name, row)] = report.sections["sinks"].items()
    assert name == f"a {place} '{chr(48 + TOKEN)}'"
    assert row["share of heads"] == 1.0 and row["attention"] > 0.9
    assert row["value, × mean"] < 0.2, "its values are drained"
    assert report.sections["model"]["heads dormant"] == ["a 8"]
    [top] = list(report.sections["greatest activations"])[:1]
    assert top.startswith(f"a {place} ") and top.endswith("feature 1")
    figure = Figure()
    report.draw(figure)
    assert [axes.get_title() for axes in figure.axes if "sink" in axes.get_title()] == [
        "attention on sinks: a",
        "whose sink a token is: a",
    ]


def test_a_head_is_dormant_on_one_text_and_active_on_another():
    opened = open_base(LoadedBase("planted", plant_sink(), TOKENIZER))
    plain = "".join(character for character in WORDS if character != chr(48 + TOKEN))
    report = make_report("heads", opened, InspectionInput(texts={"with": chr(48 + TOKEN) + plain, "without": plain}))
    rows = report.sections["heads that differ between texts"].values()
    assert all(row["sinks, with"] > 0.9 and row["sinks, without"] < 0.5 for row in rows)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("mamba", "MambaForCausalLM has no attention weights to look at"), ("bert", "BertLMHeadModel is no decoder")],
)
def test_a_model_without_causal_attention_is_refused_in_one_line(kind, message):
    opened = open_base(LoadedBase(kind, make_base(kind, None), TOKENIZER))
    with pytest.raises(ValueError, match=message) as error:
        make_report("heads", opened, InspectionInput(prompt=WORDS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (InspectionInput(texts={"a": " \n"}), "a holds no text"),
        (InspectionInput(prompt="0A1"), "prompt has 3 tokens; give at least 5"),
        (InspectionInput(prompt=""), "prompt holds no text"),
    ],
)
def test_texts_that_cannot_be_judged_are_refused(given, message, open_tiny):
    with pytest.raises(ValueError, match=message):
        make_report("heads", open_tiny("llama"), given)


def test_a_report_is_written_whole(open_tiny, tmp_path):
    report = make_report("heads", open_tiny("llama"), InspectionInput(prompt=WORDS))
    report.save(tmp_path / "a.json", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["model"]["layers"] == 2 and len(found["arrays"]["dormancy"]["prompt"]) == 2
    with pytest.raises(ValueError, match="a plot is written as .svg or .png, not as .gif"):
        report.save(tmp_path / "b.json", tmp_path / "b.gif")
    assert not (tmp_path / "b.json").exists()
