"""Converted checkpoints exported: the class, weights, files and answers of what they were made of."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Picture

from tests import tiny_checkpoints
from tools import convert_checkpoint
from unimodal.cli import app as cli
from unimodal.pipeline import load
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Turn

pytestmark = pytest.mark.sweep("exports")


KINDS = {
    "emu3": "Emu3ForConditionalGeneration",
    "chameleon": "ChameleonForConditionalGeneration",
    "janus": "JanusForConditionalGeneration",
}
OPTIONS = {"emu3": ["--grid", "4x5"], "chameleon": [], "janus": []}


def command(*words):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code or 0


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request, tmp_path_factory):
    """(kind, model and processor of the source, folder of source, converted and out)"""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = getattr(tiny_checkpoints, request.param)(folder / "source")
    arguments = [request.param, folder / "source", folder / "converted", *OPTIONS[request.param]]
    convert_checkpoint.main([str(argument) for argument in arguments])
    assert command("export", folder / "converted", "--out", folder / "out") == 0
    return request.param, model, processor, folder


def test_every_weight_is_what_it_was(exported):
    kind, model, _, folder = exported
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["architectures"] == [KINDS[kind]]
    again, info = getattr(transformers, KINDS[kind]).from_pretrained(folder / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    name = "generation_config.json"
    assert (folder / "out" / name).read_bytes() == (folder / "source" / name).read_bytes()


def test_its_processor_and_answers_are_the_checkpoints_own(exported):
    kind, model, processor, folder = exported
    again = getattr(transformers, KINDS[kind]).from_pretrained(folder / "out").eval()
    own = type(processor).from_pretrained(folder / "out")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    words = f"What is in the picture? {'<image_placeholder>' if kind == 'janus' else '<image>'}"
    inputs, expected = (one(images=[Picture.fromarray(noise)], text=[words], return_tensors="pt")
                        for one in (own, processor))  # fmt: skip
    assert set(inputs) == set(expected)
    assert all(torch.equal(torch.as_tensor(inputs[name]), torch.as_tensor(expected[name])) for name in inputs)
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**expected).logits)
    ours = load(folder / "converted", device="cpu")
    prompt = prepare(ours, Document([Turn("user", "What is a cat?")]), AnswerSettings(to="text")).prompt
    text = [row for rows in ours.vocabulary.text_ranges for row in rows]
    with torch.inference_mode():
        out = again.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=12, prefix_allowed_tokens_fn=lambda *_: text,
        )  # fmt: skip
    [found] = ours.answers([Document([Turn("user", "What is a cat?")])], to="text", tokens=13)[0]
    assert found.text == ours.template.parse_answer(out[0, len(prompt) :].tolist())[0].text


def test_it_is_converted_once_more_to_come_back(exported, tmp_path):
    kind, _, _, folder = exported
    arguments = [kind, folder / "out", tmp_path / "again", *OPTIONS[kind]]
    convert_checkpoint.main([str(argument) for argument in arguments])
    for name in ("vocabulary.json", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "converted" / name).read_bytes()
    first, second = (
        load(place, device="cpu").decoder.state_dict() for place in (folder / "converted", tmp_path / "again")
    )
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_what_to_do_with_it_here_is_said(exported, capsys):
    kind, *_, folder = exported
    assert command("chat", "hello", "--model", folder / "out") == 2
    assert f"tools/convert_checkpoint.py {kind} {folder / 'out'} DIR` first" in capsys.readouterr().err


def test_another_precision_and_shards(exported, tmp_path):
    kind, model, _, folder = exported
    words = ["--out", tmp_path / "half", "--dtype", "bfloat16", "--max-shard-size", "50KB"]
    assert command("export", folder / "converted", *words) == 0
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    again = getattr(transformers, KINDS[kind]).from_pretrained(tmp_path / "half", dtype="auto")
    assert all(tensor.dtype == torch.bfloat16 for tensor in again.state_dict().values() if tensor.is_floating_point())


def test_a_bfloat16_checkpoint_stays_one(exported, tmp_path):
    kind, model, processor, _ = exported
    model = getattr(transformers, KINDS[kind]).from_pretrained(exported[3] / "source", dtype=torch.bfloat16)
    shutil.copytree(exported[3] / "source", tmp_path / "source")
    model.save_pretrained(tmp_path / "source")
    convert_checkpoint.main([kind, str(tmp_path / "source"), str(tmp_path / "converted"), *OPTIONS[kind]])
    assert command("export", tmp_path / "converted", "--out", tmp_path / "out") == 0
    again = getattr(transformers, KINDS[kind]).from_pretrained(tmp_path / "out", dtype="auto")
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype and torch.equal(again.state_dict()[name], tensor)


def test_what_is_incomplete_writes_nothing(exported, tmp_path, capsys):
    kind, *_, folder = exported
    copy, out = tmp_path / "copy", tmp_path / "out"

    def line():
        assert command("export", copy, "--out", out) == 2 and not out.exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    shutil.copytree(folder / "converted", copy)
    (copy / "original" / "config.json").rename(tmp_path / "config.json")
    assert "has no original/config.json, which says what it was; convert the checkpoint again" in line()
    (tmp_path / "config.json").rename(copy / "original" / "config.json")
    fields = json.loads((copy / "original" / "config.json").read_text())
    (copy / "original" / "config.json").write_text(json.dumps(fields | {"model_type": "llama"}))
    assert "is of type 'llama'; there are chameleon, emu3, janus" in line()
    if kind == "janus":
        (copy / "original" / "config.json").write_text(json.dumps(fields))
        (copy / "image_head.safetensors").unlink()
        assert "image_head.safetensors is missing" in line()
        shutil.copyfile(folder / "converted" / "image_head.safetensors", copy / "image_head.safetensors")
        other = copy / "image_tokenizer" / "model.safetensors"
        shutil.copyfile(other, copy / "image_reader" / "model.safetensors")
        assert "the image reader has sha256" in line()
