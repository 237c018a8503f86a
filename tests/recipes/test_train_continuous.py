"""recipes/train_continuous.py through its command line, and what opens the folder that it writes."""

import json

import numpy as np
import pytest
import torch

from tests.recipes.test_finetune_full_and_pretrain import recipe
from unimodal.corpus.latent_documents import LatentDocuments, make_latent_template
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.export.stock import export_model
from unimodal.generation.request import GenerationConfig
from unimodal.generation.vector_writer import VectorWriter
from unimodal.model.adapter import load_adapter
from unimodal.model.base import load_base
from unimodal.pipeline import load
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import Latents
from unimodal.tokenizers.registry import load_latent_tokenizer
from unimodal.tokenizers.systems.titok import TiTokLatents, TiTokLatentsConfig

pytestmark = pytest.mark.sweep("trainings of recipes")


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    size = {"width": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    config = TiTokLatentsConfig(
        image_size=32, patch_size=8, num_tokens=4, token_width=3, encoder=size, decoder=size, causal=True
    )
    folder = tmp_path_factory.mktemp("latents")
    TiTokLatents(config).save(folder)
    return folder


def options(tiny_base, latents, pictures, folder, *more):
    return [
        f"base={tiny_base}", f"tokenizer={latents}", f"dataset.path={pictures}", f"out={folder}/out",
        f"run={folder}/run", "held_out=4", "media.hidden=16", "media.layers=1", "lora.rank=2", "loop.warmup_steps=1",
        "loop.log_every=1", "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


def test_a_causal_encoder_orders_its_vectors(latents):
    """The first vectors are the same whatever the later queries are; not so without the mask."""
    tokenizer = load_latent_tokenizer(latents)
    x = torch.rand(2, 3, 32, 32)
    queries = dict(tokenizer.encoder.resampler.named_parameters())
    [name] = [name for name, weight in queries.items() if weight.shape[-2:] == (4, 16) and "quer" in name]
    before = tokenizer.encode(x).values
    with torch.no_grad():
        queries[name][..., 2:, :] += torch.linspace(-1, 1, 16)  # a norm would not see a constant
    after = tokenizer.encode(x).values
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.allclose(before[:, 2:], after[:, 2:])
    free = TiTokLatents(tokenizer.config.model_copy(update={"causal": False}))
    free.load_state_dict(tokenizer.state_dict())
    assert not torch.allclose(free.eval().encode(x).values[:, :2], after[:, :2], atol=1e-4)


def test_documents_hold_the_vectors_of_their_pictures(tiny_base, latents, pictures):
    tokenizer, base = load_latent_tokenizer(latents), load_base(str(tiny_base))
    template = make_latent_template(TextTokenizer(base.tokenizer), base.num_rows, tokenizer)
    found = LatentDocuments(open_dataset(DatasetConfig(path=str(pictures))), template, tokenizer)
    row = template.vocabulary.blocks[0].start
    for number in range(len(found)):
        rendered = found[number]
        held = rendered.ids == row
        assert held.sum() % 4 == 0 and not rendered.values[~held].any()
        assert np.abs(rendered.values[held]).sum() > 0
    assert found.hash() == LatentDocuments(found._documents, template, tokenizer).hash()
    with pytest.raises(ValueError, match="has .* tokens, and 5 fit"):
        LatentDocuments(found._documents, template, tokenizer, limit=5)


def test_it_learns_saves_and_draws_what_the_folder_draws(tiny_base, latents, pictures, tmp_path, capsys):
    asked = options(tiny_base, latents, pictures, tmp_path)
    recipe("train_continuous", *asked, "loop.steps=8", "loop.learning_rate=0.02", "loop.evaluate_every=4")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["image_flow"] for line in lines if "image_flow" in line]
    assert len(losses) >= 8 and np.mean(losses[-3:]) < np.mean(losses[:2])
    out = tmp_path / "out"
    model, vocabulary = load_adapter(out)
    writer, tokenizer = VectorWriter(model, vocabulary), load_latent_tokenizer(out / "image_tokenizer")
    prompt = [vocabulary.get_control_id(f"<|{name}|>") for name in ("bos", "user", "end_of_turn", "assistant")]
    drawn = writer.write([prompt], seeds=3, steps=2)
    picture = tokenizer.decode(Latents(drawn, torch.ones(drawn.shape[:2], dtype=torch.bool)))
    assert picture.shape == (1, 3, 32, 32) and bool(torch.isfinite(picture).all())
    shown = writer.fill_prompt([*prompt[:2], *vocabulary.encode_span("image", [0] * 4), *prompt[2:]], [drawn[0]])
    [answer] = writer.engine.generate([shown], GenerationConfig(max_new_tokens=4, allow=("text",)))
    assert answer[-1] == prompt[2]
    chat = load(out, device="cpu")  # which has words, and says what it cannot draw
    assert chat.chat("hello", to="text", text_tokens=3)
    with pytest.raises(ValueError, match="which gives no codes"):
        chat.generate("a red apple", "image")
    with pytest.raises(ValueError, match="reads and writes vectors in place of codes"):
        export_model(out, tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_a_run_that_stops_goes_on_to_the_same_losses(tiny_base, latents, pictures, tmp_path):
    for folder, steps in (("whole", [4]), ("parts", [2, 4])):
        for number in steps:
            recipe(
                "train_continuous", *options(tiny_base, latents, pictures, tmp_path / folder), f"loop.steps={number}"
            )
    found = [
        [json.loads(line)["image_flow"] for line in (tmp_path / name / "run/metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert found[0] == found[1] and len(found[0]) == 4


def test_bad_settings_are_one_line(tiny_base, latents, media_folder, pictures, tmp_path, capsys):
    for more, words in (
        (["held_out=24"], "nothing is left to learn from"),
        ([f"tokenizer={media_folder}/image_tokenizer"], "which gives no latents"),
        (["length=9"], "tokens, and 9 fit"),
        (["media.head=gan"], "head"),
        (["dataset.path=nowhere.jsonl"], "nowhere.jsonl"),
    ):
        with pytest.raises(SystemExit) as ended:
            recipe("train_continuous", *options(tiny_base, latents, pictures, tmp_path, *more), "loop.steps=1")
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()
