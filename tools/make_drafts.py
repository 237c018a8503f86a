"""Put the codes of pictures, sounds or clips beside a model, for the fast decoders that remember.

    python tools/make_drafts.py model_cards/nano data/raw/emoji-datasource-google/package/img/google/64
    python tools/make_drafts.py model_cards/nano --training-pictures data/prepared
    unimodal generate "a red apple" --to image --out apple.png --decoder retrieval

A small model recalls what it was trained on, so the codes of its training files are good guesses for what it writes.
They change how many passes an answer takes and never the answer. Files are read with the model's own tokenizers and
written to MODEL/drafts.npz, in place of what was there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from unimodal.coder.media_coder import MediaCoder, load_coder
from unimodal.evaluation.prepared import EVALUATION_STYLES, Pictures
from unimodal.model_folder.drafts import write_drafts

BATCH = 64


def list_files(places: list[Path]) -> list[Path]:
    """The files named, and those of the folders named, in order."""
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: no such file or folder; check the path")
        found += sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    if not found:
        raise ValueError(f"no files in {', '.join(map(str, places))}; name some media files")
    return found


def encode_files(coder: MediaCoder, paths: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    for number, path in enumerate(paths, start=1):
        codes = coder.tokenize(path)
        yield codes.modality, codes.codes
        if number % 100 == 0 or number == len(paths):
            print(f"{number} of {len(paths)} files", file=sys.stderr)


def encode_training_pictures(coder: MediaCoder, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures that a model is trained on: neither of a style nor of a concept that is kept for evaluation."""
    pictures = Pictures.load(folder)
    styles = tuple(style for style in dict.fromkeys(map(str, pictures.style)) if style not in EVALUATION_STYLES)
    rows = pictures.find_rows(styles, "train")
    for begin in range(0, len(rows), BATCH):
        for codes in coder.encode("image", list(pictures.take(rows[begin : begin + BATCH]))):
            yield "image", codes
        print(f"\r{min(begin + BATCH, len(rows))} of {len(rows)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("files", type=Path, nargs="*", help="media files, or folders of them")
    parser.add_argument(
        "--training-pictures", type=Path, metavar="FOLDER", help="what tools/prepare_images.py made, to train on"
    )
    args = parser.parse_args()
    if not args.files and args.training_pictures is None:
        parser.error("name some media files, or --training-pictures")
    try:
        coder = load_coder(args.model)
        found = [encode_files(coder, list_files(args.files))] if args.files else []
        found += [encode_training_pictures(coder, args.training_pictures)] if args.training_pictures else []
        sequences = [
            [int(row) for row in coder.vocabulary.encode_span(modality, codes)] for modality, codes in chain(*found)
        ]
        written = write_drafts(args.model, sequences)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{written}: {len(sequences)} sequences, {sum(map(len, sequences))} codes")


if __name__ == "__main__":
    main()
