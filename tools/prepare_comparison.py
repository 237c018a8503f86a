"""Writes the folders that `tools/compare_systems.py` trains and compares tokenizers on, from the fetched packages.

    python tools/fetch_data.py --set images --set video --set audio --set text --set sounds
    python tools/prepare_comparison.py [image] [audio] [video] [--raw data/raw] [--out data/comparison]

    image/train     Noto and Fluent 3D, 64 pixels on white, the name of each in a .txt beside it
    image/held_out  Twemoji, another style, of the concepts that are not in train
    image/probe     Twemoji of concepts of train, for the downstream part
    audio/train     three synthetic voices with their texts, sound effects, notes of instruments
    audio/held_out  a human voice: prompts of a telephone exchange
    audio/probe     ten sentences by each synthetic voice, and ten sound effects and notes, none of them in train, nor
                    the other channel of one
    video/train     animated emoji, 64 pixels, 9 frames at 8 a second
    video/held_out  those of the concepts that are not in train

Pictures lie in a folder for each group of emoji, sounds of the probe in one for each voice or kind: the labels of the
downstream part. A folder that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unimodal.data.emoji_clips import FPS, MIN_MOTION, choose_best_clip
from unimodal.data.emoji_concepts import put_on_white, read_concepts
from unimodal.data.emoji_packages import open_emoji_styles
from unimodal.data.encoded_media import make_code_point_key
from unimodal.data.speaking_programs import SAMPLE_RATE_HZ, find_one, make_flite_speaker
from unimodal.data.spoken_sentences import build_sentences, list_sentences

VOICES = ("slt", "rms", "kal16")
SENTENCES = 300  # of train, by each voice
PROBED = 10  # of each voice or kind
HUMAN_SECONDS = (1.5, 5.0)  # shorter prompts are letters and digits, longer ones menus
HUMAN_CLIPS = 100
SOUND_SECONDS = 4.0
NOTES = 300
FILMS = (400, 60)  # of train, held out
SMALLEST_NOTE_S = 0.5
CHANNEL = re.compile(r"\s*(\([LR]\)?|(?<=[\s\d])[LR])$")  # "(L)", "(R" of a name that is cut, " L", "4R"


def write_sound(path: Path, wave: np.ndarray, rate_hz: int, text: str = "") -> None:
    """wave: float or int16 [T], cut to `SOUND_SECONDS`."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave[: round(SOUND_SECONDS * rate_hz)], rate_hz, subtype="PCM_16")
    if text:
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def prepare_pictures(raw: Path, out: Path) -> None:
    concepts = read_concepts(raw)
    every = open_emoji_styles(raw)
    styles = {style: every[style] for style in ("noto", "fluent3d", "twemoji")}
    for concept in concepts:
        for style, draw in styles.items():
            held_out = concept["split"] == "heldout"
            if style != "twemoji" and held_out:
                continue
            part = "train" if style != "twemoji" else "held_out" if held_out else "probe"
            picture = draw(concept["key"], concept["label"])
            if picture is not None:
                path = out / part / concept["group"] / f"{style}-{concept['key']}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(put_on_white(picture)).save(path)
                path.with_suffix(".txt").write_text(concept["label"] + "\n", encoding="utf-8")


class Recording(NamedTuple):
    """One channel of a sound. source: what it was recorded as; the two halves of a stereo sound have the same."""

    name: str
    source: str
    wave: np.ndarray  # int16 or float32 [T]
    rate_hz: int


def read_notes(path: Path) -> Iterator[Recording]:
    """Every recording in a SoundFont 2: RIFF with the chunks `smpl`, all recordings end to end, and `shdr`, 46 bytes of
    each. Its source is its name without a mark of its channel: the links between the halves of stereo sounds
    that `shdr` has room for are all 0 in the font that is used."""
    data = memoryview(path.read_bytes())
    chunks: dict[bytes, memoryview] = {}

    def collect(first: int, last: int) -> None:
        while first + 8 <= last:
            name, size = bytes(data[first : first + 4]), struct.unpack_from("<I", data, first + 4)[0]
            if name in (b"RIFF", b"LIST"):
                collect(first + 12, first + 8 + size)
            else:
                chunks[name] = data[first + 8 : first + 8 + size]
            first += 8 + size + size % 2

    collect(0, len(data))
    samples = np.frombuffer(chunks[b"smpl"], "<i2")
    for name, start, end, _, _, rate_hz, *_ in struct.iter_unpack("<20sIIIIIBbHH", chunks[b"shdr"]):
        label = name.split(b"\0")[0].decode("ascii", "replace").strip()
        if end > start and label != "EOS":
            yield Recording(label, CHANNEL.sub("", label), samples[start:end], rate_hz)


