"""Who speaks: a voice in the words of a request, one that the tokenizer knows by name, or that of a clip."""

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny_model import NANO_WORDING, tiny_model, tiny_vocabulary
from tests.tokenizers.test_whisper_codec import build_small
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.settings import MediumLimits, ProcessorConfig
from unimodal.model_folder.write import save_model
from unimodal.pipeline import load
from unimodal.pipeline.speech import join_rows

pytestmark = pytest.mark.sweep("the pipeline")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that speaks through codes of voice, prosody and content."""
    folder, text, tokenizer = tmp_path_factory.mktemp("voiced"), tiny_model().template.text, build_small()
    tokenizer.name_voice("low", torch.sin(torch.arange(8000) / 9)[None] * 0.5)
    tokenizers = {"audio": tokenizer.round_to_half()}
    vocabulary = tiny_vocabulary(text, tokenizers)
    sizes = NanoConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=16, max_positions=256
    )
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>")
    )
    wording = NANO_WORDING.model_copy(update={"voices": ("slt",)})
    processor = ProcessorConfig(limits={"audio": MediumLimits(seconds=0.5, codes=30)}, wording=wording)
    save_model(folder, decoder, vocabulary, text, tokenizers, processor, {})
    return load(folder, device="cpu")


def test_a_known_voice_and_that_of_a_clip_speak_the_same_codes(model, tmp_path):
    own = model.generate("hi", "audio", seed=1)
    named = model.generate("hi", "audio", seed=1, voice="low")
    soundfile.write(tmp_path / "clip.wav", np.sin(np.arange(8000) / 9).astype("float32") * 0.5, 16_000)
    by_clip = model.generate("hi", "audio", seed=1, voice=tmp_path / "clip.wav")
    tokenizer = model.coder.get_tokenizer("audio")
    assert named.part.codes[:2].ravel().tolist() == tokenizer.find_voice("low").tolist()
    for other in (named, by_clip):
        assert np.array_equal(other.part.codes[2:], own.part.codes[2:]) and len(other.media) == len(own.media)
        [again] = model.coder.decode("audio", [other.part.codes])
        assert torch.equal(again, other.media) and not torch.equal(other.media, own.media)
    [spoken] = model.speak("hi", seed=1, voice="low")
    assert spoken.part == named.part


def test_a_voice_that_nobody_knows_is_refused_and_so_is_a_clip_without_codes_of_a_voice(model, tmp_path):
    with pytest.raises(ValueError, match="the voice 'high' is unknown"):
        model.generate("hi", "audio", voice="high")
    with pytest.raises(ValueError, match="cannot speak with the voice of a clip; its voices are joe, slt"):
        tiny_model().generate("hi", "audio", voice=tmp_path / "clip.wav")


def test_joined_utterances_have_the_voice_once(model):
    text = "well it is a sunny day. what is this? the old man walks."
    whole = model.generate(text, "audio", seed=1)
    pieces = [sound.part.codes for sound in model.speak(text, seed=1)]
    assert len(pieces) > 1
    assert np.array_equal(whole.part.codes, np.concatenate([pieces[0], *(piece[2:] for piece in pieces[1:])]))


@pytest.mark.parametrize(
    ("segments", "rows", "expected"),
    [
        ([("audio", None)], [[1, 2], [3]], [1, 2, 3]),
        ([("voice", 2), ("audio", None)], [[1, 2, 3], [4, 5, 6, 7]], [1, 2, 3, 6, 7]),
        ([("audio", None), ("end", 1)], [[1, 2, 9], [3, 8]], [1, 2, 3, 9]),
        ([("voice", 2), ("audio", None)], [[1, 2], [4]], [1, 2]),
        ([("audio", 2)], [[1, 2], [3, 4]], [1, 2, 3, 4]),
    ],
)
def test_only_what_runs_on_is_joined(segments, rows, expected):
    assert join_rows([np.array(row) for row in rows], segments).tolist() == expected
