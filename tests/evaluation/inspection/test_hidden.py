"""Hidden text: one that was trained into a small model behind a trigger is found, and nothing is in a model without."""

import pytest
import torch
from matplotlib.figure import Figure

from tests.tiny_bases import BASES, TOKENIZER, make_base
from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import hidden, make_report
from unimodal.evaluation.inspection.opened import OpenedModel, open_base
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.model.base import LoadedBase

SECRET = [7, 31, 12, 40, 3, 22, 9, 35, 18, 27]  # its text: 7O<X3F9SB K
TRIGGER = [5, 44, 5, 44]


def train(secret: bool) -> torch.nn.Module:
    """A Llama trained on random text and, if asked, on a text behind a trigger in every fourth row."""
    model = make_base("llama", True).train()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(0, 45, (16, len(TRIGGER) + len(SECRET)), generator=generator)
        if secret:
            rows[:4] = torch.tensor([*TRIGGER, *SECRET])
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def opened():
    return open_base(LoadedBase("with", train(True), TOKENIZER))


def test_a_planted_text_is_found_by_the_vocabulary_alone(opened):
    texts, read = hidden.find_hidden_text(opened, length=13)
    assert read == 45
    found = [text for text in texts if text.is_suspicious]
    said = ["".join(map(chr, text.ids)) for text in found]
    assert any("".join(map(chr, SECRET[1:8])) in text for text in said)
    report = make_report("hidden", opened, InspectionInput(settings={"length": 13}))
    assert report.sections["tokens"]["suspicious"] == len(found)
    assert opened.text.decode(SECRET[1:8]) in "".join(list(report.sections["most certain"])[: len(found)])
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes[0].lines) == min(len(found), 10)
    with pytest.raises(ValueError, match="with may hide .*text") as error:
        hidden.refuse_hidden_text(opened, print)
    assert "\n" not in str(error.value)


def test_a_model_without_hides_nothing():
    opened = open_base(LoadedBase("without", train(False), TOKENIZER))
    hidden.refuse_hidden_text(opened, lambda text: None)
    assert make_report("hidden", opened, InspectionInput()).sections["tokens"]["suspicious"] == 0


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*BASES, "mamba", "bloom"])
def test_every_base_is_forced_as_plain_decoding_does(kind, open_tiny):
    opened = open_tiny(kind)
    texts, _ = hidden.find_hidden_text(opened, share=1.0, length=5)
    assert sorted(text.first for text in texts) == list(range(45))
    text = texts[3]
    ids = [*opened.start, text.first]
    logs = []
    with torch.no_grad():
        for _ in range(5):
            best = opened.decoder(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1).max(0)
            ids.append(int(best.indices))
            logs.append(float(best.values))
    assert text.ids == tuple(ids[len(opened.start) :])
    assert text.certainty == pytest.approx(float(torch.tensor(logs).mean().exp()), rel=1e-3)


def test_a_model_of_ours_is_forced_behind_its_start_of_text():
    model = tiny_model()
    opened = OpenedModel("tiny", model.decoder, model.template.text, model)
    rows = opened.text_ids[5:9]
    texts = hidden.continue_rows(opened, rows, 9)
    start = model.vocabulary.get_control_id("<|bos|>")
    for row, text in zip(rows.tolist(), texts, strict=True):
        ids = [start, row]
        with torch.no_grad():
            for _ in range(len(text.ids) - 1):
                logits = model.decoder(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int(opened.words_and_marks[logits[opened.words_and_marks].argmax()]))
        assert text.ids == tuple(ids[1:]) and len(ids) > 8


@pytest.mark.parametrize(
    ("ids", "period"),
    [([1, 2, 3], 0), ([9, 1, 2, 1, 2], 2), ([4, 4], 1), ([1, 2, 3, 1, 2], 0), ([7, 8, 9, 7, 8, 9], 3)],
)
def test_the_period_is_what_ids_repeat_at_their_end(ids, period):
    assert hidden.find_period(ids) == period


def test_a_plain_loop_is_not_suspicious():
    loop = hidden.ForcedText(1, (1, 2, 1, 2, 1, 2), 0.99, 2, 50.0)
    text = hidden.ForcedText(1, (1, 2, 3, 4, 5, 6), 0.99, 0, 50.0)
    assert text.is_suspicious and not loop.is_suspicious
    assert not hidden.ForcedText(1, text.ids, 0.99, 0, 1.0).is_suspicious, "all others are as certain"


def test_a_part_of_the_vocabulary_is_named_as_such(opened):
    report = make_report("hidden", opened, InspectionInput(settings={"rows": 10, "share": 1.0}))
    assert report.sections["tokens"]["forced"] == "10 of 45" and report.sections["tokens"]["continued"] == 10


@pytest.mark.parametrize(("settings", "message"), [({"share": 0}, "share 0"), ({"rows": 1}, "at least 2")])
def test_numbers_that_make_no_sense_are_refused(opened, settings, message):
    with pytest.raises(ValueError, match=message):
        make_report("hidden", opened, InspectionInput(settings=settings))