def split_sources(found: Sequence[Recording], probed: int) -> dict[str, list[tuple[int, Recording]]]:
    """Numbered recordings of `probe`, the first so many of different sources, and of `train`, those of all others."""
    parts: dict[str, list[tuple[int, Recording]]] = {"probe": [], "train": []}
    kept = set[str]()
    for number, recording in enumerate(found):
        if recording.source in kept:
            continue  # the other half of one that is probed
        probing = len(kept) < probed
        kept |= {recording.source} if probing else set()
        parts["probe" if probing else "train"].append((number, recording))
    return parts


def prepare_sounds(raw: Path, out: Path) -> None:
    sentences = [s for s in build_sentences(raw) if s.kind != "short"]
    for voice in VOICES:
        train = [s for s in list_sentences(voice, sentences) if s.split == "train"][:SENTENCES]
        test = [s for s in sentences if s.split == "test"][:PROBED]
        for sentence, wave in make_flite_speaker(voice)(train + test):
            part = "train" if sentence.split == "train" else "probe"
            place = out / part / voice / f"{sentence.id:05d}.wav"
            write_sound(place, wave, SAMPLE_RATE_HZ, sentence.text)
    folder = find_one(raw, "*.flac", "supersonic-scsynth-samples").parent
    effects = [Recording(path.stem, path.stem, *read_effect(path)) for path in sorted(folder.glob("*.flac"))]
    notes = list(read_notes(find_one(raw, "*.sf2", "fluid-soundfont-gm")))
    notes = [note for note in notes if len(note.wave) > SMALLEST_NOTE_S * note.rate_hz]
    random.Random(0).shuffle(effects)
    random.Random(0).shuffle(notes)
    for kind, found in (("effects", effects), ("notes", notes[: NOTES + PROBED])):
        for part, recordings in split_sources(found, PROBED).items():
            for number, (name, _, wave, rate_hz) in recordings:
                safe = "".join(letter if letter.isalnum() else "_" for letter in name)
                write_sound(out / part / kind / f"{number:03d}-{safe}.wav", wave, rate_hz)
    prepare_human_voice(raw, out / "held_out")


def read_effect(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    wave, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return wave.mean(1), rate_hz


def prepare_human_voice(raw: Path, out: Path) -> None:
    import av

    root = find_one(raw, "digits/1.g722", "asterisk-core-sounds-en-g722").parent.parent
    kept = 0
    for path in sorted(root.glob("*.g722")):
        with av.open(str(path), format="g722") as container:
            wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
        if HUMAN_SECONDS[0] <= len(wave) / SAMPLE_RATE_HZ <= HUMAN_SECONDS[1] and kept < HUMAN_CLIPS:
            write_sound(out / f"{path.stem}.wav", wave, SAMPLE_RATE_HZ)
            kept += 1


def prepare_films(raw: Path, out: Path) -> None:
    split = {concept["key"]: concept["split"] for concept in read_concepts(raw)}
    paths = {}
    for number in (1, 2, 3, 4):
        folder = find_one(raw, "*.webp", f"lobehub-fluent-emoji-anim-{number}").parent
        paths.update({make_code_point_key(path.stem): path for path in sorted(folder.glob("*.webp"))})
    keys = sorted(key for key in paths if key in split)
    random.Random(0).shuffle(keys)
    for part, kind, wanted in (("train", "train", FILMS[0]), ("held_out", "heldout", FILMS[1])):
        kept = 0
        for key in (key for key in keys if split[key] == kind):
            clip, moved = choose_best_clip(paths[key])
            if moved < MIN_MOTION:
                continue
            frames = [Image.fromarray(frame) for frame in clip]
            place = out / part / f"{key}.webp"
            place.parent.mkdir(parents=True, exist_ok=True)
            frames[0].save(
                place, save_all=True, append_images=frames[1:], duration=round(1000 / FPS),
                lossless=True, minimize_size=False, method=0,
            )  # fmt: skip
            kept += 1
            if kept == wanted:
                break


PREPARE: dict[str, Callable[[Path, Path], None]] = {
    "image": prepare_pictures, "audio": prepare_sounds, "video": prepare_films,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="*", choices=(*PREPARE, []), help="by default all three")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/comparison"))
    asked = parser.parse_args()
    for medium in asked.media or PREPARE:
        folder = asked.out / medium
        if folder.is_dir():
            continue
        scratch = folder.with_name(f".{medium}")
        try:
            PREPARE[medium](asked.raw, scratch)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}; run python tools/fetch_data.py --set images and so on first") from None
        scratch.rename(folder)
        counts = {part.name: sum(1 for path in part.rglob("*.*") if path.suffix != ".txt") for part in folder.iterdir()}
        print(f"{folder}: {json.dumps(counts)}", file=sys.stderr)


if __name__ == "__main__":
    main()
