"""The released nano 2: the records of its tokenizers, what they continue, and a picture there and back."""

from pathlib import Path

import pytest
import torch

from unimodal.files import read_json
from unimodal.media.audio import load_audio
from unimodal.media.image import load_image
from unimodal.pipeline import load
from unimodal.sequence.document import Audio, Document, Image, Text, Turn
from unimodal.tokenizers import hash_stored, load_tokenizer
from unimodal.tokenizers.voices import VoicedTokenizer

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
NANO2, SAMPLES = CARDS / "nano2", CARDS / "nano" / "samples"


@pytest.mark.parametrize("medium", ["image", "video", "audio"])
def test_the_weights_are_those_of_their_record(medium):
    folder = NANO2 / f"{medium}_tokenizer"
    tokenizer = load_tokenizer(folder)
    assert read_json(folder / "recipe.json")["weights_sha256"] == tokenizer.sha256 == hash_stored(folder)


def test_a_picture_is_named_and_drawn_and_begins_a_clip():
    tokenizer = load_tokenizer(NANO2 / "image_tokenizer")
    x = load_image(SAMPLES / "picture.png")[None].float() / 255
    codes = tokenizer.encode(x)
    assert codes.counts == [64] and len(tokenizer.code_names["known"]) == tokenizer.block_sizes["known"]
    error = float((tokenizer.decode(codes) - x).square().mean())
    assert -10 * torch.log10(torch.tensor(error)) > 20
    clips = load_tokenizer(NANO2 / "video_tokenizer", tokenizer)
    film = x.unsqueeze(2).expand(-1, -1, 9, -1, -1)
    ids = clips.encode(film).ids
    assert ids.shape == (1, 192, 1) and torch.equal(ids[:, :64], codes.ids)
    assert float((clips.decode(clips.encode(film)) - film).square().mean()) < 0.01


def test_speech_is_rebuilt_and_said_by_other_voices():
    tokenizer = load_tokenizer(NANO2 / "audio_tokenizer")
    assert isinstance(tokenizer, VoicedTokenizer) and tokenizer.list_voices() == ("slt", "rms", "kal16", "joe")
    x = load_audio(SAMPLES / "speech.wav")[None, None]
    codes = tokenizer.encode(x)
    groups = -(-x.shape[-1] // 2560)
    assert codes.counts == [6 + 9 * groups]

    def compare(wave):
        mel = tokenizer.mel(wave[:, 0, : x.shape[-1]])
        return float((mel - tokenizer.mel(x[:, 0])).abs().mean())

    made = tokenizer.decode(codes)
    other = tokenizer.decode(tokenizer.change_voice(codes, tokenizer.find_voice("rms")))
    assert compare(made) < 0.35 < compare(torch.zeros_like(x)) and compare(other) > compare(made)
    assert torch.equal(tokenizer.encode(torch.cat([x, x.flip(2)])).row(0), codes.row(0))


def test_the_model_says_reads_and_talks():
    """Its sounds have a segment for the voice before what is said; the best of several sayings is judged whole."""
    model = load(CARDS / "nano2", device="cpu")
    said = model.generate("the cat sat down", to="audio", seed=1)
    layout, codes = model.vocabulary.get_layout("audio"), said.part.require_codes()
    assert layout.segments[0].count and len(codes) > layout.fixed_steps
    assert said.media is not None and said.media.abs().max() > 0
    [heard] = model.chat([Audio(codes=codes), "What is said?"])
    assert heard.text
    picture = Image(path=str(CARDS / "nano2" / "samples" / "picture.png"))
    asked = model.user_turn([picture, Text("What colour is it?")])
    [colour] = model.answers([Document([asked])])[0]
    more = Document([asked, Turn("assistant", colour.text), Turn("user", "How many are there?")])
    [count] = model.answers([more])[0]
    assert (colour.text, count.text) == ("red", "one")
