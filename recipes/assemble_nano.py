"""Puts the trained parts of nano together as one model folder, laid out as its Hub repository.

    python recipes/assemble_nano.py [--set out=model_cards/nano]

Takes the decoder of recipes/train_nano.py and the three media tokenizers, writes the vocabulary manifest with their
final hashes, the settings of the processor and of sampling, and a few sample inputs from the training styles. The
codes are what the decoder was trained on: a picture decoder trained further changes the hash, never the codes, and
that is checked on real pictures.

Shapes: M pictures, V views.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from unimodal.config import Config
from unimodal.files import read_json, write_bytes_atomically, write_json
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video
from unimodal.model_folder.layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    PROCESSOR_FILE,
    TEXT_FILES,
    VOCABULARY_FILE,
    WEIGHTS,
    locate_tokenizer,
)
from unimodal.model_folder.settings import CtcReading, MediumLimits, ProcessorConfig
from unimodal.model_folder.wording import Wording
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.registry import find_continued_medium, load_tokenizer
from unimodal.training.command import run_recipe
from unimodal.vocabulary import parse_vocabulary, read_vocabulary

DECODER_FILES = (CONFIG_FILE, GENERATION_FILE, WEIGHTS, *TEXT_FILES, "recipe.json")
#: what it is asked in training (`unimodal.data.sources`)
WORDING = Wording(
    questions={"image": "What is this?", "audio": "What is said?", "video": "What is this?"},
    wishes={"image": "Draw {thing}.", "audio": "Say: {text}", "video": "A clip of {thing}."},
    in_voice="Say in the voice of {voice}: {text}",
    voices=("kal16", "rms", "slt", "joe"),
    wish_starts={
        "image": ("draw ", "paint ", "a picture of ", "make a picture of ", "show me "),
        "audio": (
            "say: ",
            "say this: ",
            "say in the voice of ",
            "speak: ",
            "read aloud",
            "read this: ",
            "voice ",
            "the sound of ",
            "make the sound of ",
            "let me hear ",
            "play ",
        ),  # fmt: skip
        "video": ("a clip of ", "a video of ", "make a video of ", "animate ", "film ", "show me "),
    },
    add_article=True,
    plain_speech=True,
    letters="abcdefghijklmnopqrstuvwxyz'",
    numerals="en",
    breath=45,
)
MODALITIES = ("image", "audio", "video")


class AssembleRecipe(Config):
    data: Path = Path("data/prepared")
    models: Path = Path("data/models")
    out: Path = Path("model_cards/nano")
    sampling: dict[str, dict[str, float | int]] = {
        "text": {"temperature": 0.0},
        # the likeliest value of all but the finest codes: another seed changes detail only (tools/measure_variety.py)
        "image": {"temperature": 4.0, "top_k": 2, "first_codes": 58, "first_temperature": 0.2},
        "audio": {"temperature": 0.3, "top_k": 50, "guidance": 1.5},
        "video": {"temperature": 0.2, "top_k": 50},
    }
    #: medium → folder of its tokenizer, where it is not `models`/MEDIUM_tokenizer
    tokenizers: dict[str, Path] = {}
    decoder: str = "nano"  # the folder of `models` that recipes/train_nano.py wrote
    voices: tuple[str, ...] = WORDING.voices
    history_turns: int = 0  # earlier exchanges that a chat shows to the model; talk about scenes was trained with three
    audio_seconds: float = 5.0
    audio_codes: int = 250
    sayings: int = 8  # utterances that are made of a sentence; the one that is read best is kept
    sample_picture: str = "red apple"
    sample_clip: str = "beating heart"


def check_codes(cfg: AssembleRecipe, image: MediaTokenizer) -> None:
    """The tokenizer as released still gives the codes that the decoder was trained on."""
    pixels, codes = np.load(cfg.data / "images.npz")["pixels"], np.load(cfg.data / "image_codes.npz")["codes"]
    rows = np.random.default_rng(0).choice(len(pixels), 64, replace=False)
    x = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float() / 255
    made = image.encode(x).ids.numpy()
    same = (made.reshape(len(rows), -1) == codes[rows, 0].reshape(len(rows), -1)).mean()
    if (
        same < 0.99
    ):  # the trunk's features were kept in half precision when the codes were made: a tie may fall the other way
        raise ValueError(
            f"only {same:.1%} of the picture codes are those that nano was trained on; "
            "run recipes/encode_media.py and train again"
        )


def write_samples(cfg: AssembleRecipe, folder: Path) -> None:
    """One picture, one clip and one utterance to try the model on, from openly licensed sources."""
    images, clips = np.load(cfg.data / "images.npz"), np.load(cfg.data / "clips.npz")
    concepts = json.loads((cfg.data / "concepts.json").read_text())
    by_label = {concept["label"]: concept["id"] for concept in concepts}
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.flatnonzero((images["concept"] == by_label[cfg.sample_picture]) & (images["style"] == "noto"))
    save_image(torch.from_numpy(images["pixels"][rows[0]]).permute(2, 0, 1).float() / 255, folder / "picture.png")
    clip = np.flatnonzero(clips["concept"] == by_label[cfg.sample_clip])[0]
    save_video(torch.from_numpy(clips["frames"][clip]).permute(0, 3, 1, 2).float() / 255, folder / "clip.gif", 8.0)
    utterances = json.loads((cfg.data / "speech" / "utterances.json").read_text())
    samples = np.memmap(cfg.data / "speech" / "audio.int16", np.int16, "r")
    chosen = next(u for u in utterances if u["split"] == "test" and u["voice"] == "joe" and len(u["text"].split()) >= 4)
    wave = (
        torch.from_numpy(np.array(samples[chosen["start"] : chosen["start"] + chosen["num_samples"]])).float() / 32768
    )
    save_audio(wave, folder / "speech.wav", 16000)
    truth = {"picture.png": cfg.sample_picture, "clip.gif": cfg.sample_clip, "speech.wav": chosen["text"]}
    write_json(folder / "samples.json", truth)


def find_tokenizer(cfg: AssembleRecipe, modality: str) -> Path:
    """The folder of a medium's tokenizer."""
    return cfg.tokenizers.get(modality, locate_tokenizer(cfg.models, modality))


