"""Points from the similarity of the token that asks for a mask: the authors' rule, planted places, whole models."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as Pillow

from tests.tiny_bases import BASES
from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import make_report, media_maps, points
from unimodal.evaluation.inspection.forward import watch
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence
from unimodal.evaluation.inspection.points import PointSettings, compare_states, find_points, measure_separation
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.sequence.document import Image


def resize(grid, height, width):
    """Bilinear, by the middles of pixels, without antialiasing."""
    h, w = len(grid), len(grid[0])

    def at(y, x):
        return grid[min(max(y, 0), h - 1)][min(max(x, 0), w - 1)]

    made = []
    for row in range(height):
        y = max((row + 0.5) * h / height - 0.5, 0)
        top, down = math.floor(y), y - math.floor(y)
        line = []
        for column in range(width):
            x = max((column + 0.5) * w / width - 0.5, 0)
            left, right = math.floor(x), x - math.floor(x)
            upper = at(top, left) * (1 - right) + at(top, left + 1) * right
            lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
            line.append(upper * (1 - down) + lower * down)
        made.append(line)
    return made


def find_points_plainly(grid, height, width, count, above, below, shrink):
    """The published rule, step by step: a smaller map from 0 to 1, its high and low places, each moved by the softmax
    of the fine map near it."""

    def unit(rows):
        low, high = min(map(min, rows)), max(map(max, rows))
        return [[(value - low) / (high - low) for value in row] for row in rows]

    small = unit(resize(grid, len(grid) // shrink, len(grid[0]) // shrink))
    h, w = len(small), len(small[0])
    cells = [(small[i // w][i % w], i) for i in range(h * w)]
    high = sorted([c for c in cells if c[0] >= above], key=lambda c: (-c[0], c[1]))
    low = sorted([c for c in cells if c[0] <= below])
    rest = [c for c in cells if below < c[0] < above]
    labels = [1] * len(high) + [0] * len(low) + [-1] * len(rest)
    fine = unit(resize(grid, height, width))
    moved = []
    for _, i in (high + low + rest)[:count]:
        x, y = int(min((i % w + 0.5) * width / w, width - 1)), int(min((i // w + 0.5) * height / h, height - 1))
        weights = {(p, q): math.exp(fine[q][p]) * math.exp(-((p - x) ** 2) - (q - y) ** 2)
                   for q in range(height) for p in range(width)}  # fmt: skip
        total = sum(weights.values())
        moved.append([sum(v * place[axis] for place, v in weights.items()) / total for axis in (0, 1)])
    return moved, labels[:count]


@pytest.mark.parametrize(("side", "size", "changes"), [
    (8, (16, 16), {}), (6, (12, 12), {"shrink": 1, "above": 0.6, "points": 60}), (8, (12, 20), {"points": 5}),
    (9, (15, 15), {}),
])  # fmt: skip
def test_points_are_those_of_the_authors_rule(side, size, changes):
    grid = torch.randn(side, side, generator=torch.Generator().manual_seed(side))
    settings = PointSettings(**changes)
    found, labels = find_points(grid, size, settings)
    wanted, said = find_points_plainly(
        grid.tolist(), *size, settings.points, settings.above, settings.below, settings.shrink
    )
    assert labels.tolist() == said and torch.allclose(found, torch.tensor(wanted), atol=1e-3)


def test_a_planted_place_is_the_first_point():
    for row, column in ((0, 0), (3, 6), (7, 2)):
        grid = torch.zeros(8, 8)
        grid[row, column] = 1
        found, labels = find_points(grid, (64, 64), PointSettings(shrink=1))
        assert labels[0] == 1 and (labels[1:] == 0).all()
        assert found[0].tolist() == pytest.approx([8 * column + 4, 8 * row + 4], abs=1.5)


def test_separation_is_the_share_of_ordered_pairs():
    heat = np.random.default_rng(0).integers(0, 4, (6, 6)).astype(float)
    mask = np.random.default_rng(1).random((6, 6)) > 0.6
    pairs = [(a > b) + 0.5 * (a == b) for a in heat[mask] for b in heat[~mask]]
    assert measure_separation(heat, mask) == pytest.approx(float(np.mean(pairs)))
    assert measure_separation(mask.astype(float), mask) == 1 and math.isnan(measure_separation(heat, mask | True))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*BASES, "mamba"])
def test_states_of_every_base_are_compared_as_the_authors_do(kind, open_tiny):
    """The product with the last state that transformers gives; and for one token their weights are all 1."""
    opened = open_tiny(kind)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        last = opened.decoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        states = watch(opened.decoder, ids, attention=False).states[-1][0]
    at = np.array([2, 3, 5, 7])
    pictures, asking = last[at][None], last[10:11]
    weights = (2 * (pictures[:, :1] @ asking.T)).softmax(-1)
    weights = weights / weights.mean(-1, keepdim=True)
    wanted = (pictures[:, :, None] * asking[None, None] * weights[..., None]).sum(-1)[0, :, 0]
    assert torch.allclose(compare_states(states, 10, at), wanted, rtol=1e-4, atol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(last[at], asking, dim=-1)
    assert torch.allclose(compare_states(states, 10, at, cosine=True), cosine, atol=1e-4)


@pytest.fixture(scope="module")
def opened():
    model = tiny_model()
    return OpenedModel("tiny", model.decoder, model.template.text, model)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return Image(path=path)


def test_the_report_of_a_model_without_masks_looks_from_where_it_answers(opened, picture):
    given = InspectionInput(prompt="What is this?", files=[picture], answer="a cat", settings={"points": 7})
    report = make_report("points", opened, given)
    read = opened.read_prompt("What is this?", [picture], "a cat", None)
    assert report.sections["answer"]["asking token"] == f"{read.answer - 1} '<|assistant|>'"
    assert len(report.arrays["points"]) == 7 and not report.arrays["separations"]
    assert np.array(report.arrays["map"]).shape == (64, 64)
    figure = Figure()
    report.draw(figure)
    assert [axes.get_title() for axes in figure.axes] == ["picture", "similarity, last layer"]


@pytest.mark.parametrize("report", ["points", "attribution"])
def test_where_codes_show_is_found_once_for_all_layers_and_methods(opened, picture, monkeypatch, report):
    """A code without a place is one decoded picture, which took most of the time of a report."""
    asked = []
    measure = media_maps.measure_influence
    monkeypatch.setattr(media_maps, "measure_influence", lambda *args: asked.append(args) or measure(*args))
    settings = {"points": 7} if report == "points" else {"most_steps": 4}
    given = InspectionInput(prompt="What is this?", files=[picture], answer="a cat", settings=settings)
    make_report(report, opened, given)
    assert len(asked) == 1


def test_the_asking_token_is_that_of_the_mask():
    labels = ("<|user|>", "a", "<|mask_start|>", "<|assistant|>", "yes", "<|box_start|>", "<|mask_start|>")
    assert points.find_query(ReadSequence(torch.arange(7), labels, answer=4)) == 5
    assert points.find_query(ReadSequence(torch.arange(5), labels[:5], answer=4)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (InspectionInput(prompt="a cat"), "there is no picture in the prompt"),
        (InspectionInput(prompt="a", settings={"points": 0}), "points 0, shrink 2"),
        (InspectionInput(prompt="a", settings={"below": 0.9}), "below 0.9 and above 0.8"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(opened, given, message):
    with pytest.raises(ValueError, match=message) as error:
        make_report("points", opened, given)
    assert "\n" not in str(error.value)


def test_a_stock_model_reads_no_picture(open_tiny, picture):
    with pytest.raises(ValueError, match="reads and writes text only, and no image"):
        make_report("points", open_tiny("llama"), InspectionInput(prompt="A", files=[picture]))
