"""Pack named sound effects, and the instruments of General MIDI note by note, as clips of 16 kHz.

    python tools/fetch_data.py --set sounds && pip install --no-deps tinysoundfont
    python tools/prepare_sounds.py [--raw data/raw] [--out data/prepared] [--files data/prepared/voices/train/sounds]

Writes, deterministically, to `OUT/sounds/`: `sounds.json`, a list of {id, name, kind, sample, note, split, start,
num_samples}; `audio.int16`, the samples one after the other; and `manifest.json` with their sha256. `kind` is `effect`
or `note`; `sample` is the recording, or the instrument of a note.

- Effects (npm supersonic-scsynth-samples) are called by what their file names say: `drum_tom_hi_soft` is a tom. Each is
  there several times: as recorded, and resampled, filtered and echoed by a seeded generator. Every fifth recording of
  a name that has at least four is held out whole (`sample`); of the others the last variants are (`variant`).
- Notes: C D E F G A B of octaves 3 to 5, each hard and soft, as far as an instrument goes. A tenth of the pairs of
  instrument and note, by a hash with seed 0, is held out (`combination`); of others a loudness in ten (`variant`).

`--files` also writes each sound of `train` as a .wav file, for a tokenizer that is trained on them too.

tinysoundfont is installed without what it depends on: that would be a sound card's library, which is not used here.

Shapes: T samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.data.named_sounds import NamedSound
from unimodal.data.order import make_generator
from unimodal.data.speaking_programs import save_clip
from unimodal.files import write_bytes_atomically

SAMPLE_RATE_HZ = 16_000
LONGEST_S = 2.5
NOTE_S = 1.2
SILENT = 1e-5
VARIANTS, HELD_OUT_VARIANTS = 12, 2  # of each recording, the first as it is
SPLIT_SEED, HELD_OUT_SHARE = 0, 0.1
SOUND_FONT = Path("fluid-soundfont-gm") / "usr" / "share" / "sounds" / "sf2" / "FluidR3_GM.sf2"

#: beginning of a file's name → what is heard; the longest that fits counts
EFFECTS = {
    "ambi_choir": "choir", "ambi_dark_woosh": "whoosh", "ambi_drone": "drone", "ambi_glass": "glass",
    "ambi_haunted_hum": "hum", "ambi_lunar_land": "wind", "ambi_piano": "piano", "ambi_sauna": "sauna",
    "ambi_soft_buzz": "buzz", "ambi_swoosh": "whoosh", "arovane_beat": "beat", "bass": "bass", "bd": "bass drum",
    "drum_bass": "bass drum", "drum_cowbell": "cowbell", "drum_cymbal": "cymbal", "drum_heavy_kick": "bass drum",
    "drum_roll": "drum roll", "drum_snare": "snare drum", "drum_splash": "cymbal", "drum_tom": "tom",
    "elec_beep": "beep", "elec_bell": "bell", "elec_bl": "blip", "elec_bong": "gong", "elec_chime": "chime",
    "elec_cymbal": "cymbal", "elec_filt_snare": "snare drum", "elec_flip": "blip", "elec_fuzz_tom": "tom",
    "elec_hi_snare": "snare drum", "elec_hollow_kick": "bass drum", "elec_lo_snare": "snare drum",
    "elec_mid_snare": "snare drum", "elec_ping": "ping", "elec_plip": "blip", "elec_pop": "pop",
    "elec_snare": "snare drum", "elec_soft_kick": "bass drum", "elec_tick": "tick", "elec_triangle": "triangle",
    "elec_twang": "twang", "elec_twip": "blip", "elec_wood": "wood block", "glitch_bass": "bass",
    "glitch_perc": "glitch", "glitch_robot": "robot", "guit": "guitar", "hat": "hi-hat", "loop_3d_printer": "printer",
    "loop_amen": "beat", "loop_breakbeat": "beat", "loop_compus": "beat", "loop_drone": "drone",
    "loop_electric": "beat", "loop_garzul": "bass", "loop_industrial": "beat", "loop_mehackit": "beat",
    "loop_mika": "beat", "loop_perc": "beat", "loop_safari": "beat", "loop_tabla": "tabla", "loop_weirdo": "beat",
    "mehackit_phone": "phone", "mehackit_robot": "robot", "misc_burp": "burp", "misc_cineboom": "boom",
    "misc_crow": "crow", "perc_bell": "bell", "perc_door": "door", "perc_impact": "crash", "perc_snap": "snap",
    "perc_sw": "whoosh", "perc_till": "cash register", "ride": "cymbal", "sn": "snare drum", "tabla": "tabla",
    "tbd_fxbed_loop": "drone", "tbd_highkey": "bell", "tbd_pad": "pad", "tbd_perc_blip": "blip",
    "tbd_perc_hat": "hi-hat", "tbd_perc_tap": "tap", "tbd_voctone": "choir", "vinyl_backspin": "record",
    "vinyl_hiss": "hiss", "vinyl_rewind": "record", "vinyl_scratch": "record",
}  # fmt: skip
#: General MIDI program → instrument; programs that differ in colour only are left out, and so are effects
INSTRUMENTS = {
    0: "piano", 4: "electric piano", 6: "harpsichord", 8: "celesta", 9: "glockenspiel", 10: "music box",
    11: "vibraphone", 12: "marimba", 13: "xylophone", 14: "tubular bells", 15: "dulcimer", 16: "organ",
    19: "church organ", 21: "accordion", 22: "harmonica", 24: "guitar", 27: "electric guitar", 30: "distorted guitar",
    32: "bass", 33: "electric bass", 36: "slap bass", 40: "violin", 41: "viola", 42: "cello", 43: "double bass",
    45: "plucked strings", 46: "harp", 47: "timpani", 48: "strings", 52: "choir", 56: "trumpet", 57: "trombone",
    58: "tuba", 59: "muted trumpet", 60: "french horn", 61: "brass", 64: "soprano saxophone", 65: "saxophone",
    68: "oboe", 69: "english horn", 70: "bassoon", 71: "clarinet", 72: "piccolo", 73: "flute", 74: "recorder",
    75: "pan flute", 77: "shakuhachi", 78: "whistle", 79: "ocarina", 104: "sitar", 105: "banjo", 106: "shamisen",
    107: "koto", 108: "kalimba", 109: "bagpipe", 110: "fiddle", 114: "steel drums",
}  # fmt: skip
TONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
OCTAVES = (3, 4, 5)
LOUDNESSES = {"soft": 62, "hard": 112}


def name_effect(stem: str) -> str:
    """`drum_tom_hi_soft` → `tom`. Raises ValueError for a file that the table does not know."""
    fitting = [begin for begin in EFFECTS if stem.startswith(begin)]
    if not fitting:
        raise ValueError(f"the effect {stem} has no name in EFFECTS; add one")
    return EFFECTS[max(fitting, key=len)]


def read_wave(path: Path) -> np.ndarray:
    """A file as float64 [T] at 16 kHz, one channel, its beginning at most."""
    import soundfile
    from scipy.signal import resample_poly

    wave, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    wave = wave[: int(rate_hz * LONGEST_S * 1.4)].mean(1)
    divisor = int(np.gcd(rate_hz, SAMPLE_RATE_HZ))
    found: np.ndarray = resample_poly(wave, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)
    return found


def vary(wave: np.ndarray, key: str, variant: int) -> np.ndarray:
    """Variant 0 is the recording; others are a little higher or lower, filtered, echoed, in faint noise."""
    if variant == 0:
        return wave
    draws, noise = (
        make_generator("sound", key, variant),
        np.random.default_rng(int(sha256(f"{key}/{variant}".encode()).hexdigest()[:8], 16)),
    )
    speed = draws.uniform(0.84, 1.19)
    places = np.arange(0, len(wave) - 1, speed)
    wave = np.interp(places, np.arange(len(wave)), wave)
    tilt = draws.uniform(-0.35, 0.35)  # one pole or one zero: darker or brighter
    wave = wave + tilt * np.concatenate([[0.0], wave[:-1]])
    if draws.random() < 0.5:
        delay, share = int(SAMPLE_RATE_HZ * draws.uniform(0.02, 0.09)), draws.uniform(0.15, 0.4)
        echoed = np.concatenate([wave, np.zeros(delay * 2)])
        for times in (1, 2):
            echoed[delay * times : delay * times + len(wave)] += share**times * wave
        wave = echoed
    level = np.abs(wave).max(initial=1e-9) * 10 ** (draws.uniform(-60, -34) / 20)
    return wave + level * noise.standard_normal(len(wave))


def tidy(wave: np.ndarray, peak: float = 0.8) -> np.ndarray:
    """int16 [T]: at most `LONGEST_S`, a short fade at the end, silence of 20 ms around, one loudness."""
    wave = wave[: int(LONGEST_S * SAMPLE_RATE_HZ)].copy()
    fade = min(len(wave) // 4, SAMPLE_RATE_HZ // 20)
    if fade:
        wave[-fade:] *= np.linspace(1, 0, fade)
    top = float(np.abs(wave).max(initial=0.0))
    assert top >= SILENT
    silence = np.zeros(SAMPLE_RATE_HZ // 50)
    wave = np.concatenate([silence, wave * (peak / top), silence])
    if len(wave) < SAMPLE_RATE_HZ // 4:
        wave = np.concatenate([wave, np.zeros(SAMPLE_RATE_HZ // 4 - len(wave))])
    found: np.ndarray = np.round(wave * 32767).astype(np.int16)
    return found


def list_effects(raw: Path) -> Iterator[tuple[NamedSound, np.ndarray]]:
    """The effects with their variants; `start` and `num_samples` are set when they are packed."""
    folder = raw / "supersonic-scsynth-samples" / "package" / "samples"
    paths = {path.stem: path for path in sorted(folder.glob("*.flac"))}
    if not paths:
        raise FileNotFoundError(2, "missing", str(folder))
    of_name: dict[str, list[str]] = defaultdict(list)
    for stem in paths:
        of_name[name_effect(stem)].append(stem)
    held_out: set[str] = set()
    for stems in of_name.values():
        ranked = sorted(stems, key=lambda stem: sha256(f"{SPLIT_SEED}:{stem}".encode()).digest())
        held_out |= {*ranked[: max(1, len(stems) // 5)]} if len(stems) >= 4 else set()
    for stem, path in paths.items():
        wave = read_wave(path)
        for variant in range(VARIANTS):
            late = variant >= VARIANTS - HELD_OUT_VARIANTS
            split = "sample" if stem in held_out else "variant" if late else "train"
            sound = NamedSound(f"{stem}-{variant}", name_effect(stem), "effect", stem, "", split)
            yield sound, tidy(vary(wave, stem, variant))


def list_notes(raw: Path) -> Iterator[tuple[NamedSound, np.ndarray]]:
    """Every instrument at every note, hard and soft."""
    try:
        import tinysoundfont
    except ImportError:
        raise ValueError("notes need tinysoundfont: pip install --no-deps tinysoundfont") from None
    path = raw / SOUND_FONT
    if not path.is_file():
        raise FileNotFoundError(2, "missing", str(path))
    synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE_HZ)
    font = synth.sfload(str(path))
    for program, instrument in INSTRUMENTS.items():
        synth.program_select(0, font, 0, program)
        for octave in OCTAVES:
            for tone, step in TONES.items():
                for loudness, velocity in LOUDNESSES.items():
                    note = f"{tone}{octave}"
                    synth.sounds_off()
                    synth.noteon(0, 12 * (octave + 1) + step, velocity)
                    held = np.frombuffer(synth.generate(int(NOTE_S * 0.75 * SAMPLE_RATE_HZ)), np.float32).copy()
                    synth.noteoff(0, 12 * (octave + 1) + step)
                    ended = np.frombuffer(synth.generate(int(NOTE_S * 0.25 * SAMPLE_RATE_HZ)), np.float32).copy()
                    wave = np.concatenate([held, ended]).reshape(-1, 2).mean(1).astype(np.float64)
                    if float(np.abs(wave).max()) < SILENT:  # beyond what the instrument can play
                        continue
                    sound = NamedSound(
                        f"{program:03}-{note}-{loudness}", f"{instrument}, {note}", "note", instrument, note,
                        choose_note_split(instrument, note, loudness),
                    )  # fmt: skip
                    yield sound, tidy(wave, 0.8 if loudness == "hard" else 0.4)


def choose_note_split(instrument: str, note: str, loudness: str) -> str:
    """`combination` for pairs that are never heard in training, `variant` for a loudness that is not."""

    def is_chosen(*names: str) -> bool:
        digest = sha256("/".join([str(SPLIT_SEED), *names]).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    if is_chosen("note", instrument, note):
        return "combination"
    return "variant" if is_chosen("loudness", instrument, note, loudness) else "train"


def write_prepared(folder: Path, sounds: Sequence[tuple[NamedSound, np.ndarray]]) -> None:
    """The three files, the manifest last."""
    listed, clips, start = [], [], 0
    for sound, samples in sounds:
        listed.append(asdict(sound) | {"start": start, "num_samples": len(samples)})
        clips.append(samples)
        start += len(samples)
    audio = np.concatenate(clips).tobytes()
    index = json.dumps(listed, indent=0).encode()
    write_bytes_atomically(folder / "audio.int16", audio)
    write_bytes_atomically(folder / "sounds.json", index)
    hashes = {"audio.int16": sha256(audio).hexdigest(), "sounds.json": sha256(index).hexdigest()}
    write_bytes_atomically(folder / "manifest.json", json.dumps(hashes, indent=1).encode())
    counts = Counter((sound.kind, sound.split) for sound, _ in sounds)
    for (kind, split), count in sorted(counts.items()):
        print(f"{kind:7} {split:12} {count}", file=sys.stderr)
    names = {sound.name if sound.kind == "effect" else sound.sample for sound, _ in sounds}
    print(f"{len(listed)} sounds of {len(names)} names, {start / SAMPLE_RATE_HZ / 3600:.2f} h", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared"), help="folder to write `sounds` to")
    parser.add_argument("--files", type=Path, help="folder for the training sounds as files")
    options = parser.parse_args(arguments)
    try:
        sounds = [*list_effects(options.raw), *list_notes(options.raw)]
        write_prepared(options.out / "sounds", sounds)
        for sound, samples in sounds if options.files is not None else ():
            if sound.split == "train":
                save_clip(options.files, sound.id, "", samples)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: run `python tools/fetch_data.py --set sounds` first", file=sys.stderr)
        raise SystemExit(2) from None
    except ValueError as error:
        print(f"prepare_sounds: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
