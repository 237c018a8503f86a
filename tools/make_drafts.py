"""Put the codes of pictures, sounds or clips beside a model, for the fast decoder `retrieval`.

    python tools/make_drafts.py model_cards/nano data/raw/emoji-datasource-google/package/img/google/64
    unimodal generate "a red apple" --to image --out apple.png --decoder retrieval

A small model recalls what it was trained on, so the codes of its training files are good guesses for what it writes.
They change how many passes an answer takes and never the answer. Files are read with the model's own tokenizers and
written to MODEL/drafts.npz, in place of what was there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unimodal.pipeline_drafts import write_drafts
from unimodal.pipeline_media import load_coder


def files_in(places: list[Path]) -> list[Path]:
    """The files named, and those of the folders named, in order."""
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: no such file or folder; check the path")
        found += sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    if not found:
        raise ValueError(f"no files in {', '.join(map(str, places))}; name some media files")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("files", type=Path, nargs="+", help="media files, or folders of them")
    args = parser.parse_args()
    try:
        coder = load_coder(args.model)
        paths = files_in(args.files)
        sequences = []
        for number, path in enumerate(paths, start=1):
            codes = coder.tokenize(path)
            sequences.append([int(row) for row in coder.vocabulary.encode_span(codes.modality, codes.codes)])
            if number % 100 == 0 or number == len(paths):
                print(f"{number} of {len(paths)} files", file=sys.stderr)
        written = write_drafts(args.model, sequences)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{written}: {len(sequences)} sequences, {sum(map(len, sequences))} codes")


if __name__ == "__main__":
    main()
