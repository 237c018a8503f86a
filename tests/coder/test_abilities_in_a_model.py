"""Tokenizers of several streams, and of labels alone, in a model: file → codes → span → decoder → codes → file."""

import pytest
import torch

from tests.tiny_model import SENTENCES
from tests.tokenizers.small_tokenizers import make
from unimodal.coder.media_coder import load_coder
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.write import save_model
from unimodal.pipeline import load
from unimodal.sequence.document import Audio
from unimodal.text.tokenizer import train_text_tokenizer
from unimodal.tokenizers import FAMILIES
from unimodal.vocabulary import make_media_vocabulary

KINDS = {"test_multi_rate": "MultiRateTokenizer", "test_scales": "ScalesTokenizer", "test_labels": "LabelsTokenizer"}


@pytest.fixture(scope="module", autouse=True)
def registered():
    FAMILIES.update({name: f"tests.tokenizers.small_tokenizers:{kind}" for name, kind in KINDS.items()})
    yield
    for name in KINDS:
        del FAMILIES[name]


def save(folder, tokenizers):
    """A random model of these tokenizers."""
    torch.manual_seed(0)
    text = train_text_tokenizer(SENTENCES, 420, folder.parent / "text")
    vocabulary = make_media_vocabulary(tokenizers, text.size, text.reserved_ids, text.sha256)
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size,
        NanoConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=512),
        pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>"),
    )  # fmt: skip
    save_model(folder, decoder, vocabulary, text, {one.modality: one for one in tokenizers})
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("streams") / "model", [make("scales"), make("multi_rate")])


def test_a_sound_of_three_rates_goes_through_the_whole_model(model, tmp_path):
    wave = 0.5 * torch.sin(torch.arange(400) * 0.03)
    save_audio(wave, tmp_path / "a.wav", 1600)
    codes = model.tokenize(tmp_path / "a.wav")
    assert codes.codes.shape == (25, 7) and codes.seconds == 0.25
    back = model.detokenize(codes).media
    assert back.shape == wave.shape and (back - wave).abs().mean() < 0.02
    span = model.vocabulary.encode_span("audio", codes.codes)
    assert len(span) == 2 + 25 * 7
    assert [model.vocabulary.find_block(row).label for row in span[1:8]] == [
        "audio", *(f"audio.{group}" for group in range(1, 7)),
    ]  # fmt: skip
    spoken = model.generate("hello", to="audio", tokens=60)
    assert spoken.part.codes.shape[1] == 7 and len(spoken.media) == 16 * len(spoken.part.codes)
    [answer] = model.chat([Audio(path=str(tmp_path / "a.wav")), "what is said?"], to="text", tokens=4)
    assert answer.modality == "text"


def test_a_picture_of_three_scales_is_drawn_whole(model, tmp_path):
    drawn = model.generate("a red apple", to="image")
    assert drawn.part.codes.shape == (21,) and drawn.media.shape == (3, 16, 16)
    drawn.save(tmp_path / "a.png")
    assert len(model.tokenize(tmp_path / "a.png").codes) == 21


def test_a_medium_of_labels_alone_is_read_and_not_written(tmp_path):
    model = save(tmp_path / "model", [make("labels")])
    save_audio(torch.zeros(400), tmp_path / "a.wav", 1600)
    [answer] = model.chat([Audio(path=str(tmp_path / "a.wav"))], to="text", tokens=4)
    assert answer.modality == "text"
    with pytest.raises(ValueError, match="reads audios but has no decoder to make one with"):
        model.generate("hello", to="audio")
    assert model.writable == ()


def test_a_tokenizer_alone_codes_files_without_a_model(tmp_path):
    make("scales").save(tmp_path / "scales")
    coder = load_coder(tmp_path / "scales")
    save_image(torch.rand(3, 40, 30), tmp_path / "a.png")
    codes = coder.tokenize(tmp_path / "a.png")
    assert coder.detokenize(codes).media.shape == (3, 16, 16)
    with pytest.raises(ValueError, match="has no 'audio' span"):
        save_audio(torch.zeros(400), tmp_path / "a.wav", 1600)
        coder.tokenize(tmp_path / "a.wav")
