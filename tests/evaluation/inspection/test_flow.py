"""Flow of words and alignment of kinds: the published formulas, every base, and a word that was planted."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as Pillow

from tests.evaluation.inspection.conftest import WORDS
from tests.evaluation.inspection.planted import TOKEN, plant_source
from tests.tiny_bases import BASES, TOKENIZER
from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import alignment, make_report
from unimodal.evaluation.inspection.opened import OpenedModel, open_base
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.model.base import LoadedBase
from unimodal.sequence.document import Image


def test_a_planted_word_is_all_that_an_answer_needs():
    opened = open_base(LoadedBase("planted", plant_source(), TOKENIZER))
    words = "AB<7<CD<EF"  # "<" is no letter: it stands between words
    report = make_report("flow", opened, InspectionInput(prompt=words, answer="GH"))
    rows = {name.split(" ", 1)[1]: row for name, row in report.sections["words"].items()}
    assert chr(48 + TOKEN) == "7" and len(report.sections["words"]) == 7
    whole = report.sections["answer"]["KL without any word"]
    assert rows["7"]["needed, KL"] > 0.5 * whole
    assert rows["7"]["needed, KL"] == max(row["needed, KL"] for row in rows.values())
    assert rows["7"]["suffices"] == max(row["suffices"] for row in rows.values())
    assert report.sections["words"]["0 AB"]["carried by"] in ("'A'", "'B'")
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 3


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.sweep) for kind in BASES])
def test_every_base_hides_words_as_a_mask_does(kind, open_tiny):
    opened = open_tiny(kind)
    report = make_report("flow", opened, InspectionInput(prompt="AB<CD", answer="GH"))
    rows = report.sections["words"]
    assert [name.split(" ", 1)[1] for name in rows] == ["AB", "<", "CD"]
    assert ("late layers, KL" in next(iter(rows.values()))) == (kind != "falcon")
    read = opened.read_prompt("AB<CD", answer="GH")
    ids, length = read.ids[None], len(read)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    first = read.first
    mask[first + 5 :, first : first + 2] = torch.finfo(torch.float32).min
    with torch.no_grad():
        plain = opened.decoder(input_ids=ids, use_cache=False).logits[0, read.answer - 1 : -1]
        if kind in ("llama", "qwen3", "gpt_neox", "olmo2", "falcon", "phi"):
            changed = opened.decoder(input_ids=ids, attention_mask=mask[None, None], use_cache=False)
            changed = changed.logits[0, read.answer - 1 : -1]
            expected = torch.nn.functional.kl_div(
                changed.log_softmax(-1), plain.log_softmax(-1), log_target=True, reduction="batchmean"
            )
            assert rows["0 AB"]["needed, KL"] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    assert report.sections["answer"]["KL without any word"] > 0


def compute_sim(list_1, list_2, mode):
    """The authors' similarity of two tokens × features arrays, in two of its modes."""
    if mode == "median":
        sim = list_1 @ list_2.transpose()
        sim = sim / (np.linalg.norm(list_1, axis=1, keepdims=True) * np.linalg.norm(list_2, axis=1, keepdims=True).T)
        return np.median(sim)
    one, two = list_1.mean(0), list_2.mean(0)
    return np.dot(one, two) / (np.linalg.norm(one) * np.linalg.norm(two) + 1e-7)


def test_similarities_and_overlaps_are_the_authors():
    one, two = torch.randn(7, 6), torch.randn(5, 6) + 1
    found = alignment.compare_tokens(one, two)
    assert found["mean of tokens"] == pytest.approx(compute_sim(one.numpy(), two.numpy(), "normal"), abs=1e-5)
    assert found["median"] == pytest.approx(compute_sim(one.numpy(), two.numpy(), "median"), abs=2e-1)
    weight, squares = torch.randn(4, 6), torch.rand(6)
    use = weight.abs() * squares.sqrt().reshape(1, -1)  # Wanda
    pruned = torch.zeros_like(use).scatter(1, use.argsort(1)[:, :3], 1).bool()
    mask = alignment.mark_used(weight, squares)
    assert torch.equal(mask, ~pruned)
    other = alignment.mark_used(weight, torch.rand(6))
    expected = np.logical_and(mask.numpy(), other.numpy()).sum() / np.logical_or(mask.numpy(), other.numpy()).sum()
    assert alignment.overlap_masks(mask, other) == pytest.approx(expected)
    assert alignment.overlap_masks(mask, mask) == 1.0


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*BASES, "mamba"])
def test_kinds_of_text_are_aligned_in_every_base(kind, open_tiny):
    opened = open_tiny(kind)
    report = make_report(
        "alignment", opened, InspectionInput(texts={"a": WORDS[:14], "b": WORDS[14:], "c": WORDS[:14]})
    )
    assert set(report.sections["kinds"]) == {"a", "b", "c"}
    same, other = report.sections["alignment"]["a – c"], report.sections["alignment"]["a – b"]
    assert same["mean of tokens, all depths"] == pytest.approx(1, abs=1e-4)
    assert other["mean of tokens, all depths"] < 0.999
    overlaps = report.sections["overlap of used weights"]
    assert overlaps["a – c"]["mean"] == pytest.approx(1) and 1 / 3 < overlaps["a – b"]["mean"] < 1
    assert overlaps["shuffled inputs"]["mean"] < 1


def test_media_and_text_are_aligned_in_a_model_of_ours(tmp_path):
    model = tiny_model()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    opened = OpenedModel("tiny", model.decoder, model.template.text, model)
    report = make_report("alignment", opened, InspectionInput(files=[Image(path=tmp_path / "a.png")]))
    assert report.sections["kinds"]["image"]["tokens"] == 64 and report.sections["kinds"]["text"]["tokens"] > 3
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 3 and len(figure.axes[2].lines) == 2
    report = make_report("flow", opened, InspectionInput(prompt="draw a red apple.", to="image"))
    assert report.sections["answer"]["answer"].endswith(" tokens of image")
    assert {"red", "apple"} <= {name.split(" ", 1)[1] for name in report.sections["words"]}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("flow", InspectionInput(), "give a prompt, whose words are followed"),
        ("flow", InspectionInput(prompt=""), "the prompt is empty"),
        ("alignment", InspectionInput(prompt=WORDS), "there is one kind of token only"),
        ("alignment", InspectionInput(files=[Image(path="a.png")]), "llama reads and writes text only, and no image"),
    ],
)
def test_what_cannot_be_compared_is_refused(name, given, message, open_tiny):
    with pytest.raises(ValueError, match=message):
        make_report(name, open_tiny("llama"), given)
