"""Function tokens: counted by hand, and on every base."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tests.evaluation.inspection.conftest import WORDS
from tests.tiny_bases import BASES
from unimodal.evaluation.inspection import functions, make_report
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.model.lora import LoraSettings, add_lora, make_peft_config
from unimodal.model.rows import extend_rows

TEXT = "".join(f"00{character}" for character in WORDS[1:])[:80]  # two of three tokens are the same


def test_function_tokens_are_the_most_frequent_up_to_their_share():
    ids = np.array([5] * 4 + [7] * 3 + [1] * 2 + [2])
    assert functions.choose_function_tokens(ids, 0.4) == [5]
    assert functions.choose_function_tokens(ids, 0.5) == [5, 7]
    assert functions.choose_function_tokens(ids, 0.9) == [5, 7, 1]


def test_the_graph_has_an_edge_where_a_token_activates_a_feature_anywhere():
    features = torch.zeros(20, 3)
    features[4, 0] = features[9, 1] = 10.0
    features[3] = 10.0
    graph = functions.build_graph(1, features, np.array([3, 3, 3, 3, 8, 3, 3, 3, 3, 8, *[1] * 10]))
    assert graph.count_degrees([8, 3, 1]) == [2, 3, 0]
    assert graph.count_reached(graph.ids == 8) == 2


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_the_report_is_made_of_every_base(kind, open_tiny):
    opened = open_tiny(kind)
    report = make_report("functions", opened, InspectionInput(texts={"a": TEXT}, num_tokens=40))
    assert report.sections["texts"]["function tokens"] == 1
    assert report.sections["most frequent"]["'0'"]["function token"] == "yes"
    for row in report.sections["features reached"].values():
        assert row["features"] == (
            32 if kind in ("mixtral", "qwen3_moe") else 128 if kind in ("gpt2", "falcon") else 48
        )
        assert 0 <= row["by the first"] <= row["by the ten first"] <= 1
    rows = report.sections["loss by what stands before → what comes"]
    assert sum(row["share of all loss"] for row in rows.values()) == pytest.approx(1)
    window = opened.read_text(TEXT).ids[:40]
    losses = opened.measure_losses(window)
    kinds = [row == 0 for row in window.tolist()]
    rest = opened.read_text(TEXT).ids[40:]
    more = opened.measure_losses(rest)
    expected = [x for x, a, b in zip(losses, kinds, kinds[1:], strict=False) if a and not b]
    kinds = [row == 0 for row in rest.tolist()]
    expected += [x for x, a, b in zip(more, kinds, kinds[1:], strict=False) if a and not b]
    if not opened.start:
        assert rows["function → content"]["loss, nats"] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-4)


def test_a_short_text_is_refused(open_tiny):
    with pytest.raises(ValueError, match="the texts have 4 tokens; give at least 50"):
        make_report("functions", open_tiny("llama"), InspectionInput(prompt="0A1B"))


def test_the_plot_is_drawn(open_tiny):
    report = make_report("functions", open_tiny("llama"), InspectionInput(prompt=TEXT))
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 3


@pytest.mark.parametrize("report", ["functions", "alignment"])
def test_an_adapter_that_adds_nothing_is_seen_as_its_base(report, open_tiny):
    """Its table is in two parts, and its small matrices are none of the model's."""
    plain = open_tiny("llama")
    model = copy.deepcopy(plain.decoder)
    extend_rows(model, 5, 0, True, lambda table, seed: torch.zeros(5, table.shape[1]))
    add_lora(model, make_peft_config(model, LoraSettings(rank=2), "base"), 0)
    adapted = OpenedModel("adapter", model, plain.text, None, plain.start)
    texts = {"one": WORDS * 4, "two": WORDS[::-1] * 4}
    found, wanted = (make_report(report, opened, InspectionInput(texts=texts)) for opened in (adapted, plain))
    name = "features reached" if report == "functions" else "overlap of used weights"
    assert found.sections[name] == wanted.sections[name]
