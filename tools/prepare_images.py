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
from PIL import Image

from unimodal.data.emoji_packages import open_emoji_styles
from unimodal.data.encoded_media import make_code_point_key
from unimodal.files import write_bytes_atomically

SIZE = 64  # side of a packed picture, pixels
HELD_OUT_FRACTION = 0.05
SPLIT_SEED = 0
STYLES = ("noto", "fluent3d", "fluentflat", "twemoji")
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
LEFT_OUT_GROUPS = {"component", "flags"}

# Code points that name the same thing with another gender (first of each row stands for all).
GENDERED_CODE_POINTS = [
    ("1f9d1", "1f468", "1f469"),  # person, man, woman
    ("1f9d2", "1f466", "1f467"),  # child, boy, girl
    ("1f9d3", "1f474", "1f475"),  # older person, old man, old woman
    ("1fac5", "1f934", "1f478"),  # person with crown, prince, princess
    ("1f385", "1f936"),  # Santa Claus, Mrs. Claus
    ("1f483", "1f57a"),  # woman dancing, man dancing
    ("1fac4", "1f930", "1fac3"),  # pregnant person, woman, man
]
GENDER_OF_CODE_POINT = {code: row[0] for row in GENDERED_CODE_POINTS for code in row}
# Whole sequences that the rules below do not bring together: couples holding hands, mx claus.
SAME_FAMILY = {
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f9d1-200d-1f384": "1f385",
}
KISS, COUPLE = "1f48f", "1f491"  # the neutral forms of `person + heart + (kiss mark) + person`


def find_family(key: str, label: str) -> str:
    """The key shared by every gender (and facing direction) of one concept."""
    codes = key.split("-")
    if label.startswith("family") or key == "1f46a":
        return "1f46a"
    if "2764" in codes and len(codes) > 3:  # two people and a heart
        return KISS if "1f48b" in codes else COUPLE
    if codes[-2:] == ["200d", "27a1"]:  # "facing right"
        codes = codes[:-2]
    if codes[-2:] in (["200d", "2640"], ["200d", "2642"]):  # female sign, male sign
        codes = codes[:-2]
    family = "-".join(GENDER_OF_CODE_POINT.get(code, code) for code in codes)
    return SAME_FAMILY.get(family, family)


def choose_held_out_families(families: set[str]) -> set[str]:
    """5% of the families. The rank is a hash, so a family stays where it is when others are added."""
    ranked = sorted(families, key=lambda name: hashlib.sha256(f"{SPLIT_SEED}:{name}".encode()).hexdigest())
    return set(ranked[: round(HELD_OUT_FRACTION * len(ranked))])


def read_concepts(raw: Path) -> list[dict]:
    """The captions: one entry per neutral emoji, in the order of the Unicode charts."""
    folder = raw / "emojibase-data" / "package"
    groups: dict[str, str] = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))["groups"]
    entries = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    concepts: list[dict] = []
    for entry in sorted(entries, key=lambda e: (e.get("order", 1 << 30), e["hexcode"])):
        group = groups.get(str(entry.get("group")), "component")  # regional indicators have no group
        key = make_code_point_key(entry["hexcode"])
        if group in LEFT_OUT_GROUPS or SKIN_TONES & set(key.split("-")):
            continue
        family = find_family(key, entry["label"])
        concept = {"key": key, "family": family, "label": entry["label"], "tags": entry.get("tags", []), "group": group}
        concepts.append(concept)
    held_out = choose_held_out_families({concept["family"] for concept in concepts})
    for concept in concepts:
        concept["split"] = "heldout" if concept["family"] in held_out else "train"
    return concepts


def put_on_white(picture: Image.Image) -> np.ndarray:
    """Any picture → uint8 [64, 64, 3]: alpha on white, centred on a white square, reduced with an antialias filter."""
    rgba = picture.convert("RGBA")
    side = max(rgba.size)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    canvas.alpha_composite(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    rgb = canvas.convert("RGB")
    if side != SIZE:
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC)  # Pillow widens the kernel when it reduces
    return np.asarray(rgb)  # [64, 64, 3]


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
