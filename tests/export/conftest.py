"""Adapters on tiny bases, an exported folder, and a Hub on this machine with the command line run against it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import Commands, start_launcher
from tests.export.hub_server import Hub
from tests.free_ports import free_ports
from tests.recipes.conftest import media_folder, tiny_base  # noqa: F401 - the fixtures
from tests.tiny_model import SENTENCES, tiny_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, media_folder):  # noqa: F811
    """tied → the folder of an adapter with LoRA and rows that all do something, on a random base of that kind."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from unimodal.config import Config
    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.lora import LoraSettings
    from unimodal.text.tokenizer import train_text_tokenizer
    from unimodal.tuning.save import save_tuned
    from unimodal.tuning.vocabulary import make_joint_template, open_media

    found = {}
    for tied in (True, False):
        folder = tmp_path_factory.mktemp("tied" if tied else "untied")
        text = train_text_tokenizer(SENTENCES, 420, folder / "base")
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=text.size + 4, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=tied, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        base, media = load_base(folder / "base"), open_media(media_folder)
        template = make_joint_template(base, media)
        model = build_model(base, template.vocabulary, LoraSettings(rank=4), initialiser="mean")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3 if "lora" in name else 0.1)
        save_tuned(folder / "adapter", model, str(folder / "base"), template, media, Config())
        found[tied] = folder / "adapter"
    return found


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The tiny model, exported in float32; tests that change it work on a copy."""
    from unimodal.export.stock import export_model

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(tiny_folder(), out, dtype="float32")
    return out


@pytest.fixture(scope="session")
def hub_launcher(tmp_path_factory):
    """Where the Hub of these tests listens, the folder of its cache, and a launcher of commands that know both."""
    [port] = free_ports(1)
    home = tmp_path_factory.mktemp("hub") / "home"
    with start_launcher(hub_environment(f"http://127.0.0.1:{port}", home)) as launcher:
        yield port, home, launcher


def hub_environment(endpoint, home, **more):
    """What huggingface_hub reads when it is imported."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return {
        **env, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_VERBOSITY": "debug", "PYTHONPATH": str(ROOT),
        **more,
    }  # fmt: skip


@pytest.fixture
def hub(hub_launcher):
    port, home, _ = hub_launcher
    hub = Hub(port, home)
    yield hub
    hub.close()
    shutil.rmtree(home, ignore_errors=True)


_DRIVER = """
import contextlib, io, json, sys
from unimodal.cli.app import main
results = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command)
        except SystemExit as stop:
            status = stop.code
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture
def at_hub(hub, hub_launcher, tmp_path):
    """Runs `unimodal …` commands one after the other in a process whose Hub is `hub`.

    → of each (status, stdout, stderr), and all that the process wrote besides, its log with every detail included.
    killed: the process is killed in the middle of the upload.
    """
    _, home, launcher = hub_launcher

    def run(*commands, killed=False, **environment):
        known = environment.keys() <= {"HF_TOKEN"}  # the rest is read when the package is imported
        words = json.dumps([[str(word) for word in command] for command in commands])
        (tmp_path / "here").mkdir(exist_ok=True)
        process = Commands(launcher if known else None).begin(
            [sys.executable, "-c", _DRIVER, words], cwd=tmp_path / "here",
            env=hub_environment(hub.endpoint, home, **environment),
        )  # fmt: skip
        hub.victim = process if killed else None
        out, err = process.communicate(timeout=110)
        assert process.returncode == (-9 if killed else 0), err[-2000:]
        *others, results = [""] if killed else out.splitlines()
        return json.loads(results or "[]"), "\n".join(others) + err

    return run
