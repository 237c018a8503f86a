"""A medium that the package has never heard of passes through all of it: file → codes → document → decoder → file."""

import base64
import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.serve.conftest import serving
from tests.tiny_model import NANO_WORDING, tiny_folder, tiny_tokenizers
from unimodal.cli.app import main
from unimodal.files import read_json
from unimodal.media.registry import MEDIA
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.settings import MediumLimits, MediumSettings, ProcessorConfig
from unimodal.model_folder.write import save_model
from unimodal.pipeline import load
from unimodal.sequence.document import MEDIA_PARTS, Document, Turn
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import FAMILIES
from unimodal.vocabulary import make_media_vocabulary

POINTS = [(1, 2), (3, 4), (15, 0), (0, 15), (7, 7)]


@pytest.fixture
def plugin(own_registrations, monkeypatch):
    """The one file, imported as a plugin is. What it registered is gone afterwards."""
    monkeypatch.setenv("UNIMODAL_PLUGINS", "tests.points_medium")
    sys.modules.pop("tests.points_medium", None)
    import tests.points_medium as plugin

    assert "points" in MEDIA and "grid_points" in FAMILIES
    return plugin


@cache
def make_folder(root: Path) -> Path:
    """A model of five media with random weights, which never ends a point list before its limit."""
    from tests.points_medium import PointConfig, PointTokenizer

    torch.manual_seed(0)
    text = TextTokenizer.load(tiny_folder())
    tokenizers = {**tiny_tokenizers(), "points": PointTokenizer(PointConfig()).eval()}
    vocabulary = make_media_vocabulary(tokenizers.values(), text.size, text.reserved_ids, text.sha256)
    sizes = NanoConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=512
    )
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>")
    )
    wording = NANO_WORDING.model_copy(update={"questions": {**NANO_WORDING.questions, "points": "What shape is this?"}})
    processor = ProcessorConfig(limits={"points": MediumLimits(codes=12)}, wording=wording)
    save_model(root / "five", decoder, vocabulary, text, tokenizers, processor, {"text": MediumSettings(temperature=0)})
    return root / "five"


@pytest.fixture
def folder(plugin, tmp_path_factory):
    return make_folder(tmp_path_factory.getbasetemp())


@pytest.fixture
def file(plugin, tmp_path):
    return plugin.write_points(tmp_path / "a.points", POINTS)


def test_its_rows_stand_behind_those_of_the_four_media(folder):
    names = [control["name"] for control in read_json(folder / "vocabulary.json")["controls"]]
    assert names[-2:] == ["<|points_start|>", "<|points_end|>"] and len(names) == 16
    four = [control["name"] for control in read_json(tiny_folder() / "vocabulary.json")["controls"]]
    assert names[:14] == four


def test_it_is_read_rendered_and_written(folder, file, tmp_path):
    model = load(folder, device="cpu")
    turn = model.user_turn([MEDIA_PARTS["points"](path=str(file))])
    assert turn.parts[0].codes.tolist() == [x + 16 * y for x, y in POINTS]
    assert turn.text == "What shape is this?"  # the trained question
    document = Document([turn, Turn("assistant", "a star")])
    rendered = model.template.render(document)
    assert model.template.parse(rendered.ids) == document.canonicalize()  # the template and its inverse
    modality = model.vocabulary.modalities.index("points")
    assert int((rendered.modality == modality).sum()) >= len(POINTS)
    [answer] = model.chat([MEDIA_PARTS["points"](path=str(file)), "What?"], to="text", tokens=20)
    assert answer.text is not None
    drawn = model.generate("a star", to="points", seed=3, tokens=20)
    assert drawn.media.shape[1] == 2 and 1 <= len(drawn.media) <= 12
    drawn.save(tmp_path / "b.points")
    again = model.tokenize(tmp_path / "b.points")
    assert again.modality == "points" and again.codes.tolist() == drawn.part.codes.tolist()
    mixed = model.answers([Document([model.user_turn("a cat")]), Document([turn])], tokens=90)
    assert len(mixed) == 2


def test_the_server_takes_it_and_gives_it(folder, file):
    url = "data:text/plain;base64," + base64.b64encode(file.read_bytes()).decode()
    with serving(load(folder, device="cpu")) as served:
        client, name = served.client(), served.service.name
        content = [{"type": "points_url", "points_url": {"url": url}}, {"type": "text", "text": "What?"}]
        message = {"role": "user", "content": content}
        said = client.chat.completions.create(model=name, messages=[message], modalities=["text"], max_tokens=20)
        assert isinstance(said.choices[0].message.content, str)
        wish = {"role": "user", "content": "a star"}
        made = client.chat.completions.create(model=name, messages=[wish], modalities=["points"], seed=1)
        [part] = [part for part in made.choices[0].message.content_parts if part["type"] == "points_url"]
        data = base64.b64decode(part["points_url"]["url"].split(",")[1])
        assert data.startswith(b"points\n")
        broken = {"type": "points_url", "points_url": {"url": "data:text/plain;base64," + "cG9pbnRzCjEK"}}
        answer = served.post(
            "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": [broken]}]}
        )
        assert answer.status_code in (400, 415) and "holds no points" in answer.json()["error"]["message"]


def test_the_command_line_takes_it_and_makes_it(folder, file, tmp_path, monkeypatch, capsys):
    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unimodal", *map(str, words), "--model", str(folder)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        return (status, *capsys.readouterr())

    codes = tmp_path / "codes.json"
    assert run("tokenize", file, "--out", codes)[:2] == (0, f"{codes}: points, 5 codes\n")
    assert run("detokenize", codes, "--out", tmp_path / "again.points")[0] == 0
    assert (tmp_path / "again.points").read_bytes() == file.read_bytes()
    out = tmp_path / "star.points"
    assert run("generate", "a star", "--to", "points", "--out", out, "--tokens", "20")[:2] == (0, f"{out}\n")
    assert out.read_bytes().startswith(b"points\n")
    status, _, err = run("generate", "a star", "--to", "points", "--out", tmp_path / "star.png")
    assert status == 2 and "points is saved as .points" in err
    assert run("chat", "What?", "--file", file, "--to", "text", "--tokens", "20")[0] == 0


def test_without_its_file_it_is_unknown_in_one_line(commands, folder):
    environment = {name: value for name, value in os.environ.items() if name != "UNIMODAL_PLUGINS"}
    command = [sys.executable, "-m", "unimodal", "chat", "hello", "--model", str(folder)]
    done = commands.run(command, env=environment)
    assert done.returncode == 2 and "points" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert "UNIMODAL_PLUGINS" in done.stderr
