"""How long a sound may be follows from the tokenizer's rate and the decoder's positions, whatever the family."""

import math
from pathlib import Path

import pytest
import torch

from tests import tiny_networks
from tests.tiny_model import tiny_folder
from unimodal.media.audio import save_audio
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.settings import MediumLimits, ProcessorConfig
from unimodal.model_folder.write import save_model
from unimodal.pipeline import Unimodal, load
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Audio, Document, Turn
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import pretrained
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

FAMILIES = ("encodec", "dac", "mimi", "xcodec2")
SETTINGS = {"encodec": {"bandwidth": 1.2}, "dac": {"num_codebooks": 3}, "mimi": {"num_codebooks": 5}, "xcodec2": {}}
LONG_S = 9.0  # nano, whose settings were once the default, hears 8 s
OLD_CODES = 250  # and so many steps were once the longest sound
WORDS = 40  # positions for a short request and the shortest answer


def make_model(family: str, folder: Path, positions_for, processor: ProcessorConfig | None = None) -> Unimodal:
    """A folder of that audio family, with a decoder of `positions_for(tokenizer)` positions that never ends a sound."""
    network = tiny_networks.mimi(sampling_rate=1600) if family == "mimi" else getattr(tiny_networks, family)()
    network.save_pretrained(folder / "source")
    tokenizer = pretrained.load(family, folder / "source", **SETTINGS[family])
    text = TextTokenizer.load(tiny_folder())
    blocks = [
        Block(name="audio", modality="audio", group=group, size=size, sha256=tokenizer.sha256)
        for group, size in enumerate(tokenizer.codebook_sizes)
    ]
    layouts = [SpanLayout("audio", [Segment("audio")])]
    vocabulary = Vocabulary.build(text.size, blocks, layouts, text.reserved_ids, text.sha256)
    sizes = NanoConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16,
        max_positions=positions_for(tokenizer), init_std=0.4,
    )  # fmt: skip
    decoder = build_nano(vocabulary.size, sizes, pad_id=0, bos_id=0, eos_id=0)
    with torch.no_grad():  # the likeliest of many random codes scores above 0
        decoder.get_output_embeddings().weight[vocabulary.get_end_id("audio")] = 0
    save_model(folder / "model", decoder, vocabulary, text, {"audio": tokenizer}, processor)
    return load(folder / "model", device="cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    def positions_for(tokenizer):
        return math.ceil(LONG_S * tokenizer.tokens_per_second) * len(tokenizer.codebook_sizes) + WORDS

    return make_model(request.param, tmp_path_factory.mktemp(request.param), positions_for)


def ask_about(model: Unimodal, path: Path) -> Document:
    return Document([model.user_turn([Audio(path=str(path)), "What is said?"])])


def write_sound(model: Unimodal, seconds: float, path: Path) -> Path:
    rate = model.coder.get_tokenizer("audio").sample_rate_hz
    noise = torch.Generator().manual_seed(0)
    save_audio(torch.rand(round(seconds * rate), generator=noise) - 0.5, path, rate)
    return path


def test_a_sound_is_heard_as_far_as_there_are_positions(model, tmp_path):
    document = ask_about(model, write_sound(model, LONG_S, tmp_path / "long.wav"))
    [sound] = [part for part in document.parts if isinstance(part, Audio)]
    assert len(sound.codes) == pytest.approx(LONG_S * model.coder.get_tokenizer("audio").tokens_per_second, abs=2)
    assert len(prepare(model, document, AnswerSettings(to="text")).prompt) <= model.max_positions

    most = model.coder.find_max_seconds("audio")
    assert LONG_S < most < LONG_S + WORDS / model.coder.get_tokenizer("audio").tokens_per_second
    with pytest.raises(ValueError, match=rf"lasts {most + 0.2:.1f} s; this model hears at most {most:.4g} s: cut it"):
        ask_about(model, write_sound(model, most + 0.2, tmp_path / "longer.wav"))


def test_a_sound_is_written_as_far_as_its_tokens_go(model):
    groups = len(model.vocabulary.group_blocks("audio"))
    [sound] = model.answers([Document([Turn("user", "a dog")])], to="audio", tokens=12 * groups + 5, temperature=0.0)[0]
    assert sound.num_codes == 12 + 2 // groups  # its start and end and the end of the turn are three tokens
    assert len(sound.media) == pytest.approx(sound.num_codes * model.coder.get_tokenizer("audio").samples_per_code)


def test_a_sound_is_written_as_far_as_there_are_positions(tmp_path):
    model = make_model("encodec", tmp_path, lambda tokenizer: 2 * OLD_CODES + WORDS)
    document = Document([Turn("user", "a dog")])
    prompt = prepare(model, document, AnswerSettings(to="audio")).prompt
    [sound] = model.answers([document], to="audio", temperature=0.0)[0]
    assert sound.num_codes == (model.max_positions - len(prompt) - 3) // 2 > OLD_CODES


def test_a_folder_may_say_less_than_its_positions(tmp_path):
    limits = {"audio": MediumLimits(seconds=0.5, codes=20)}
    model = make_model("encodec", tmp_path, lambda tokenizer: 400, ProcessorConfig(limits=limits))
    with pytest.raises(ValueError, match="this model hears at most 0.5 s"):
        ask_about(model, write_sound(model, 0.6, tmp_path / "long.wav"))
    [sound] = model.answers([Document([Turn("user", "a dog")])], to="audio", temperature=0.0)[0]
    assert sound.num_codes == 20
