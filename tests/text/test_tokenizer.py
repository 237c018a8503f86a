"""Every string survives, and no string becomes anything but text."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.campaigns import examples
from tests.sequence.conftest import sentences
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer

NASTY = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\ttabs\r\n",
    "\u2581 is SentencePiece's own space \u2581\u2581",
    "é 🎈 👩‍👩‍👧 日本語 \u0000 \U0010ffff",
    "<0x41> <unk> </s> <s>",
    "<|image_0003|>",
    "<|user|><|assistant|><|end_of_turn|>",
    "CAPITALS and Mixed Case",
    "a" * 3000,
]


@examples(100)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(NASTY))
def test_every_string_survives(text, string):
    ids = text.encode(string)
    assert text.decode(ids) == string
    assert all(0 <= row < text.size for row in ids)


def test_batches_equal_singles(text):
    assert text.encode_batch(NASTY) == [text.encode(string) for string in NASTY]


def test_no_string_becomes_a_control_or_media_row(text, vocabulary, tmp_path):
    """Also with the tokenizer.json of a model folder, where these strings are tokens of their own."""
    save_hub_tokenizer(tmp_path, vocabulary, text)
    exported = TextTokenizer.load(tmp_path)
    assert exported.size == text.size and exported.sha256 == text.sha256
    strings = vocabulary.list_token_strings()
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(strings[0]).ids == [text.size]
    for string in random.Random(0).sample(strings, 200) + strings[:20]:
        for tokenizer in (text, exported):
            ids = tokenizer.encode(f"see {string}!")
            assert max(ids) < text.size and tokenizer.decode(ids) == f"see {string}!"


def test_pieces_are_those_of_sentencepiece(text):
    """The conversion keeps SentencePiece's segmentation: retrain and compare piece by piece."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" " + s.lower() for s in sentences()),
        model_writer=model,
        model_type="bpe",
        vocab_size=501,
        byte_fallback=True,
        character_coverage=0.9995,
        required_chars="".join(chr(code) for code in range(33, 127)),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for sentence in [*sentences(200, seed=1), "  unseen   zebras, 1234\n", "Ünïcode", "<|user|>"]:
        assert text.encode(sentence) == [row - 1 for row in reference.encode(sentence)]


def test_training_is_reproducible_and_small_words_are_one_piece(text, text_folder, tmp_path):
    train_text_tokenizer(sentences(), 500, tmp_path, num_threads=1)
    assert (tmp_path / "tokenizer.json").read_bytes() == (text_folder / "tokenizer.json").read_bytes()
    assert text.size == 500 and text.reserved_ids == ()
    assert len(text.encode(" apple")) == 1
    assert len(text.encode(" the cat draws a picture")) == 5


def test_lower_case_training_spends_no_piece_on_capitals(text):
    vocabulary = text.data["model"]["vocab"]
    merged = [piece for piece in vocabulary if len(piece) > 1 and not piece.startswith("<0x")]
    assert merged and all(piece == piece.lower() for piece in merged)
    assert text.decode(text.encode("Paris")) == "Paris"


def test_too_little_text_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="cannot train 4096 pieces"):
        train_text_tokenizer(["a few words"], 4096, tmp_path)
    assert not list(tmp_path.iterdir())


def test_streaming_gives_the_same_text_in_whole_characters(text):
    string = "the cat 🎈🎈 é is red. " * 40 + "日本"
    stream = text.stream()
    given = [stream.push(row) for row in text.encode(string)]
    assert all("\ufffd" not in piece for piece in given)
    assert "".join(given) + stream.finish() == string


def test_rows_behind_the_text_are_refused(text):
    with pytest.raises(ValueError, match="not one of the 500 text rows"):
        text.decode([1, text.size])


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        TextTokenizer.load(tmp_path)
    for content in ("", "[]", "3", '{"model": {}}', "{"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json"):
            TextTokenizer.load(tmp_path)


def byte_level(folder, ignore_merges: bool = False) -> TextTokenizer:
    """A GPT-2-like base with one special token inside its model and two added behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0, **{piece: i + 1 for i, piece in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=ignore_merges))
    if not ignore_merges:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    tokenizer.add_tokens(["<think>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer.load(folder)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_base_tokenizers_own_specials_are_plain_text_too(tmp_path, ignore_merges):
    """With `ignore_merges` the model itself maps the whole string to its special row."""
    tokenizer = byte_level(tmp_path, ignore_merges)
    assert tokenizer.size == 259
    assert tokenizer.reserved_ids == (0, 257, 258)
    for string in ("<|endoftext|>", "a<|im_start|>b<think>", "<|endoftext|><|endoftext|>"):
        ids = tokenizer.encode(string)
        assert not set(ids) & set(tokenizer.reserved_ids)
        assert tokenizer.decode(ids) == string


def test_unknown_decoders_are_kept_when_saved(tmp_path, vocabulary):
    tokenizer = byte_level(tmp_path)
    assert TextTokenizer(json.loads(json.dumps(tokenizer.data))).sha256 == tokenizer.sha256
