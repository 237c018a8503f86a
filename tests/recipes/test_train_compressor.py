"""recipes/train_compressor.py through its command line, and what opens the folder that it writes."""

import json
from dataclasses import replace

import pytest
import torch

from tests.recipes.test_finetune_full_and_pretrain import corpus, recipe
from unimodal.compression.learned import DecoderShape
from unimodal.compression.tokens.tokenpacker import TokenPacker
from unimodal.compression.trained import load_compressor, save_compressor
from unimodal.pipeline import load
from unimodal.sequence.document import Image


def options(media_folder, pictures, folder, *more):
    return [
        f"model={media_folder}", f"out={folder}/out", f"run={folder}/run", corpus(pictures, folder), "tries=1",
        "loop.warmup_steps=1", "loop.log_every=1", "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("method", ["tokenpacker", "pmod", "cacovid", "acm", "still"])
def test_a_compressor_is_trained_saved_and_used(method, media_folder, pictures, tmp_path, capsys):
    asked = options(media_folder, pictures, tmp_path, f"method={method}", "loop.learning_rate=0.01")
    recipe("train_compressor", *asked, "loop.steps=3")
    said = capsys.readouterr().out
    assert f"{method} at 0.25: " in said and "stride at 0.25: " in said
    found = load_compressor(tmp_path / "out")
    torch.manual_seed(0)
    model = load(media_folder, device="cpu")
    untrained = type(found).make_part(DecoderShape.of(model.engine.model.config))
    pairs = zip(found.module.parameters(), untrained.parameters(), strict=True)
    assert found.keep == 0.25 and any(not torch.equal(*pair) for pair in pairs)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(found.learns_by in line and (method == "cacovid" or line[found.learns_by] >= 0) for line in lines)
    with load_compressor(tmp_path / "out", keep=0.5)(model) as session:
        model.chat(["what is this?", Image(path=str(pictures.parent / "1.png"))])
    assert session.stats.tokens_before > 0 or (method == "still" and session.rows[0].kept < session.rows[0].num)


def test_what_cannot_be_trained_is_one_line(media_folder, pictures, tmp_path, capsys):
    for wrong, message in (
        ("method=divprune", "no compressor with learned parts"),
        ("loop.evaluate_every=2", "set it to 0"),
        ("settings={groups: 0}", "groups"),
    ):
        with pytest.raises(SystemExit) as status:
            recipe("train_compressor", *options(media_folder, pictures, tmp_path, "method=fit", wrong))
        error = capsys.readouterr().err.strip()
        assert status.value.code == 2 and message in error and "\n" not in error
    recipe("train_compressor", *options(media_folder, pictures, tmp_path), flags=("--dry-run",))
    assert "nats a token from the whole model" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_a_folder_that_is_not_whole_is_refused_in_one_line(tmp_path):
    method = TokenPacker(0.5, packer=TokenPacker.make_part(DecoderShape(8, 2)))
    save_compressor(tmp_path / "good", method, DecoderShape(8, 2))
    loaded = load_compressor(tmp_path / "good")
    assert replace(loaded, packer=method.packer) == method and load_compressor(tmp_path / "good", 0.3).keep == 0.3
    for name, weight in method.packer.state_dict().items():
        assert torch.equal(loaded.packer.state_dict()[name], weight)
    saved = json.loads((tmp_path / "good" / "compressor.json").read_text())
    for number, change in enumerate(({"format": 9}, {"method": "stride"}, {"width": 16}, {"settings": {"odd": 1}})):
        folder = tmp_path / str(number)
        save_compressor(folder, method, DecoderShape(8, 2))
        (folder / "compressor.json").write_text(json.dumps(saved | change))
        with pytest.raises(ValueError) as error:
            load_compressor(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"compressor.json"):
        load_compressor(tmp_path)
