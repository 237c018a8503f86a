"""Several codes a step, summed: files → codes → a trained model → pictures, by the commands of a user."""

import json

import numpy as np
import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from tests.serve.conftest import serving
from tests.tools.test_tokenizers_of_systems import write_medium
from tools import convert_checkpoint
from unimodal.cli.app import main
from unimodal.data.token_shards import TokenShards
from unimodal.export.card import Statement, make_card
from unimodal.model.depth_decoder import find_depth_decoder
from unimodal.pipeline import load
from unimodal.sequence.cutting import RowFitter
from unimodal.sequence.document import Image
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.vocabulary import read_vocabulary

#: books of UniTok, levels of meaning and of looks of DualToken: 8 and 16 codes at a place
SYSTEMS = {"unitok-large": ({"num_codebooks": 8}, 8), "dualtoken-384": ({"num_levels": 8}, 16)}


@pytest.fixture(scope="module")
def make_media(tmp_path_factory):
    """A folder of tokenizers with one of these, made by the command, beside a file of noise; once for each."""
    made = {}

    def make(system):
        if system not in made:
            changes, groups = SYSTEMS[system]
            folder = tmp_path_factory.mktemp(system)
            torch.manual_seed(0)
            settings = {**read_system(system).choose_settings(small=True), **changes}
            tokenizer = build_tokenizer(settings).eval().round_to_half()
            assert len(tokenizer.codebook_sizes) == groups
            tokenizer.save(folder / "trained")
            arguments = ["tokenizers", str(folder / "media"), "--image", str(folder / "trained"), "--fit", "crop"]
            convert_checkpoint.main(arguments)
            made[system] = tokenizer, write_medium(tokenizer, folder)
        return made[system]

    return make


