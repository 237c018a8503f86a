"""The whole round: fine-tune on the forty examples → export → push → pull → chat, and the answers are the same."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures
from safetensors.torch import load_file

from tests.campaigns import is_study
from tests.export.hub_server import WRITER
from unimodal.model.adapter_files import is_adapter
from unimodal.pipeline import load
from unimodal.sequence.document import Image

pytestmark = pytest.mark.sweep("exports")


ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "tests" / "fixtures" / "quickstart"


@pytest.fixture
def tuned(tiny_base, media_folder, tmp_path):
    """The folder that recipes/finetune_lora.py writes after a few steps on the quickstart examples."""
    settings = [
        f"base={tiny_base}", f"media={media_folder}", f"out={tmp_path}/tuned", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {QUICKSTART}/data.jsonl}}], codes: {tmp_path}/codes, length: 512, "
        "tokens_per_batch: 512, batches_per_window: 4}", "lora.rank=4", f"loop.steps={60 if is_study() else 20}",
        "loop.warmup_steps=1",
        "loop.learning_rate=0.01", "loop.threads=1",
    ]  # fmt: skip
    before = sys.argv
    sys.argv = [str(ROOT / "recipes" / "finetune_lora.py"), *(word for s in settings for word in ("--set", s))]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
    return tmp_path / "tuned"


@pytest.mark.study
def test_tune_export_push_pull_and_chat_give_the_same_answers(tuned, hub, at_hub, tmp_path):
    assert is_adapter(tuned)
    picture = QUICKSTART / "red_apple.png"
    model = load(tuned, device="cpu")
    said = " ".join(part.text for part in model.chat([Image(path=str(picture)), "What is this?"], to="text"))
    drawn = model.generate("Draw a rocket.", to="image", seed=3)
    drawn.save(tmp_path / "before.png")
    assert said.strip() and len(set(drawn.part.codes.tolist())) > 4, "an answer that says something"

    ask = ("What is this?", "--image", picture, "--to", "text", "--model")
    draw = ("Draw a rocket.", "--to", "image", "--seed", "3", "--model")
    out = tmp_path / "exported"
    results, rest = at_hub(
        ("export", tuned, "--out", out),
        ("push", out, "me/tuned", "--license", "apache-2.0", "--data", "Forty emoji with their names."),
        ("chat", *ask, tuned),
        ("chat", *ask, out),
        ("chat", *ask, "me/tuned"),
        ("generate", *draw, "me/tuned", "--out", tmp_path / "after.png"),
        HF_TOKEN=WRITER,
    )
    assert [status for status, *_ in results] == [0] * 6, results
    assert {result[1].strip() for result in results[2:5]} == {said.strip()}
    before, after = (np.asarray(Pictures.open(tmp_path / f"{name}.png")) for name in ("before", "after"))
    assert np.array_equal(before, after)
    assert WRITER not in "".join(result[1] + result[2] for result in results) + rest

    pulled = next(hub.home.rglob("snapshots/*"))
    mine, theirs = load_file(out / "model.safetensors"), load_file(pulled / "model.safetensors")
    assert all((mine[name] == theirs[name]).all() for name in mine) and mine.keys() == theirs.keys()
    assert "Forty emoji" in (pulled / "README.md").read_text()
    published = "".join(path.read_text() for path in pulled.rglob("*") if path.suffix in (".json", ".yaml", ".md"))
    assert str(tmp_path) not in published and str(ROOT) not in published, "no path of this machine is published"
