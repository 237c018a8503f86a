"""Pretrained tokenizers in the recipes: a language model fine-tuned on their codes, and token shards made of files."""

import json

import pytest

from tests import tiny_networks
from tests.recipes.test_finetune_lora import recipe
from tools import convert_checkpoint
from unimodal.corpus.tokenizer import CorpusTokenizer
from unimodal.data.token_shards import TokenShards
from unimodal.pipeline import load
from unimodal.sequence.document import Image


@pytest.fixture(scope="module")
def media(tmp_path_factory, tiny_base):
    """A folder of tokenizers as the tool makes it, with the base's text rows: pictures of 64 codes, 6 codebooks."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_networks.janus_vq(num_patches=8).save_pretrained(folder / "janus")
    tiny_networks.mimi().save_pretrained(folder / "mimi")
    convert_checkpoint.main(
        ["tokenizers", str(folder / "media"), "--image", f"janus={folder / 'janus'}", "--audio",
         f"mimi={folder / 'mimi'}", "--text", str(tiny_base)]
    )  # fmt: skip
    return folder / "media"


@pytest.mark.sweep("recipes at work")
def test_a_language_model_is_fine_tuned_on_their_codes(tiny_base, media, pictures, tmp_path):
    recipe(
        "finetune_lora", f"base={tiny_base}", f"media={media}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {pictures}}}], codes: {tmp_path}/codes, length: 256, tokens_per_batch: 256, "
        "batches_per_window: 2, validation_share: 0.2}",
        "lora.rank=4", "loop.steps=2", "loop.warmup_steps=1", "loop.log_every=2",
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "loss_image" in records[0]
    model = load(tmp_path / "out", device="cpu")
    assert [block.label for block in model.vocabulary.blocks][:3] == ["image", "audio", "audio.1"]
    assert model.generate("a red apple", to="image").media.shape == (3, 16, 16)
    spoken = model.generate("hello", to="audio")
    assert spoken.part.codes.shape[1] == 6 and len(spoken.media) == len(spoken.part.codes) * 16
    [answer] = model.chat([Image(path=str(pictures.parent / "1.png")), "what is this?"], to="text", tokens=16)
    assert answer.modality == "text"


def test_token_shards_are_made_with_them(media, pictures, tmp_path):
    recipe("tokenize_dataset", f"model={media}", f"datasets.pets.path={pictures}", f"out={tmp_path}/shards")
    tokenizer = CorpusTokenizer(media)
    shards = TokenShards(tmp_path / "shards" / "pets", tokenizer.hashes)
    document = tokenizer.template.parse(shards[0].ids)
    [picture] = [part for part in document.parts if isinstance(part, Image)]
    assert picture.codes.shape == (64,)
