"""What the emoji show: their names, the families of one concept, which of them are held out, and a picture on white."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from typing_extensions import TypedDict

from unimodal.data.encoded_media import make_code_point_key

SIZE = 64  # side of a packed picture, pixels
HELD_OUT_FRACTION = 0.05
SPLIT_SEED = 0
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


class EmojiConcept(TypedDict):
    """key: code points in lower case without `fe0f`. family: the key that all genders of it share."""

    key: str
    family: str
    label: str
    tags: list[str]
    group: str
    split: str


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


def read_concepts(raw: Path) -> list[EmojiConcept]:
    """The captions: one entry per neutral emoji, in the order of the Unicode charts."""
    folder = raw / "emojibase-data" / "package"
    groups: dict[str, str] = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))["groups"]
    entries = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    concepts: list[EmojiConcept] = []
    for entry in sorted(entries, key=lambda e: (e.get("order", 1 << 30), e["hexcode"])):
        group = groups.get(str(entry.get("group")), "component")  # regional indicators have no group
        key = make_code_point_key(entry["hexcode"])
        if group in LEFT_OUT_GROUPS or SKIN_TONES & set(key.split("-")):
            continue
        family = find_family(key, entry["label"])
        label, tags = entry["label"], entry.get("tags", [])
        concepts.append(EmojiConcept(key=key, family=family, label=label, tags=tags, group=group, split="train"))
    held_out = choose_held_out_families({concept["family"] for concept in concepts})
    for concept in concepts:
        if concept["family"] in held_out:
            concept["split"] = "heldout"
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