def settings_of(folder, base, file, *more):
    picture = {"type": "image", "path": str(file)}
    turns = [
        [{"role": "user", "content": [picture, {"type": "text", "text": "what is it?"}]},
         {"role": "assistant", "content": "noise"}],
        [{"role": "user", "content": "draw noise."}, {"role": "assistant", "content": [picture]}],
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("\n".join(json.dumps({"messages": one}) for one in turns * 3) + "\n")
    return [
        f"base={base}", f"media={file.parent}/media", f"out={folder}/out", f"run={folder}/run",
        f"corpus={{datasets: [{{path: {folder}/data.jsonl, media_root: {file.parent}}}], codes: {folder}/codes, "
        "length: 96, tokens_per_batch: 192, validation_share: 0.3, batches_per_window: 1}",
        "lora.rank=4", "loop.steps=1", "loop.warmup_steps=1", "loop.log_every=1", "loop.evaluate_every=1",
        "summed=[image]", "depth.width=32", "depth.num_layers=1", *more,
    ]  # fmt: skip


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("system", SYSTEMS)
def test_one_setting_sums_the_codes_of_a_step_and_everything_else_stays(
    system, make_media, tiny_base, tmp_path, capsys
):
    tokenizer, file = make_media(system)
    groups = len(tokenizer.codebook_sizes)
    recipe("finetune_lora", *settings_of(tmp_path, tiny_base, file))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_image", *(f"loss_image.{group}" for group in range(groups))} <= set(records[0])
    model = load(tmp_path / "out", device="cpu")
    vocabulary = model.vocabulary
    assert vocabulary.positions.width == groups
    steps = tokenizer.tokens_per_item
    assert vocabulary.count_span_rows("image") == 2 + groups * steps
    assert vocabulary.count_span_positions("image") == 2 + steps
    drawn = model.generate("noise", to="image", seed=3)
    assert tuple(drawn.media.shape[-2:]) == tokenizer.picture_size
    assert model.generate("noise", to="image", seed=3, tokens=2 + steps + 1).part == drawn.part
    codes = model.coder.tokenize(file)
    assert tuple(model.coder.detokenize(codes).media.shape[-2:]) == tokenizer.picture_size
    [answer] = model.chat([Image(path=str(file)), "what is it?"], to="text", tokens=16)
    assert answer.modality == "text"
    streamed = [
        output for output in model.chat([Image(codes=drawn.part.codes), "draw noise."], to="image", guidance=2.0)
    ]
    assert streamed[0].media.shape == drawn.media.shape
    with pytest.raises(ValueError, match="guesses one code a token"):
        model.generate("noise", to="image", decoder="jacobi")
    assert main_of_cli("export", tmp_path / "out", "--out", tmp_path / "exported") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "with summed codes: a stock causal LM could hold its layers and rows, but neither sums rows" in said
    assert not (tmp_path / "exported").exists()


def main_of_cli(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.sweep("recipes at work")
def test_a_model_from_scratch_is_saved_with_its_depth_decoder_and_served(make_media, tiny_base, tmp_path):
    _, file = make_media("unitok-large")
    lora = [one for one in settings_of(tmp_path, tiny_base, file) if not one.startswith(("base", "lora"))]
    sizes = "{hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 2, intermediate_size: 48, max_positions: 128}"
    recipe("pretrain", *lora, f"text={tiny_base}", f"decoder={sizes}")
    model = load(tmp_path / "out", device="cpu")
    assert find_depth_decoder(model.decoder) is not None
    drawn = model.generate("noise", to="image", seed=5)
    with serving(model) as server:
        answer = server.post("/v1/images/generations", {"prompt": "noise", "seed": 5, "response_format": "b64_json"})
        assert answer.status_code == 200 and answer.json()["data"], answer.text
        asked = {"modality": "image", "codes": drawn.part.codes.reshape(-1).tolist()}
        assert server.post("/v1/detokenize", asked).status_code == 200
    card = make_card(tmp_path / "out", "me/model", Statement("mit", (), "Noise."))
    assert "and a depth decoder" in card and "library_name: unimodal" in card and 'any-to-any", model' not in card
    full = [one for one in settings_of(tmp_path, tmp_path / "out", file) if not one.startswith(("lora", "out", "run"))]
    recipe("finetune_full", *full, f"out={tmp_path}/again", f"run={tmp_path}/run2")
    assert load(tmp_path / "again", device="cpu").generate("noise", to="image").modality == "image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("summed=[video]", "summed names 'video', but there are codes of image only"),
        ("summed=[pictures]", "summed names 'pictures', but there are codes of image only"),
        ("push={repo: me/model, license: mit, data: Noise.}", "push sends a model of a stock class"),
        ("depth.width=7", "depth.width"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(change, message, make_media, tiny_base, tmp_path, capsys):
    _, file = make_media("unitok-large")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        recipe("finetune_lora", *settings_of(tmp_path, tiny_base, file, change))
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line


def test_shards_hold_rows_and_are_trained_on_as_positions(make_media, tiny_base, tmp_path):
    _, file = make_media("unitok-large")
    recipe("finetune_lora", *settings_of(tmp_path, tiny_base, file, "loop.steps=1", "loop.evaluate_every=0"))
    data = f"datasets={{noise: {{path: {tmp_path}/data.jsonl, media_root: {file.parent}}}}}"
    recipe("tokenize_dataset", f"model={tmp_path}/run/tokenizers", f"out={tmp_path}/shards", data, "max_tokens=30")
    folder = next((tmp_path / "shards").rglob("manifest.json")).parent
    shards, vocabulary = TokenShards(folder), read_vocabulary(tmp_path / "out" / "vocabulary.json")
    assert len(shards) == 6 and max(shards.lengths) > 30, "max_tokens counts positions"
    for document in (shards[0], shards[1]):
        [piece] = RowFitter(vocabulary, 30)(document)
        rows = np.concatenate([piece.ids[:, None], piece.further], 1)
        assert rows[rows >= 0].tolist() == document.ids.tolist() and len(piece) < 30
    other = settings_of(tmp_path, tiny_base, file, f"corpus.datasets=[{{path: {folder}}}]", f"run={tmp_path}/run2")
    recipe("finetune_lora", *other, f"out={tmp_path}/out2")
    records = [json.loads(line) for line in (tmp_path / "run2" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_text", "loss_image", "loss_image.7"} <= set(records[0])
