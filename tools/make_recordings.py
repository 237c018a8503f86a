"""Make recordings of people, in many languages, to train a speech tokenizer on beside synthetic voices.

    python tools/fetch_data.py --set recordings
    python tools/make_recordings.py        # data/prepared/voices/train/SPEAKERS/NAME.wav; .txt where it is English

No sizeable corpus of people who speak English is packaged, but prompts, games and dictionaries in other languages are:
telephone prompts (asterisk: French, Italian, Russian), dialogues (fillets: Czech, Dutch), the alphabets and
syllables of klettres, the names of things in ktuberling and Tux Paint's stamps. English ones have a text, which their
file names tell. The English telephone prompts are a test set (`make_voices.py`); their speaker also made the Spanish
ones, so nothing of either package is here.

A folder is a package and language, so about a speaker. Clips are 16 kHz mono of 0.2 to 15 s with their silence cut;
of a folder with more than --limit the ones whose names hash lowest are taken. Every file is written atomically, and
what is there is not made again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.data.speaking_programs import SAMPLE_RATE_HZ, save_clip, tidy

LENGTHS_S = (0.2, 15.0)
SUFFIXES = (".ogg", ".g722", ".wav")
#: prompts by the speaker of the test set
OF_TEST_SPEAKER = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-es-g722")
#: what is not speech, or is of no one language
LEFT_OUT = re.compile(r"/silence/|/followme/|beep|jingle|tt-monkeys|/sound/(share|elevator1|menu)/")


@dataclass(frozen=True)
class Recording:
    """speakers: the folder of a package's language. text: what is said, "" where it is not known."""

    path: Path
    speakers: str
    text: str = ""


def find_speakers(package: str, path: str) -> tuple[str, str] | None:
    """(folder of the speakers, English text or "") of a file of a package; None for what is not speech."""
    stem = Path(path).stem
    if LEFT_OUT.search(f"/{path}"):
        return None
    if found := re.fullmatch(r"asterisk-core-sounds-(..)-g722", package):
        return f"asterisk-{found[1]}", ""
    if package.startswith("fillets-ng-data-"):
        language = package.rpartition("-")[2]
        return (f"fillets-{language}", "") if f"/{language}/" in path else None
    if package == "klettres-data" and (found := re.search(r"/klettres/(\w+)/(alpha|syllab)/", path)):
        return f"klettres-{found[1]}", stem if found[1] in ("en", "en_GB") else ""
    if package == "ktuberling-data" and (found := re.search(r"/sounds/([\w@]+)/", path)):
        return f"ktuberling-{found[1]}", stem.rpartition("_")[2] if found[1] == "en" and "_" not in stem else ""
    if package == "tuxpaint-stamps-default" and (found := re.search(r"_desc(?:_([A-Za-z_]+))?$", stem)):
        return f"stamps-{found[1] or 'en'}", ""
    return None


def list_recordings(raw: Path) -> Iterator[Recording]:
    """What is fetched of the set `recordings`. ValueError where nothing is."""
    packages = [folder for name in ("asterisk-core-sounds-*-g722", "fillets-ng-data-*", "klettres-data",
                                    "ktuberling-data", "tuxpaint-stamps-default") for folder in sorted(raw.glob(name))
                if folder.name not in OF_TEST_SPEAKER]  # fmt: skip
    if not packages:
        raise ValueError(f"{raw}: no recordings; run `python tools/fetch_data.py --set recordings`")
    for folder in packages:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in SUFFIXES or path.is_symlink() or not path.is_file():
                continue
            found = find_speakers(folder.name, path.relative_to(folder).as_posix())
            if found is not None:
                yield Recording(path, *found)


def read_clip(path: Path) -> np.ndarray:
    """int16 [T] at 16 kHz. ValueError for one that cannot be read, is silent, too short or too long."""
    import av

    try:
        with av.open(str(path), format="g722" if path.suffix == ".g722" else None) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            frames = [made for frame in container.decode(stream) for made in resampler.resample(frame)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__})") from None
    wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]) if frames else np.zeros(0)
    if np.abs(wave).max(initial=0.0) < 1e-3:
        raise ValueError("it is silent")
    clip = tidy(wave, SAMPLE_RATE_HZ)
    if not LENGTHS_S[0] <= len(clip) / SAMPLE_RATE_HZ <= LENGTHS_S[1]:
        raise ValueError(f"it is not of {LENGTHS_S[0]} to {LENGTHS_S[1]} s")
    return clip


def make_recordings(raw: Path, out: Path, limit: int) -> Iterator[str]:
    """Write the clips; yields a line for each folder."""
    speakers: dict[str, list[tuple[str, Recording]]] = defaultdict(list)
    for recording in list_recordings(raw):
        name = sha256(recording.path.relative_to(raw).as_posix().encode()).hexdigest()[:12]
        speakers[recording.speakers].append((name, recording))
    for folder, recordings in sorted(speakers.items()):
        made, left = 0, 0
        for name, recording in sorted(recordings, key=lambda pair: pair[0]):
            if made == limit:
                break
            if not (out / folder / f"{name}.wav").is_file():
                try:
                    clip = read_clip(recording.path)
                except ValueError:
                    left += 1
                    continue
                save_clip(out / folder, name, recording.text, clip)
            made += 1
        yield f"{folder}: {made} clips of {len(recordings)} files, {left} unusable"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("data/prepared/voices/train"))
    parser.add_argument("--limit", type=int, default=400, help="clips of one folder (default 400)")
    args = parser.parse_args()
    try:
        if args.limit < 1:
            raise ValueError("--limit must be at least 1")
        for line in make_recordings(args.raw, args.out, args.limit):
            print(line, flush=True)
    except ValueError as error:
        sys.exit(f"make_recordings: {error}")


if __name__ == "__main__":
    main()