def run(cfg: AssembleRecipe, dry_run: bool) -> None:
    image = load_tokenizer(find_tokenizer(cfg, "image"))
    audio = load_tokenizer(find_tokenizer(cfg, "audio"))
    if dry_run:
        return
    check_codes(cfg, image)
    cfg.out.mkdir(parents=True, exist_ok=True)
    for modality in MODALITIES:
        for file in sorted(find_tokenizer(cfg, modality).glob("*.*")):
            if file.suffix in (".json", ".safetensors"):
                write_bytes_atomically(locate_tokenizer(cfg.out, modality) / file.name, file.read_bytes())
    for name in DECODER_FILES:
        write_bytes_atomically(cfg.out / name, (cfg.models / cfg.decoder / name).read_bytes())
    # the picture decoder may have been trained on since: clips continue the pictures of the released one
    video_folder = locate_tokenizer(cfg.out, "video")
    continued = find_continued_medium(video_folder)
    if continued is not None:
        settings = {**read_json(video_folder / CONFIG_FILE), "image_tokenizer_sha256": image.sha256}
        write_json(video_folder / CONFIG_FILE, settings)
    video = load_tokenizer(video_folder, None if continued is None else image)
    hashes = {"image": image.sha256, "audio": audio.sha256, "video": video.sha256}
    manifest = read_vocabulary(cfg.models / cfg.decoder / VOCABULARY_FILE).to_dict()
    for block in manifest["blocks"]:
        block["sha256"] = hashes[block["modality"]]
    parse_vocabulary(manifest).save(cfg.out / VOCABULARY_FILE)
    write_json(cfg.out / GENERATION_FILE, {**read_json(cfg.out / GENERATION_FILE), "unimodal": cfg.sampling})
    processor = ProcessorConfig(
        limits={"audio": MediumLimits(seconds=cfg.audio_seconds, codes=cfg.audio_codes)},
        history_turns=cfg.history_turns,
        wording=WORDING.model_copy(update={"voices": cfg.voices}),
        reading=CtcReading(sayings=cfg.sayings),  # as recipes/train_nano.py trains it
    )
    write_json(cfg.out / PROCESSOR_FILE, processor.model_dump(mode="json"))
    shutil.rmtree(cfg.out / "samples", ignore_errors=True)
    write_samples(cfg, cfg.out / "samples")
    total = sum(path.stat().st_size for path in cfg.out.rglob("*") if path.is_file())
    print(f"wrote {cfg.out}: {total / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    run_recipe(AssembleRecipe, run)
