"""Pack the clips of `tools/make_voices.py` as the speech that nano is trained and tested on.

    python tools/pack_voices.py [--voices data/prepared/voices] [--out data/prepared/speech]

Reads `train/VOICE/NUMBER.wav` with `.txt` beside it, `test/…` and `human/…`, all of 16 kHz, and writes
`utterances.json` ({id, text, voice, split, start, num_samples}), `audio.int16` (the samples one after the other) and,
last, `manifest.json` with their sha256. The split is the name of the folder; clips of `VOICE-worn` are of that voice.
`--skip-worn` leaves these out: worse recordings are good to be read, and no example of how to speak. Clips without a
text, as most of `make_recordings.py`, are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.files import write_bytes_atomically

SAMPLE_RATE_HZ = 16_000
WORN = "-worn"


def read_clip(path: Path) -> np.ndarray:
    """The samples of a clip, int16 [T]. Raises ValueError for another rate."""
    import soundfile

    samples, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"{path} has {rate_hz} samples a second, not {SAMPLE_RATE_HZ}; make the voices again")
    found: np.ndarray = samples[:, 0]
    return found


def pack(voices: Path, out: Path, skip_worn: bool = False) -> None:
    """Writes the three files, in the order of the clips' names."""
    found = sorted(path for path in voices.glob("*/*/*.wav") if not path.name.startswith("."))
    paths = [path for path in found if path.with_suffix(".txt").is_file()]
    if not paths:
        raise ValueError(f"{voices} has no clips; make them with `python tools/make_voices.py speak`")
    utterances: list[dict[str, object]] = []
    digest, start = sha256(), 0
    out.mkdir(parents=True, exist_ok=True)
    part = out / "audio.int16.part"
    with part.open("wb") as audio:
        for path in paths:
            split, voice = path.parts[-3], path.parts[-2]
            if voice.endswith(WORN) and skip_worn:
                continue
            samples = read_clip(path)
            audio.write(samples.tobytes())
            digest.update(samples.tobytes())
            entry = {
                "id": f"{voice}-{path.stem}", "text": path.with_suffix(".txt").read_text("utf-8").strip(),
                "voice": voice.removesuffix(WORN), "split": split, "start": start, "num_samples": len(samples),
            }  # fmt: skip
            utterances.append(entry)
            start += len(samples)
    part.replace(out / "audio.int16")
    index = json.dumps(utterances, indent=0).encode()
    write_bytes_atomically(out / "utterances.json", index)
    hashes = {"audio.int16": digest.hexdigest(), "utterances.json": sha256(index).hexdigest()}
    write_bytes_atomically(out / "manifest.json", json.dumps(hashes, indent=1).encode())
    counts = Counter((str(entry["voice"]), str(entry["split"])) for entry in utterances)
    for (voice, split), count in sorted(counts.items()):
        print(f"{voice:9} {split:13} {count}", file=sys.stderr)
    if len(found) > len(paths):
        print(f"{len(found) - len(paths)} clips without a text are left out", file=sys.stderr)
    print(f"{len(utterances)} utterances, {start / SAMPLE_RATE_HZ / 3600:.2f} h in {out}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--voices", type=Path, default=Path("data/prepared/voices"), help="folder of make_voices.py")
    parser.add_argument("--out", type=Path, default=Path("data/prepared/speech"), help="folder to write to")
    parser.add_argument("--skip-worn", action="store_true", help="leave worse recordings out")
    options = parser.parse_args(arguments)
    try:
        pack(options.voices, options.out, options.skip_worn)
    except ValueError as error:
        print(f"pack_voices: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
