"""Make a small English speech corpus with synthetic voices: short sentences, a limited vocabulary, 16 kHz.

    python tools/make_speech.py sentences                          # data/prepared/speech/sentences.json
    python tools/make_speech.py speak --voice slt --voice joe      # one cached clip per utterance; resumable
    python tools/make_speech.py pack                               # utterances.json + audio.int16 from what is cached

Sentences come from WordNet's examples (only those whose words are all among the most frequent), from templates over
emoji labels, and from numbers, letters and NATO words. Text is lower case without punctuation, so a reader learns
words and not typography. The split is by sentence: no test or validation sentence is spoken in training by any voice;
every word of a test sentence occurs in at least three training sentences. One voice (`awb`) is held out whole.
The one human speaker (asterisk prompts) is a test set only.

Voices: flite (`slt`, `rms`, `kal16`, `awb`) through its C library, and piper (`joe`) as a separate program.
Everything is deterministic (flite's noise is seeded, piper runs with its noise
scales at zero); every clip and file is written atomically.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.data.speaking_programs import (
    SAMPLE_RATE_HZ,
    Speaker,
    list_human_clips,
    make_flite_speaker,
    make_piper_speaker,
)
from unimodal.data.spoken_sentences import TRAIN_SENTENCES, build_sentences, list_sentences
from unimodal.data.spoken_text import (
    Sentence,
)
from unimodal.files import write_bytes_atomically

HELD_OUT_VOICE = "awb"
HUMAN_VOICE = "human"


# ---------------------------------------------------------------------------------------------- sentences


# ---------------------------------------------------------------------------------------------- commands


def load_sentences(out: Path) -> list[Sentence]:
    path = out / "sentences.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; run `python tools/make_speech.py sentences` first")
    return [Sentence(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def find_speaker(voice: str, raw: Path, piper: str) -> Speaker:
    if voice == "joe":
        return make_piper_speaker(raw, piper)
    return make_flite_speaker(voice)


def name_clip(cache: Path, voice: str, text: str) -> Path:
    """Cached clips are named by their text, so they outlive a change of the sentence list."""
    return cache / voice / f"{sha256(text.encode()).hexdigest()[:16]}.npy"


def save_clip(path: Path, samples: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, samples)
    write_bytes_atomically(path, buffer.getvalue())


def speak(voice: str, args: argparse.Namespace) -> None:
    """Speak what is not in the cache yet."""
    if voice == HUMAN_VOICE:
        for _, text, samples in list_human_clips(args.raw):
            save_clip(name_clip(args.cache, voice, text), samples)
        return
    if voice not in TRAIN_SENTENCES:
        raise ValueError(f"--voice {voice}: unknown; choose from {', '.join([*TRAIN_SENTENCES, HUMAN_VOICE])}")
    wanted = list_sentences(voice, load_sentences(args.out))[: args.limit]
    missing = [sentence for sentence in wanted if not name_clip(args.cache, voice, sentence.text).is_file()]
    done = len(wanted) - len(missing)
    for sentence, samples in find_speaker(voice, args.raw, args.piper)(missing):
        save_clip(name_clip(args.cache, voice, sentence.text), samples)
        done += 1
        if done % 100 == 0 or done == len(wanted):
            print(f"{voice}: {done} of {len(wanted)}", file=sys.stderr, flush=True)


def pack(args: argparse.Namespace) -> None:
    """Concatenate the cached clips in a fixed order; the manifest is written last and names every hash."""
    sentences = load_sentences(args.out)
    utterances, clips, start = [], [], 0

    def add(identity: str, text: str, voice: str, split: str, samples: np.ndarray) -> None:
        nonlocal start
        entry = {"id": identity, "text": text, "voice": voice, "split": split, "start": start}
        utterances.append({**entry, "num_samples": len(samples)})
        clips.append(samples)
        start += len(samples)

    for voice in TRAIN_SENTENCES:
        for sentence in sorted(list_sentences(voice, sentences), key=lambda sentence: sentence.id):
            path = name_clip(args.cache, voice, sentence.text)
            if path.is_file():
                split = "voice_heldout" if voice == HELD_OUT_VOICE else sentence.split
                add(f"{voice}-{sentence.id:05d}", sentence.text, voice, split, np.load(path))
    for identity, text, samples in list_human_clips(args.raw):
        add(f"{HUMAN_VOICE}-{identity}", text, HUMAN_VOICE, "human", samples)
    audio = np.concatenate(clips).tobytes()
    index = json.dumps(utterances, indent=0).encode()
    write_bytes_atomically(args.out / "audio.int16", audio)
    write_bytes_atomically(args.out / "utterances.json", index)
    hashes = {
        "audio.int16": sha256(audio).hexdigest(),
        "utterances.json": sha256(index).hexdigest(),
        "sentences.json": sha256((args.out / "sentences.json").read_bytes()).hexdigest(),
    }
    write_bytes_atomically(args.out / "manifest.json", json.dumps(hashes, indent=1).encode())
    counts = Counter((entry["voice"], entry["split"]) for entry in utterances)
    for (voice, split), count in sorted(counts.items()):
        print(f"{voice:9} {split:13} {count}", file=sys.stderr)
    print(f"{len(utterances)} utterances, {start / SAMPLE_RATE_HZ / 3600:.2f} h in {args.out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sentences", "speak", "pack"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared/speech"))
    parser.add_argument("--cache", type=Path, default=Path("data/cache/speech"), help="one clip an utterance")
    parser.add_argument("--voice", action="append", default=[], help="repeatable; default: all")
    parser.add_argument("--limit", type=int, default=None, help="only the first N sentences of each voice")
    parser.add_argument("--piper", default="piper", help="the piper program, e.g. 'venv/bin/python -m piper'")
    args = parser.parse_args()
    try:
        if args.command == "sentences":
            sentences = build_sentences(args.raw)
            write_bytes_atomically(
                args.out / "sentences.json", json.dumps([asdict(s) for s in sentences], indent=0).encode()
            )
            print(f"{len(sentences)} sentences, {dict(Counter((s.kind, s.split) for s in sentences))}")
        elif args.command == "speak":
            for voice in args.voice or [*TRAIN_SENTENCES, HUMAN_VOICE]:
                speak(voice, args)
        else:
            pack(args)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"make_speech: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
