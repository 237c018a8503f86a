"""The files of a bench, the same for every tokenizer: which are taken, and those that cannot be read.

Shapes: M pictures, S side of a picture.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from unimodal.data.media_items import FOLDER_GROUP, ItemOptions, MediaItem, open_media_items
from unimodal.data.media_views import ViewOptions, crop_to_size
from unimodal.media.access import load_medium


@dataclass
class BenchItems:
    """The chosen media of a folder or dataset. left_out: name → why, of those that could not be read."""

    modality: str
    items: list[MediaItem]
    sha256: str
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)


def choose_items(data: Path, modality: str, limit: int | None, seed: int, by_folder: bool = False) -> BenchItems:
    """At most `limit` media, drawn by `seed`, in the order of the data, each with the text of its row or of the .txt
    beside its file; their hash is of names and contents. by_folder: the group of a file is its folder. ValueError where
    there are none."""
    found = open_media_items(str(data), modality, ItemOptions(group=FOLDER_GROUP if by_folder else None))
    numbers = list(range(len(found)))
    if limit is not None and limit < len(numbers):
        numbers = sorted(random.Random(seed).sample(numbers, limit))
    chosen = BenchItems(modality, [], "")
    digest = hashlib.sha256()
    for number in numbers:
        try:
            items = [replace(item, text=read_text(item)) for item in found.read(number)]
            hashes = [hash_source(item.source) for item in items]
        except (ValueError, OSError) as error:
            chosen.left_out[found.describe_place(number)] = " ".join(str(error).split())
            continue
        chosen.items += items
        for item, content in zip(items, hashes, strict=True):
            digest.update(f"{item.name}\0{item.group}\0{content}\0".encode())
    return replace(chosen, sha256=digest.hexdigest())


def hash_source(source: str | bytes) -> str:
    """The SHA-256 of a medium's file or bytes. A file is read once, unless its size or time of change differ."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    stamp = Path(source).stat()
    return _hash_file(source, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _hash_file(path: str, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(item: MediaItem) -> str:
    """What is said in a sound or shown in a picture: by a dataset's row, or the .txt beside its file; "" where neither
    says."""
    if item.text or not isinstance(item.source, str):
        return item.text
    beside = Path(item.source).with_suffix(".txt")
    return beside.read_text("utf-8-sig", errors="replace").strip() if beside.is_file() else ""


def read_pictures(items: BenchItems, part: range, side: int) -> tuple[Tensor, list[MediaItem]]:
    """Pictures of a part of the items as float [M, 3, S, S] in [0, 1], the middle square of each, resized, and their
    items. Those that cannot be read are named in `left_out` and are not among them."""
    pictures, read = [], []
    for item in items.items[part.start : part.stop]:
        try:
            pictures.append(
                crop_to_size(load_medium("image", item.source), (side, side), ViewOptions(upscale=True), None)
            )
            read.append(item)
        except (ValueError, OSError) as error:
            items.left_out[item.name] = " ".join(str(error).split())
    return torch.stack(pictures) if pictures else torch.zeros(0, 3, side, side), read
