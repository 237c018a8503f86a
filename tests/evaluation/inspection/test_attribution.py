"""Attribution: the authors' formulas, every base, and a feature that was planted in words and in a picture."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as Pillow

from tests.evaluation.inspection.conftest import WORDS
from tests.evaluation.inspection.planted import TOKEN, plant, plant_source
from tests.tiny_bases import BASES, REFUSED, TOKENIZER
from tests.tiny_model import tiny_folder
from unimodal.evaluation.inspection import attribution, make_report, reagent
from unimodal.evaluation.inspection.opened import OpenedModel, open_base
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.model.base import LoadedBase
from unimodal.pipeline import load
from unimodal.sequence.document import Audio, Image

FAST = {"most_steps": 4, "draws": 4}
METHODS = ["reagent", "gradient", "input × gradient", "integrated", "attention", "rollout"]


def test_the_update_of_a_draw_is_the_authors():
    replaced = torch.tensor([[True, False, True], [False, False, True]])
    before, after = torch.tensor([0.9, 0.2]), torch.tensor([[0.3, 0.25], [0.8, 0.1]])
    found = reagent.update_scores(replaced, before, after)
    for draw in range(2):
        for target in range(2):
            delta = before[target] - after[draw, target]
            score = replaced[draw] * delta + ~replaced[draw] * -delta
            torch.testing.assert_close(found[draw, target], torch.logit(score * 0.5 + 0.5))


def test_the_end_is_the_authors():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert reagent.stays_likely(logits, torch.tensor([2, 0]), 3).tolist() == [True, False]


def test_it_ends_where_the_answer_stays_likely(open_tiny):
    opened = open_tiny("llama")
    read = opened.read_prompt(WORDS[:10], answer="AB")
    all_rows = reagent.ReagentSettings(among=48, draws=1, least_steps=2, most_steps=50)
    assert reagent.score_by_replacing(opened, read, all_rows).steps == 2, "every row is among the likeliest"
    never = reagent.ReagentSettings(among=1, kept=1, draws=2, most_steps=3)
    found = reagent.score_by_replacing(opened, read, never)
    assert found.steps <= 3 and found.published.shape == (2, 10)
    torch.testing.assert_close(found.published.sum(1), torch.ones(2))


def test_gradients_are_those_of_the_answer_s_likelihood(open_tiny):
    opened = open_tiny("llama")
    read = opened.read_prompt(WORDS[:8], answer="AB")
    table = opened.decoder.get_input_embeddings()
    embedded = table(read.ids[None]).detach().double()
    model = opened.decoder.double()
    try:
        found = attribution.score_by_gradients(opened, read, 4)

        def measure(inputs):
            logits = model(inputs_embeds=inputs, use_cache=False).logits[0, 7:-1].log_softmax(-1)
            return float(logits.gather(-1, read.ids[8:, None]).sum())

        with torch.no_grad():
            step = 3e-3  # norms are computed in float32
            for at in (0, 5):
                slope = torch.zeros(32, dtype=torch.double)
                for feature in range(32):
                    up, down = embedded.clone(), embedded.clone()
                    up[0, at, feature] += step
                    down[0, at, feature] -= step
                    slope[feature] = (measure(up) - measure(down)) / (2 * step)
                assert float(found["gradient"][at]) == pytest.approx(float(slope.norm()), rel=2e-2)
                expected = float((slope * embedded[0, at]).sum())
                assert float(found["input × gradient"][at]) == pytest.approx(expected, rel=5e-2, abs=5e-3)
    finally:
        model.float()


def test_integrated_gradients_add_up_to_the_change_of_the_likelihood(open_tiny):
    opened = open_tiny("gpt2")
    read = opened.read_prompt(WORDS[:6], answer="A")
    found = attribution.score_by_gradients(opened, read, 400)["integrated"]
    with torch.no_grad():
        embedded = opened.decoder.get_input_embeddings()(read.ids[None])
        empty = embedded.clone()
        empty[:, :6] = 0
        both = [
            opened.decoder(inputs_embeds=inputs, use_cache=False).logits[0, 5].log_softmax(-1)[read.ids[6]]
            for inputs in (embedded, empty)
        ]
    assert float(found.sum()) == pytest.approx(float(both[0] - both[1]), rel=0.1, abs=0.05)


def test_attention_is_what_the_answer_pays(open_tiny):
    opened = open_tiny("llama")
    read = opened.read_prompt(WORDS[:8], answer="AB")
    found = attribution.score_by_attention(opened, read)
    opened.decoder.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(opened.decoder(input_ids=read.ids[None], output_attentions=True).attentions)[:, 0].mean(1)
    opened.decoder.set_attn_implementation("sdpa")
    torch.testing.assert_close(found["attention"], weights[:, 7:9, :8].mean((0, 1)))
    residual = 0.5 * weights + 0.5 * torch.eye(10)
    torch.testing.assert_close(found["rollout"], (residual[1] @ residual[0])[7:9, :8].mean(0))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*BASES, "bloom", "mamba"])
def test_the_report_is_made_of_every_base(kind, open_tiny):
    opened = open_tiny(kind, **(REFUSED[kind][0] if kind in REFUSED else {}))
    report = make_report("attribution", opened, InspectionInput(prompt=WORDS[:12], answer="AB", settings=FAST))
    methods = METHODS[:4] if kind == "mamba" else METHODS
    assert list(report.arrays["scores"]) == methods
    assert list(report.sections["log-likelihood lost a token"]) == [*methods, "random"]
    assert len(report.sections["greatest shares"]) == 12 and report.sections["answer"]["answer"].split() == ["A", "B"]


def test_an_answer_that_is_not_given_is_the_model_s_own(open_tiny):
    opened = open_tiny("llama")
    read = opened.read_prompt(WORDS[:6])
    with torch.no_grad():
        best = opened.decoder(input_ids=read.ids[None], use_cache=False).logits[0, read.answer - 1 : -1].argmax(-1)
    assert len(read) > read.answer and torch.equal(best, read.ids[read.answer :])


@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_planted_word_gets_the_attribution(place):
    opened = open_base(LoadedBase("planted", plant_source(), TOKENIZER))
    words = [character for character in WORDS[:12] if character != chr(48 + TOKEN)]
    words.insert(place, chr(48 + TOKEN))
    many = {"draws": 32, "least_steps": 8, "most_steps": 8}
    report = make_report("attribution", opened, InspectionInput(prompt="".join(words), settings=many))
    for name, scores in report.arrays["scores"].items():
        best = int(np.argmax(np.abs(scores)))
        assert best == place, name
    row = report.sections["log-likelihood lost a token"]
    assert row["reagent"]["its best fifth replaced"] > row["random"]["its best fifth replaced"]
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 2


def test_a_planted_code_of_a_picture_gets_the_attribution_where_it_lies(tmp_path):
    model = load(tiny_folder(), device="cpu")
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    opened = OpenedModel("planted", model.decoder, model.template.text, model)
    read = opened.read_prompt("what is this?", [Image(path=tmp_path / "a.png")], "a")
    rows = read.ids[read.spans[0].at].tolist()
    code = next(at for at in range(len(rows)) if rows.count(rows[at]) == 1)
    plant(model.decoder, rows[code], 3.0)
    many = {"draws": 32, "least_steps": 8, "most_steps": 8}
    given = InspectionInput(prompt="what is this?", files=[Image(path=tmp_path / "a.png")], settings=many)
    report = make_report("attribution", opened, given)
    at = int(read.spans[0].at[code])
    for name in ("attention", "rollout"):  # what is planted is attention
        assert int(np.argmax(report.arrays["scores"][name])) == at, name
    assert report.sections["shares of media"]["image 1"]["attention"] > 0.8
    figure = Figure()
    report.draw(figure)
    assert [axes.get_title() for axes in figure.axes][-3:] == [
        "reagent: image 1", "integrated: image 1", "attention: image 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (InspectionInput(prompt=" "), "the prompt is empty"),
        (InspectionInput(), "give a prompt"),
        (InspectionInput(prompt="A", answer=""), "the answer is empty"),
        (InspectionInput(prompt="A", settings={"checks": 0}), "checks 0: give one or more"),
        (InspectionInput(prompt="A", files=[Audio(path="a.wav")]), "llama reads and writes text only, and no audio"),
        (InspectionInput(prompt="A", to="image"), "llama reads and writes text only, and no image"),
        (InspectionInput(prompt="A" * 200), "prompt and answer are 2.. tokens; llama reads at most 160"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(given, message, open_tiny):
    with pytest.raises(ValueError, match=message) as error:
        make_report("attribution", open_tiny("llama"), given)
    assert "\n" not in str(error.value)
