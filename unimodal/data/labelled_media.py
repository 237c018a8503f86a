"""Media with what each shows: files in one folder for each thing, as they are fitted to before a training.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from unimodal.data.media_items import FOLDER_GROUP, ItemOptions, open_media_items
from unimodal.data.media_views import Size, ViewOptions, read_view
from unimodal.media.registry import FileTarget


def read_labelled(folder: str, modality: str, target: FileTarget, size: Size | None) -> Iterator[tuple[Tensor, str]]:
    """(medium [C, …], label) of every file below `folder`; its label is the name of the folder that it lies in, so that
    `emoji/cat/noto.png` and `views/cat/noto.png` both show a cat. ValueError for a file that is not usable."""
    items = open_media_items(folder, modality, ItemOptions(group=FOLDER_GROUP))
    options = ViewOptions(upscale=True)
    for index in range(len(items)):
        for item in items.read(index):
            yield read_view(modality, item.source, target, size, options, None), Path(item.group).name
