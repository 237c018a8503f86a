"""Pack emoji pictures of four drawing styles, with names and tags, into arrays a trainer can map.

    python tools/prepare_images.py [--raw data/raw] [--out data/prepared]

Reads the unpacked packages of `tools/fetch_data.py --set images` and writes, deterministically:

- `concepts.json`: list of {id, key, family, label, tags, group, split}; `key` is the code point sequence in lower
  case without `fe0f`. Flags, skin tones and components are left out.
- `images.npz`: `pixels` uint8 [M, 64, 64, 3] on white, `concept` int32 [M], `style` str [M].
- `manifest.json`: the sha256 of each file written.

The split is by *family*: the man, woman and person of one action are one family, so a held-out concept is never
seen in training as a different gender. 5% of the families are held out, chosen by a hash seeded with 0.
The `twemoji` style is there to test on: it must never be trained on, whatever the concept's split.

Shapes: M pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimodal.data.emoji_concepts import put_on_white, read_concepts
from unimodal.data.emoji_packages import open_emoji_styles
from unimodal.files import write_bytes_atomically

STYLES = ("noto", "fluent3d", "fluentflat", "twemoji")


def write_files(folder: Path, written: dict[str, bytes]) -> None:
    """Write the files, then their sha256 into `manifest.json` beside what it holds of other files."""
    for name, data in written.items():
        write_bytes_atomically(folder / name, data)
    path = folder / "manifest.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known.update({name: hashlib.sha256(data).hexdigest() for name, data in written.items()})
    write_bytes_atomically(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared"), help="folder to write to")
    options = parser.parse_args(arguments)
    raw: Path = options.raw
    try:
        concepts = read_concepts(raw)
        draw_of_style = open_emoji_styles(raw)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: run `python tools/fetch_data.py --set images` first", file=sys.stderr)
        raise SystemExit(2) from None

    pixels: list[np.ndarray] = []
    concept_ids: list[int] = []
    styles: list[str] = []
    for number, concept in enumerate(concepts):
        concept["id"] = number
        for style in STYLES:
            picture = draw_of_style[style](concept["key"], concept["label"])
            if picture is not None:
                pixels.append(put_on_white(picture))
                concept_ids.append(number)
                styles.append(style)
        if number % 300 == 0:
            print(f"{number}/{len(concepts)} concepts, {len(pixels)} pictures", file=sys.stderr, flush=True)

    archive = io.BytesIO()  # np.savez dates every member 1980, so equal arrays give equal bytes
    np.savez(archive, pixels=np.stack(pixels), concept=np.array(concept_ids, np.int32), style=np.array(styles))
    fields = ("id", "key", "family", "label", "tags", "group", "split")
    names = json.dumps([{field: c[field] for field in fields} for c in concepts], ensure_ascii=False, indent=1) + "\n"
    write_files(options.out, {"concepts.json": names.encode(), "images.npz": archive.getvalue()})
    print(f"{len(concepts)} concepts, split {dict(Counter(c['split'] for c in concepts))}", file=sys.stderr)
    print(f"{len(pixels)} pictures, by style {dict(Counter(styles))}", file=sys.stderr)


if __name__ == "__main__":
    main()
