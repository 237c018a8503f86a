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
import random
import re
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
    find_one,
    list_human_clips,
    make_flite_speaker,
    make_piper_speaker,
)
from unimodal.data.spoken_text import (
    DIGITS,
    UNWANTED,
    Sentence,
    make_short_utterances,
    normalise,
    split_words,
)
from unimodal.files import write_bytes_atomically

HELD_OUT_VOICE = "awb"
HUMAN_VOICE = "human"
# voice -> number of training sentences it speaks (validation and test sentences come on top)
TRAIN_SENTENCES = {
    "slt": 9000, "rms": 9000, "kal16": 9000, "awb": 200, "joe": 2500,
}  # fmt: skip
# voice -> number of validation and of test sentences it speaks
HELD_OUT_SENTENCES = {"slt": 200, "rms": 200, "kal16": 200, "awb": 200, "joe": 200}
NUM_VAL = NUM_TEST = 200


TEMPLATES = (
    "a picture of {a}", "this is {a}", "draw {a}", "i see {a}", "where is the {l}", "the {l} is {c}", "i like the {l}",
    "look at the {l}", "show me {a}", "there are {n} of them", "give me the {l}", "{a} in the {p}", "we found {a}",
    "the {l} is in the {p}", "do you see the {l}", "it looks like {a}", "she has {a}", "he drew {a} for me",
)  # fmt: skip
TEMPLATES_PER_LABEL = 5
COLOURS = split_words("red blue green yellow black white brown big small old new nice")
PLACES = split_words("house garden street city water box picture window car school")
# ---------------------------------------------------------------------------------------------- sentences


def read_wordnet_examples(raw: Path) -> list[str]:
    """All quoted example sentences of WordNet without digits, normalised, in file order."""
    examples = []
    for part in ("adj", "adv", "noun", "verb"):
        text = find_one(raw, f"data.{part}", "wordnet-base").read_text(encoding="latin-1")
        for line in text.splitlines():
            if not line.startswith("  ") and "|" in line:
                examples += re.findall(r'"([^"]+)"', line.split("|", 1)[1])
    return [normalise(example) for example in examples if not re.search(r"[0-9]", example)]


def read_emoji_labels(raw: Path) -> list[str]:
    """Labels of pictures (no flags, skin tones, symbols, people): one to three plain words."""
    entries = json.loads(find_one(raw, "en/data.json", "emojibase-data").read_text(encoding="utf-8"))
    labels = []
    for entry in entries:
        label = entry["label"].lower()
        plain = re.fullmatch(r"[a-z]+( [a-z]+){0,2}", label.replace("-", " "))
        if entry.get("group") in (0, 3, 4, 5, 6, 7) and plain:
            labels.append(label.replace("-", " "))
    return sorted(set(labels))


def build_sentences(raw: Path, vocabulary_size: int = 1500, seed: int = 0) -> list[Sentence]:
    """The fixed list of sentences with their splits; the same list on every machine."""
    rng = random.Random(seed)
    examples = read_wordnet_examples(raw)
    counts = Counter(word for example in examples for word in example.split())
    frequent = {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:vocabulary_size]}
    kinds: dict[str, str] = dict.fromkeys(make_short_utterances(rng), "short")
    for label in read_emoji_labels(raw):
        article = ("an " if label[0] in "aeiou" else "a ") + label
        for template in rng.sample(TEMPLATES, TEMPLATES_PER_LABEL):
            number = rng.choice(DIGITS[2:])
            text = template.format(a=article, l=label, c=rng.choice(COLOURS), p=rng.choice(PLACES), n=number)
            if len(text.split()) <= 8:
                kinds.setdefault(text, "emoji")
    for text in examples:
        spoken = text.split()
        if 2 <= len(spoken) <= 8 and frequent.issuperset(spoken) and not UNWANTED.search(text):
            kinds.setdefault(text, "example")
    texts = sorted(kinds)
    rng.shuffle(texts)
    splits = draw_held_out_splits(texts, kinds)
    return [Sentence(index, text, kinds[text], splits.get(text, "train")) for index, text in enumerate(texts)]


def draw_held_out_splits(texts: list[str], kinds: dict[str, str]) -> dict[str, str]:
    """Sentences of at least three words for `test` and `val`, whose words each stay in three training ones."""
    occurrences = Counter(word for text in texts for word in set(text.split()))
    splits: dict[str, str] = {}
    for text in texts:
        if len(splits) == NUM_TEST + NUM_VAL:
            break
        spoken = set(text.split())
        if kinds[text] == "short" or len(spoken) < 3 or min(occurrences[word] for word in spoken) <= 3:
            continue
        occurrences.subtract(spoken)
        splits[text] = "test" if len(splits) % 2 == 0 else "val"
    return splits


# ---------------------------------------------------------------------------------------------- commands


def load_sentences(out: Path) -> list[Sentence]:
    path = out / "sentences.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; run `python tools/make_speech.py sentences` first")
    return [Sentence(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def list_sentences(voice: str, sentences: list[Sentence]) -> list[Sentence]:
    """The sentences of a voice in a fixed shuffled order: its window of the training ones, then validation and
    test."""
    train = [sentence for sentence in sentences if sentence.split == "train"]
    start = list(TRAIN_SENTENCES).index(voice) * 997 % len(train)
    chosen = (train[start:] + train[:start])[: TRAIN_SENTENCES[voice]]
    if TRAIN_SENTENCES[voice] >= 1000:  # the large voices all say every short utterance
        known = {sentence.id for sentence in chosen}
        chosen += [sentence for sentence in train if sentence.kind == "short" and sentence.id not in known]
    for split in ("val", "test"):
        chosen += [sentence for sentence in sentences if sentence.split == split][: HELD_OUT_SENTENCES[voice]]
    return sorted(chosen, key=lambda sentence: sha256(f"{voice}-{sentence.id}".encode()).digest())


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
