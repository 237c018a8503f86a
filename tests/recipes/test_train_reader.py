"""recipes/train_reader.py through its command line, and the model that it writes: asked, shown, drawn with."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.recipes.test_finetune_full_and_pretrain import recipe
from unimodal.corpus.read_documents import ReadDocuments, give_reader, keep_readable
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.export.stock import export_model
from unimodal.pipeline import load
from unimodal.pipeline.requests import render_prompt
from unimodal.sequence.document import Document, Image, Turn
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers.readers.frozen_encoder import EncoderSettings
from unimodal.tokenizers.readers.limber import LimberConfig, LimberReader
from unimodal.vocabulary import read_vocabulary

pytestmark = pytest.mark.sweep("trainings of recipes")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "image_size": 32, "patch_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Two random vision transformers, as their folders lie on a hub."""
    folders = []
    for seed, kind in enumerate(("siglip_vision_model", "dinov2")):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp(kind))
        AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).save_pretrained(folders[-1])
    return folders


def options(media_folder, pictures, folder, encoders, *more):
    return [
        f"model={media_folder}", f"dataset.path={pictures}", f"out={folder}/out", f"run={folder}/run", "held_out=3",
        f"encoders=[{', '.join(map(str, encoders))}]", "fusion={hidden: 16, heads: 2}", "loop.warmup_steps=1",
        "loop.log_every=1", "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_a_reader_is_trained_saved_and_used_in_every_turn(count, media_folder, pictures, encoders, tmp_path, capsys):
    asked = options(media_folder, pictures, tmp_path, encoders[:count])
    recipe("train_reader", *asked, "loop.steps=10", "loop.learning_rate=0.03")
    assert "3 held-out answers: " in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_text"] for line in lines]
    assert len(losses) == 10 and np.mean(losses[-3:]) < np.mean(losses[:3])
    before, model = load(media_folder, device="cpu"), load(tmp_path / "out", device="cpu")
    shown = pictures.parent / "3.png"
    outputs = model.chat([Image(path=str(shown)), "what is this?"], to="text", text_tokens=6)
    assert outputs
    with pytest.raises(ValueError, match="reads images through features of image_reader"):
        export_model(tmp_path / "out", tmp_path / "stock")
    # what it says and draws without pictures in the question is as before
    drawn, old = (one.generate("a red apple", "image", seed=3) for one in (model, before))
    assert np.array_equal(drawn.part.codes, old.part.codes)
    # a picture that it drew is read through the features in the next turn, as a file is
    document = Document([model.user_turn(["draw."]), Turn("assistant", [drawn.part]), model.user_turn(["what is it?"])])
    rendered = render_prompt(model, document)
    assert len(rendered.read) == 1 and (rendered.ids == model.vocabulary.get_control_id("<|pad|>")).sum() == 4


def test_documents_say_which_picture_stands_where(media_folder, pictures):
    vocabulary = read_vocabulary(media_folder / "vocabulary.json")
    settings = EncoderSettings(kind="dinov2", network=SIZES, image_size=32)
    reader = LimberReader(LimberConfig(width=32, encoder=settings))
    given = give_reader(vocabulary, reader.num_features, "ab")
    assert given.get_layout("image").features.sha256 == "ab" and given.size == vocabulary.size
    template = Template(given, TextTokenizer.load(media_folder))
    every = list(open_dataset(DatasetConfig(path=str(pictures))))
    documents = keep_readable(every)
    assert len(documents) == len(every) // 2  # the others draw
    read = ReadDocuments([documents[0], documents[1], documents[0]], template, reader)
    first, second, third = (read[n].values[:, 0] for n in range(3))
    assert first.max() == 1 and second.max() == 2 and np.array_equal(first, third) and (first > 0).sum() == 4
    assert read.find_seen([1, 0])[0].shape == (2, 4, 16)
    assert not (read[0].labels[first > 0] != -100).any()
    with pytest.raises(ValueError, match="was read through features, which ids do not hold"):
        template.parse(read[0].ids)
    with pytest.raises(ValueError, match="answers with a picture"):
        ReadDocuments(every[:2], template, reader)
    with pytest.raises(ValueError, match="tokens, and 5 fit"):
        ReadDocuments(documents, template, reader, limit=5)


def test_bad_settings_are_one_line(media_folder, pictures, encoders, tiny_base, tmp_path, capsys):
    for more, words in (
        (["held_out=12"], "12 of 12 documents that show a picture and answer in words"),
        (["encoders=[nowhere]"], "'nowhere' cannot be loaded"),
        (["image_sizes=[32, 32]"], "2 sizes for 1 encoders"),
        ([f"model={tiny_base}"], "no whole model folder"),
        (["length=9"], "tokens, and 9 fit"),
    ):
        with pytest.raises(SystemExit) as ended:
            recipe("train_reader", *options(media_folder, pictures, tmp_path, encoders[:1], *more), "loop.steps=1")
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()
