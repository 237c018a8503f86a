"""Pack the animated emoji into clips of 9 frames at 8 frames a second, 64 × 64 pixels, on white.

    python tools/prepare_clips.py [--raw data/raw] [--out data/prepared]

Reads the four `lobehub-fluent-emoji-anim-*` packages and the `concepts.json` that `prepare_images.py` wrote (so concept
ids and the split are the same), and writes `clips.npz`: `frames` uint8 [C, 9, 64, 64, 3], `concept` int32 [C].

A clip starts with the animation. When its beginning hardly moves, the start among a few fixed offsets whose nine frames
move most is taken instead. A clip whose frames differ by less than 0.02 of the full range, averaged over all pairs of
frames, is dropped: it is (nearly) a still picture. Frames are picked by timestamp, so a source of any rate
gives 8 frames a second.

Shapes: C clips, T frames.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimodal.data.emoji_clips import MIN_MOTION, choose_best_clip
from unimodal.data.encoded_media import make_code_point_key
from unimodal.files import write_bytes_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared"), help="folder to write to")
    options = parser.parse_args(arguments)
    concepts_file = options.out / "concepts.json"
    if not concepts_file.exists():
        print(f"{concepts_file} is missing: run `python tools/prepare_images.py` first", file=sys.stderr)
        raise SystemExit(2)
    concept_of_key = {entry["key"]: entry["id"] for entry in json.loads(concepts_file.read_text("utf-8"))}
    paths: dict[str, Path] = {}
    for number in (1, 2, 3, 4):
        folder = options.raw / f"lobehub-fluent-emoji-anim-{number}" / "package" / "assets"
        if not folder.is_dir():
            print(f"{folder} is missing: run `python tools/fetch_data.py --set video` first", file=sys.stderr)
            raise SystemExit(2)
        paths.update({make_code_point_key(path.stem): path for path in sorted(folder.glob("*.webp"))})

    wanted = sorted((concept_of_key[key], path) for key, path in paths.items() if key in concept_of_key)
    clips: list[np.ndarray] = []
    concept_ids: list[int] = []
    dropped = 0
    begun = time.monotonic()
    for done, (concept, path) in enumerate(wanted):
        clip, moved = choose_best_clip(path)
        if moved < MIN_MOTION:
            dropped += 1
        else:
            clips.append(clip)
            concept_ids.append(concept)
        if done % 50 == 0:
            print(f"{done}/{len(wanted)} animations, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    archive = io.BytesIO()  # np.savez dates every member 1980, so equal arrays give equal bytes
    np.savez(archive, frames=np.stack(clips), concept=np.array(concept_ids, np.int32))
    write_bytes_atomically(options.out / "clips.npz", archive.getvalue())
    manifest = options.out / "manifest.json"
    known = json.loads(manifest.read_text("utf-8")) if manifest.exists() else {}
    known["clips.npz"] = hashlib.sha256(archive.getvalue()).hexdigest()
    write_bytes_atomically(manifest, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    print(f"{len(clips)} clips kept, {dropped} still ones dropped", file=sys.stderr)


if __name__ == "__main__":
    main()
