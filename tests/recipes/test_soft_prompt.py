"""recipes/finetune_lora.py with a soft prompt: trained, stopped, saved, chatted with, exported, and opened by peft."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from unimodal.export.stock import export_model
from unimodal.model.adapter import load_adapter
from unimodal.model.prefix import PrefixPrompt
from unimodal.model.soft_prompt import find_soft_prompt, list_prompt_ids
from unimodal.model.weight_files import PROMPT_FOLDER
from unimodal.pipeline import load
from unimodal.sequence.document import Image

ROOT = Path(__file__).resolve().parents[2]


def recipe(*settings, flags=()):
    argv = [str(ROOT / "recipes" / "finetune_lora.py"), *flags]
    for setting in settings:
        argv += ["--set", setting]
    before, sys.argv = sys.argv, argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture
def settings(tiny_base, media_folder, pictures, tmp_path):
    return [
        f"base={tiny_base}", f"media={media_folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {pictures}}}], codes: {tmp_path}/codes, length: 256, tokens_per_batch: 256, "
        "batches_per_window: 2, validation_share: 0.2}",
        "lora=null", "loop.steps=4", "loop.warmup_steps=1", "loop.log_every=2", "loop.evaluate_every=2",
    ]  # fmt: skip


@pytest.mark.sweep("recipes at work")
def test_a_prompt_is_trained_asked_exported_and_opened_by_peft(settings, tmp_path, pictures, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe(*settings, "prompt={length: 6, text: describe}", flags=["--dry-run"])
    assert "6 × soft prompt" in capsys.readouterr().out and not (tmp_path / "out").exists()
    recipe(*settings, "prompt={length: 6, text: describe}")
    assert json.loads((tmp_path / "out" / "base.json").read_text())["soft_prompt"] == 6
    model = load(tmp_path / "out", device="cpu")
    prompt = find_soft_prompt(model.decoder)
    assert len(prompt) == 6 and model.engine.prompt_ids == tuple(prompt.ids)
    picture = Image(path=str(pictures.parent / "1.png"))
    first = model.chat([picture, "what is this?"], to="text", tokens=8)
    assert model.generate("a red apple", to="image").media.shape == (3, 64, 64)
    assert model.engine.parts.prompt.num_read == 1, "one prompt a model, read once"
    with torch.no_grad():
        kept = prompt.vectors.clone()
        prompt.vectors.zero_()
        bare = model.engine.compute_next([5, 6])
        prompt.vectors.copy_(kept)
    assert not torch.allclose(bare, model.engine.compute_next([5, 6])), "it is read"

    export_model(tmp_path / "out", tmp_path / "whole")
    names = {path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*")}
    assert {"model.safetensors", f"{PROMPT_FOLDER}/adapter_model.safetensors"} <= names
    again = load(tmp_path / "whole", device="cpu")
    assert again.chat([picture, "what is this?"], to="text", tokens=8) == first
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    theirs = PeftModel.from_pretrained(stock, tmp_path / "whole" / PROMPT_FOLDER).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        found = again.engine.compute_next([5, 6, 7])
        rows = found.nonzero()[:, 0]  # those that may come next
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1, rows].softmax(-1)
    torch.testing.assert_close(found[rows], expected, rtol=0, atol=1e-5)

    more = [setting for setting in settings if not setting.startswith(("base=", "out=", "run="))]
    more += [f"base={tmp_path}/whole", f"out={tmp_path}/more", f"run={tmp_path}/run2"]
    recipe(*more)  # a base of ours keeps its prompt, and trains it on
    further, _ = load_adapter(tmp_path / "more")
    assert len(list_prompt_ids(further)) == 6
    assert not torch.equal(find_soft_prompt(further).vectors, find_soft_prompt(again.decoder).vectors)
    with pytest.raises(SystemExit):
        recipe(*more, "prompt.length=3", "run=" + str(tmp_path / "run3"))
    assert "has a soft prompt already" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_a_prompt_of_examples_is_trained_near_them(settings, tmp_path, pictures, capsys):
    context = f"prompt.context={{path: {pictures}, examples: 2, epsilon: 0.5}}"
    recipe(*settings, context, "objective.context_prompt.decay=0.9", "loop.learning_rate=0.5")
    model, vocabulary = load_adapter(tmp_path / "out")
    length = len(list_prompt_ids(model))
    assert length > 16, "two documents with a picture each"
    moved = find_soft_prompt(model).vectors.detach()
    table = model.get_input_embeddings().base
    distances = torch.cdist(moved, table(torch.arange(vocabulary.size)).detach()).min(1).values
    assert (distances > 1e-4).any() and (distances < 1e-5).any(), "inputs move, labels stay rows of the vocabulary"
    with pytest.raises(SystemExit):
        recipe(*settings, f"prompt.context={{path: {pictures}, examples: 999}}", f"run={tmp_path}/other")
    assert "examples, not 999" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("kind", ["prefix={first_layer: 0}", "space={width: 8}"])
def test_states_in_the_layers_answer_as_in_training(settings, tmp_path, pictures, kind, capsys):
    """Trained, stopped, saved, asked, exported, and opened by peft as keys and values."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    asked = [*settings, "prompt.length=4", f"prompt.{kind}", "objective.mmrl.weight=0.5"]
    recipe(*asked, flags=["--dry-run"])
    assert "4 × soft prompt" in capsys.readouterr().out and not (tmp_path / "out").exists()
    recipe(*asked)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    model = load(tmp_path / "out", device="cpu")
    prompt = find_soft_prompt(model.decoder)
    assert isinstance(prompt, PrefixPrompt) and 0 < last["validation_apart"] < 1
    picture = Image(path=str(pictures.parent / "1.png"))
    first = model.chat([picture, "what is this?"], to="text", tokens=8)
    scored = model.engine.compute_next([5, 6, 7])
    ids = torch.tensor([[*prompt.ids, 5, 6, 7]])
    with torch.no_grad():
        rows = scored.nonzero()[:, 0]  # those that may come next
        torch.testing.assert_close(model.decoder(ids).logits[0, -1, rows].softmax(-1), scored[rows], rtol=0, atol=1e-5)

    export_model(tmp_path / "out", tmp_path / "whole")
    assert load(tmp_path / "whole", device="cpu").chat([picture, "what is this?"], to="text", tokens=8) == first
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    theirs = PeftModel.from_pretrained(stock, tmp_path / "whole" / PROMPT_FOLDER).eval()
    read = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = theirs(input_ids=read, attention_mask=torch.ones_like(read)).logits[0, -1, rows].softmax(-1)
    torch.testing.assert_close(scored[rows], expected, rtol=0, atol=1e-5)
    more = [setting for setting in settings if not setting.startswith(("base=", "out=", "run="))]
    recipe(*more, f"base={tmp_path}/whole", f"out={tmp_path}/more", f"run={tmp_path}/run2")
    further = find_soft_prompt(load_adapter(tmp_path / "more")[0])
    assert not torch.equal(further.states, prompt.states), "a base of ours keeps its prompt, and trains it on"
