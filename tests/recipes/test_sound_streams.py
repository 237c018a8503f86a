"""Sound in several codes a step, from a checkpoint of SNAC or Mimi to a language model that writes it: the folder of
tokenizers, the plan of a training, the grammar, and the sound of what was written."""

import json

import numpy as np
import pytest
import soundfile
from safetensors.torch import save_file

from tests import tiny_networks
from tests.recipes.test_finetune_lora import recipe
from tests.tokenizers.released import build_small, clone_state
from tools import convert_checkpoint
from unimodal.coder.media_coder import load_coder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.model.build import NanoConfig, build_nano
from unimodal.tuning.vocabulary import make_template


def write_snac(folder):
    """A checkpoint as its authors release it: their names and their config.json."""
    tokenizer = build_small("snac-24")
    folder.mkdir()
    save_file(clone_state(tokenizer), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(tokenizer.write_authors_config()))


#: what writes a checkpoint; the order of codes, as Orpheus has SNAC's and with Moshi's delays of Mimi's; codes a step
ROUTES = {
    "snac": (write_snac, "flat", 7),
    "mimi": (lambda folder: tiny_networks.mimi(sampling_rate=1600).save_pretrained(folder), "delay 0 1 1 1 1 1", 6),
}


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("name", ROUTES)
def test_a_checkpoint_becomes_codes_that_a_language_model_writes(name, tiny_base, tmp_path, capsys):
    write, order, groups = ROUTES[name]
    write(tmp_path / "released")
    convert_checkpoint.main(["tokenizers", str(tmp_path / "media"), "--audio", f"{name}={tmp_path / 'released'}"])
    coder = load_coder(tmp_path / "media")
    tokenizer = coder.get_tokenizer("audio")
    assert [block.label for block in coder.vocabulary.blocks] == ["audio", *(f"audio.{n}" for n in range(1, groups))]

    sound = np.sin(np.arange(10 * tokenizer.samples_per_code) / 9).astype("float32") / 2
    soundfile.write(tmp_path / "hum.wav", sound, tokenizer.sample_rate_hz)
    turns = [
        {"role": "user", "content": "hum"},
        {"role": "assistant", "content": [{"type": "audio", "path": "hum.wav"}]},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 6) + "\n")
    capsys.readouterr()
    recipe(
        "finetune_lora", f"base={tiny_base}", f"media={tmp_path}/media", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {tmp_path}/data.jsonl}}], codes: {tmp_path}/codes, length: 512, "
        "tokens_per_batch: 512, validation_share: 0.3, batches_per_window: 1}",
        "lora.rank=4", "loop.steps=1", f"code_order.audio={order}", flags=["--dry-run"],
    )  # fmt: skip
    plan = capsys.readouterr().out
    assert "audio (audio)" in plan and "one step: loss" in plan and not (tmp_path / "out").exists()

    vocabulary = make_template(*read_text(tiny_base), coder, code_order={"audio": order}).vocabulary
    assert (vocabulary.get_layout("audio").pattern is None) == (order == "flat")
    ids = {name: vocabulary.get_control_id(name.removesuffix("_id")) for name in ("pad_id", "bos_id", "eos_id")}
    nano = NanoConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16, max_positions=256
    )
    engine = Engine(build_nano(vocabulary.size, nano, **ids).eval(), vocabulary)
    config = GenerationConfig(max_new_tokens=90, force="audio", max_codes={"audio": 6}, seed=3)
    for answer in engine.generate([[ids["bos_id"], 5, 6]] * 3, config):
        _, codes = vocabulary.decode_span(answer[:-1])
        assert codes.shape[1] == groups and vocabulary.encode_span("audio", codes) == answer[:-1]
        [wave] = coder.decode("audio", [codes])
        assert len(wave) == len(codes) * tokenizer.samples_per_code


def read_text(base):
    """The text tokenizer of a base, and the rows of its table."""
    from unimodal.text.tokenizer import TextTokenizer

    text = TextTokenizer.load(base)
    return text, text.size + 4
