"""The model card: kept and completed, or written; never without a licence and a statement of the data."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from tests.tiny_model import tiny_model
from unimodal.export.card import Statement, collect_figures, count_stored, flatten_figures, make_card, make_eval_results
from unimodal.export.hub import plan_push

REPORT = {
    "model": "tiny", "sha256": {}, "seed": 3, "limit": 12,
    "suites": {
        "picture_naming": {"style": "noto", "seen": {"pictures": 12, "right_percent": 58.3, "examples": [{"a": 1}]}},
        "speaking": {"wer": 67.2, "clear": True},
    },
}  # fmt: skip
SAID = Statement(license="apache-2.0", datasets=("owner/emoji", "owner/speech"), data="Drawn pictures only.")


@pytest.fixture
def folder(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "report.json").write_text(json.dumps(REPORT))
    return tmp_path / "model"


def test_a_written_card_says_what_the_files_say(folder):
    (folder / "samples").mkdir()
    (folder / "samples" / "picture.png").write_bytes(b"\x89PNG")
    (folder / "samples" / "speech.wav").write_bytes(b"RIFF")
    record = json.loads((folder / "export.json").read_text())
    named = {**record, "base_model": "owner/base", "base_model_relation": "finetune"}
    (folder / "export.json").write_text(json.dumps(named))
    card = ModelCard(make_card(folder, "me/model", SAID))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "any-to-any" and data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["owner/emoji", "owner/speech"]
    assert (data["base_model"], data["base_model_relation"]) == ("owner/base", "finetune")
    assert {"unimodal", "text-to-image", "text-to-speech", "text-to-video"} <= set(data["tags"])
    assert card.text.count("\n# ") == 1 and "unimodal chat --model me/model" in card.text
    assert "| picture_naming | seen.right_percent | 58.3 |" in card.text and "| speaking | wer | 67.2 |" in card.text
    assert "![samples/picture.png](samples/picture.png)" in card.text
    assert "\n[samples/speech.wav](samples/speech.wav)" in card.text
    assert "Drawn pictures only." in card.text and "(https://huggingface.co/datasets/owner/emoji)" in card.text
    assert f"vocabulary of {tiny_model().vocabulary.size:,} rows" in card.text
    millions = sum(p.numel() for p in tiny_model().decoder.parameters()) / 1e6
    assert count_stored(folder) == round(millions * 1e6) and f"{millions:,.1f} M parameters" in card.text
    assert "{{" not in card.text and "{%" not in card.text and "\n\n\n" not in card.text


def test_a_card_without_reports_and_samples_has_no_empty_sections(exported):
    text = make_card(exported, "me/model", SAID)
    assert "## Results" not in text and "## Samples" not in text and "base_model" not in text
    assert "\n\n\n" not in text and text.endswith("\n")


OWN = """---
license: mit
tags: [mine]
language: en
---
# My model

It is *mine*.

## Training data

Forty pictures.
"""


def test_a_card_that_is_there_keeps_its_words_and_its_metadata(folder):
    (folder / "README.md").write_text(OWN)
    card = ModelCard(make_card(folder, "me/model"))
    assert card.text == OWN.split("---\n", 2)[2]
    data = card.data.to_dict()
    assert (data["license"], data["tags"], data["language"]) == ("mit", ["mine"], "en")
    assert data["pipeline_tag"] == "any-to-any" and data["library_name"] == "transformers"


def test_a_card_without_metadata_or_data_gets_them(folder):
    (folder / "README.md").write_text("# My model\n\nIt is mine.\n")
    card = ModelCard(make_card(folder, "me/model", SAID))
    assert card.data.license == "apache-2.0" and card.data.datasets == list(SAID.datasets)
    assert card.text.startswith("# My model") and card.text.endswith("## Data\n\nDrawn pictures only.\n")


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        (None, Statement(), "without a licence .* and what it was trained on"),
        (None, Statement(license="mit"), "without what it was trained on .*--dataset owner/name"),
        (None, Statement(data="Pictures."), "without a licence .*--license apache-2.0"),
        (
            None,
            Statement(license=" ", datasets=["", " "], data="\n"),
            "without a licence .* and what it was trained on",
        ),
        (OWN.replace("license: mit\n", ""), Statement(), "without a licence"),
        (OWN.replace("license: mit", "license: ' '"), Statement(), "without a licence"),
        (OWN.replace("## Training data", "## More"), Statement(), "without what it was trained on"),
        (OWN.replace("Forty pictures.\n", ""), Statement(), "without what it was trained on"),  # an empty section
        (OWN.replace("mit", "other"), Statement(), "without the licence's name"),
        (OWN, Statement(license="apache-2.0"), "says license: mit, not apache-2.0"),
        (OWN.replace("license: mit", "license: [mit"), Statement(), "its metadata cannot be read"),
        ("---\n- a list\n---\n# M\n", Statement(), "its metadata cannot be read"),
    ],
)
def test_nothing_is_published_without_licence_and_data(folder, text, said, message):
    if text is not None:
        (folder / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        plan_push(folder, "me/model", said)
    assert "\n" not in str(error.value)


def test_evaluation_results_are_the_reports_figures_in_the_hubs_form(folder):
    files = make_eval_results(folder, "owner/evaluation")
    assert set(files) == {".eval_results/picture_naming.yaml", ".eval_results/speaking.yaml"}
    entries = [entry for text in files.values() for entry in parse_eval_result_entries(yaml.safe_load(text))]
    assert {entry.task_id: entry.value for entry in entries} == {
        "picture_naming.seen.pictures": 12, "picture_naming.seen.right_percent": 58.3, "speaking.wer": 67.2,
    }  # fmt: skip
    assert {entry.dataset_id for entry in entries} == {"owner/evaluation"}
    assert {entry.notes for entry in entries} == {"unimodal evaluate, seed 3, limit 12"}


def test_the_released_models_reports_are_all_published():
    from unimodal.model_folder.find import list_default_folders

    folder = list_default_folders()[0]
    found = collect_figures(folder)
    assert len(found) >= 5 and len(make_eval_results(folder, "a/b")) == len(found)
    assert all(list(flatten_figures(figures)) for figures in found.values())
    card = ModelCard(make_card(folder, "me/nano"))  # it states licence and data itself
    assert card.data.license == "apache-2.0"
