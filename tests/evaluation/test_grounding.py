"""The suite of masks and boxes: figures of answers that are known beforehand."""

import numpy as np
import pytest
import torch

from tests.grounded_scenes import grounded_media, write_grounded_scenes
from unimodal.coder.outputs import Output
from unimodal.data.grounded.regions import draw_regions, find_box
from unimodal.evaluation import grounding, run_suite
from unimodal.evaluation.grounding import pair_names, summarize_overlap
from unimodal.model.base import load_base
from unimodal.pipeline import load
from unimodal.sequence.document import MEDIA_PARTS, Text

__all__ = ["grounded_media"]
PER_SPLIT = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_grounded_scenes(tmp_path_factory.mktemp("data"), PER_SPLIT)


@pytest.fixture
def grounded(grounded_media, tmp_path):
    """The tiny model with masks and boxes, untrained."""
    import importlib

    from tests.tiny_model import tiny_folder
    from unimodal.coder.media_coder import load_coder
    from unimodal.model_folder.settings import read_processor
    from unimodal.model_folder.write import save_model
    from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
    from unimodal.tuning.grown import grow_base

    torch.manual_seed(0)
    boxes = importlib.import_module("unimodal.tokenizers.more_media.boxes")
    coder = load_coder(tiny_folder())
    tokenizers = [coder.get_tokenizer(name) for name in coder.vocabulary.media]
    tokenizers += [build_tokenizer(read_system("himtok").choose_settings(small=True)).eval().round_to_half()]
    tokenizers += [boxes.BoxTokenizer(boxes.BoxConfig())]
    base = load_base(tiny_folder())
    template = grow_base(base, tokenizers)
    named = {tokenizer.modality: tokenizer for tokenizer in tokenizers}
    save_model(tmp_path / "grounded", base.model, template.vocabulary, template.text, named,
               read_processor(tiny_folder()))  # fmt: skip
    return load(tmp_path / "grounded", device="cpu")


def test_overlaps_are_summed_up_as_they_are_counted():
    one, other = np.zeros((2, 64, 64), bool)
    one[:8, :8] = other[4:12, :8] = True
    found = summarize_overlap([one, one], [one, other])  # IoU 1 and 32 / 96; areas 64 + 32 of 64 + 96
    assert found == {"count": 2, "miou": 66.7, "miou_error": 46.2, "ciou": 60.0, "half": 50.0, "other_things": 33.3}
    assert summarize_overlap([], []) == {"count": 0}


def test_names_stand_before_their_masks():
    mask = Output(MEDIA_PARTS["image"](codes=[1]), torch.ones(1, 16, 16))
    object.__setattr__(mask.part, "modality", "mask")
    answer = [Output(Text("a cat")), mask, mask, Output(Text("a box")), Output(Text("or two")), mask, Output(Text("x"))]
    assert [name for name, _ in pair_names(answer)] == ["a cat", "", "a box or two"]


def test_a_model_that_is_right_gets_full_marks(grounded, data, monkeypatch):
    """Answers are looked up in what was drawn; masks as codes would be coarse, so they are given as pixels."""

    def find(document):
        shown = document.turns[0].parts[0].codes.tolist()
        return next(item for item in range(len(made[-1])) if made[-1].pictures[item].tolist() == shown)

    made = []
    code = grounding.code_scenes

    def remember(*arguments):
        made.append(code(*arguments))
        return made[-1]

    def answers(self, documents, to=None, **_):
        found = []
        for document in documents:
            item = find(document)
            masks = draw_regions(made[-1].planned.painter, made[-1].find_words(item).scene)
            task = {"mask": grounding.refer_to_mask, "box": grounding.refer_to_box, None: grounding.tell_all}[to]
            exchange = next(one for one in task(made[-1], item) if one.question[0] in document.turns[0].parts)
            outputs = []
            for part in exchange.answer:
                if isinstance(part, Text):
                    outputs.append(Output(part))
                    continue
                own = made[-1].boxes[item] if to == "box" else made[-1].masks[item]
                region = exchange.region or next(
                    r for r in sorted(own, key=lambda r: (made[-1].find_words(item).scene.things[r[0]].x, r))
                    if len(r) == 1 and r not in [seen for seen, _ in outputs_of]
                )  # fmt: skip
                outputs_of.append((region, part))
                media = (
                    torch.from_numpy(find_box(masks[region]))
                    if to == "box"
                    else torch.from_numpy(masks[region])[None].float()
                )
                outputs.append(Output(part, media))
            outputs_of.clear()
            found.append(outputs)
        return found

    outputs_of = []
    monkeypatch.setattr(grounding, "code_scenes", remember)
    monkeypatch.setattr(type(grounded), "answers", answers)
    monkeypatch.setattr(grounding, "answer_texts", lambda model, asked, *_: ["a cat"] * len(asked))
    figures = run_suite("grounding", grounded, data)
    for split in ("seen", "combination", "concept", "style"):
        for medium in ("mask", "box"):
            assert figures[split][medium]["miou"] == figures[split][medium]["half"] == 100.0
            assert figures[split][medium]["other_things"] < 60
        assert figures[split]["all_at_once"]["both"]["percent"] == 100
    named = [made[0].find_words(i).name(made[0].find_words(i).scene.things[r[0]]) for i in range(PER_SPLIT)
             for r in made[0].list_regions(i)]  # fmt: skip
    assert figures["seen"]["mask_named"]["percent"] == round(100 * named.count("cat") / len(named), 1)


def test_a_model_that_knows_nothing_is_measured(grounded, data):
    figures = run_suite("grounding", grounded, data, limit=2)
    assert set(figures) == {"judge", "seen", "combination", "concept", "style"}
    for split in ("seen", "concept"):
        assert figures[split]["mask"]["miou"] < 60 and 0 <= figures[split]["box"]["miou"] < 60
        assert figures[split]["box"]["through_codes"] > 80 and 0 <= figures[split]["mask"]["through_codes"] < 60
        assert figures[split]["box_named"]["count"] >= 2 and figures[split]["all_at_once"]["both"]["percent"] == 0


def test_a_model_without_masks_and_boxes_says_so(model, data):
    assert "has neither masks nor boxes" in str(run_suite("grounding", model, data)["not_measured"])
