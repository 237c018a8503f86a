"""Bases that get rows for further media: what they knew stays, row for row."""

import importlib

import pytest
import torch

from tests.grounded_scenes import grounded_media
from tests.tiny_bases import BASES, make_base, save_base
from tests.tiny_model import tiny_folder, tiny_tokenizers
from unimodal.model.base import load_base
from unimodal.tuning.grown import find_same_rows, grow_base
from unimodal.vocabulary import read_vocabulary

__all__ = ["grounded_media"]


def make_boxes(num_bins=9):
    module = importlib.import_module("unimodal.tokenizers.more_media.boxes")
    return module.BoxTokenizer(module.BoxConfig(num_bins=num_bins)).eval()


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_stock_base_says_of_text_what_it_said(kind, tmp_path, grounded_media):
    folder = save_base(tmp_path / kind, make_base(kind, None))
    base = load_base(folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = base.model(ids).logits
        rows = base.num_rows
        tied = base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight
        template = grow_base(base, [make_boxes()])
        after = base.model(ids).logits
    vocabulary = template.vocabulary
    assert vocabulary.media == ("box",) and vocabulary.text_size == rows
    assert after.shape[-1] == vocabulary.size == base.num_rows == base.model.config.vocab_size
    assert torch.allclose(after[..., :rows], before, atol=1e-5)
    head, table = base.model.get_output_embeddings().weight, base.model.get_input_embeddings().weight
    assert (head is table) == tied
    assert torch.isfinite(table).all() and table[rows:].std(0).min() > 0
    base.model.save_pretrained(tmp_path / "grown")  # a stock model, which loads as one
    again = type(base.model).from_pretrained(tmp_path / "grown").eval()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, after, atol=1e-5)


def test_a_model_of_ours_keeps_every_row_by_its_meaning(grounded_media):
    base = load_base(tiny_folder())
    theirs = read_vocabulary(tiny_folder() / "vocabulary.json")
    table = base.model.get_input_embeddings().weight.detach().clone()
    tokenizers = tiny_tokenizers()
    from unimodal.model_folder.layout import locate_tokenizer
    from unimodal.tokenizers.registry import load_tokenizer

    image = load_tokenizer(locate_tokenizer(tiny_folder(), "image"))
    own = [image, *(load_tokenizer(locate_tokenizer(tiny_folder(), name), image if name == "video" else None)
                    for name in tokenizers if name != "image")]  # fmt: skip
    template = grow_base(base, [make_boxes(), *own], seed=3)  # the new block first: every other one moves
    ours = template.vocabulary
    grown = base.model.get_input_embeddings().weight
    assert ours.media == ("box", "image", "audio", "video")
    words = "a red apple"
    assert template.text.encode(words) and ours.text_size == theirs.text_size
    for name in theirs.list_token_strings():
        mine, old = find_row(ours, name), find_row(theirs, name)
        assert torch.equal(grown[mine], table[old]), name
    assert torch.equal(grown[: ours.text_size], table[: ours.text_size])
    new = {find_row(ours, name) for name in ours.list_token_strings()} - {
        find_row(ours, name) for name in theirs.list_token_strings()
    }
    assert len(new) == 9 + 2 and not any((grown[row] == table).all(1).any() for row in new)
    with pytest.raises(ValueError, match="has audio, and no tokenizer of it is given"):
        grow_base(load_base(tiny_folder()), [image, make_boxes()])


def find_row(vocabulary, name):
    return vocabulary.text_size + vocabulary.list_token_strings().index(name)


def test_a_code_of_another_tokenizer_is_new(grounded_media):
    theirs = read_vocabulary(tiny_folder() / "vocabulary.json")
    stored = theirs.to_dict()
    for block in stored["blocks"]:
        if block["name"] == "audio":
            block["sha256"] = "0" * 64
    from unimodal.vocabulary import parse_vocabulary

    source = find_same_rows(theirs, parse_vocabulary(stored))
    audio = theirs.get_block_range("audio")
    assert (source[audio.start : audio.stop] == -1).all() and (source == -1).sum() == len(audio)
    stored["text"]["sha256"] = "1" * 64
    with pytest.raises(ValueError, match="different text tokenizers"):
        find_same_rows(theirs, parse_vocabulary(stored))
