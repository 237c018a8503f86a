"""A folder of media files as rows: its folders are classes, or each file has its text beside it.

photos/cat/1.png  photos/dog/2.png      {"image": "cat/1.png", "label": "cat"}      ImageFolder, AudioFolder
photos/1.png  photos/1.txt              {"image": "1.png", "text": "a cat"}
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

from unimodal.data.importers.columns import find_modality
from unimodal.data.rows import Row
from unimodal.files import quote_path


class FolderRows:
    """The media files below a folder, sorted by name. `ignored` counts files of other kinds by suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ignored: Counter[str] = Counter()
        self._names: list[str] = []
        texts = set()
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(name for name in files if not name.startswith(".")):
                name = os.path.relpath(os.path.join(place, file), folder)
                if find_modality(name) is not None:
                    self._names.append(name)
                elif name.endswith(".txt"):
                    texts.add(name)
                else:
                    self.ignored[os.path.splitext(name)[1].removeprefix(".") or name] += 1
        self._texts = texts & {f"{os.path.splitext(name)[0]}.txt" for name in self._names}
        if len(texts) > len(self._texts):
            self.ignored["txt"] = len(texts) - len(self._texts)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Row:
        name = self._names[index]
        medium = find_modality(name)
        assert medium is not None
        text, label = f"{os.path.splitext(name)[0]}.txt", os.path.basename(os.path.dirname(name))
        if text in self._texts:
            try:
                return {medium: name, "text": (self.folder / text).read_text("utf-8-sig").strip()}
            except UnicodeDecodeError:
                raise ValueError(f"{quote_path(text)} is not UTF-8 text") from None
        if not label:
            raise ValueError(f"there is no {quote_path(text)} with its text, and it lies in no folder of a class")
        return {medium: name, "label": label}

    def count_media(self) -> Counter[str]:
        """How many files there are of each medium."""
        return Counter(medium for medium in map(find_modality, self._names) if medium is not None)

    def describe_place(self, index: int) -> str:
        return quote_path(self.folder / self._names[index])

    def compute_sha256(self) -> str:
        digest = hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape"))
        for name in sorted(self._texts):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()
