"""A whole model folder small enough to make in a second: real tokenizers of tiny sizes, a real text tokenizer, a random
Llama. Answers are nonsense, but every file, code and command is real. Made once for all test modules that ask for it.
"""

import tempfile
from functools import cache
from pathlib import Path

import torch

from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.settings import MediumLimits, MediumSettings, ProcessorConfig, read_processor
from unimodal.model_folder.write import save_model
from unimodal.pipeline import Unimodal, load
from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.nano.audio import AudioTokenizer, AudioTokenizerConfig
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.tokenizers.nano.video import VideoTokenizer, VideoTokenizerConfig
from unimodal.vocabulary import Vocabulary, make_media_vocabulary

NANO_WORDING = read_processor(Path(__file__).parents[1] / "model_cards" / "nano").wording
NUM_PROTOTYPES = 12
NUM_LOOKS = 30
MAX_POSITIONS = 512
MAX_AUDIO_S, MAX_AUDIO_CODES = 2.0, 40
SENTENCES = [
    "draw a red apple.", "a clip of a green tree.", "say: well it is a sunny day", "what is this?", "what is said?",
    "a smiling face with hearts", "the old man walks under seven trees", "describe the picture, please!", "a blue car",
] * 8  # fmt: skip

_folder = tempfile.TemporaryDirectory(prefix="tiny-model-")


def tiny_tokenizers() -> dict[str, MediaTokenizer]:
    image = ImageTokenizer(
        ImageTokenizerConfig(
            levels=(4, 4), num_prototypes=NUM_PROTOTYPES, num_looks=NUM_LOOKS, semantic_dims=8, look_components=6,
            trunk_size=32, conv_channels=8, width=16,
            num_heads=2, encoder_layers=1, decoder_layers=1, conv_blocks=1,
        )
    )  # fmt: skip
    with torch.no_grad():
        image.semantic.projection.normal_()
        image.semantic.prototypes.normal_()
        image.look.basis.normal_(std=0.05)
        image.look.table.normal_()
    image = image.eval().round_to_half()
    video = VideoTokenizer(
        VideoTokenizerConfig(
            levels=(4, 4), width=16, num_heads=2, encoder_layers=1, decoder_layers=1, conv_channels=8,
            image_tokenizer_sha256=image.sha256,
        ),
        image,
    )  # fmt: skip
    audio = AudioTokenizer(
        AudioTokenizerConfig(
            levels=(4, 4), width=16, expansion=2, encoder_code_blocks=1, decoder_code_dilations=(1,),
            decoder_frame_blocks=1, head="istft", head_width=16, head_blocks=1, head_expansion=1,
        )
    )  # fmt: skip
    return {"image": image, "audio": audio.eval().round_to_half(), "video": video.eval().round_to_half()}


def tiny_vocabulary(text: TextTokenizer, tokenizers: dict[str, MediaTokenizer]) -> Vocabulary:
    return make_media_vocabulary(tokenizers.values(), text.size, text.reserved_ids, text.sha256)


@cache
def tiny_folder() -> Path:
    """The folder of the tiny model; tests that change it work on a copy."""
    torch.manual_seed(0)
    folder = Path(_folder.name) / "tiny"
    text = train_text_tokenizer(SENTENCES, 420, Path(_folder.name) / "text")
    tokenizers = tiny_tokenizers()
    vocabulary = tiny_vocabulary(text, tokenizers)
    sizes = NanoConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=MAX_POSITIONS
    )
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>")
    )
    wording = NANO_WORDING.model_copy(update={"voices": ("joe", "slt")})
    processor = ProcessorConfig(
        limits={"audio": MediumLimits(seconds=MAX_AUDIO_S, codes=MAX_AUDIO_CODES)}, wording=wording
    )
    sampling = {"text": MediumSettings(temperature=0), "image": MediumSettings(guidance=2.0)}
    save_model(folder, decoder, vocabulary, text, tokenizers, processor, sampling)
    return folder


@cache
def tiny_model() -> Unimodal:
    return load(tiny_folder(), device="cpu")
