"""The tokenizers of a bench: folders of saved ones, or released weights by name.

An entry is `FOLDER`, `LABEL=FOLDER`, or `NAME=SOURCE` where NAME is a published system (`titok=yucornetto/tokenizer…`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path

from torch import nn

from unimodal.tokenizers import (
    LatentTokenizer,
    MediaTokenizer,
    find_family_class,
    is_tokenizer,
    load_tokenizer,
    pretrained,
    read_family,
)
from unimodal.tokenizers.pretrained.checkpoint import SOURCES
from unimodal.tokenizers.pretrained.published import PUBLISHED
from unimodal.tokenizers.registry import find_continued_medium


@dataclass(frozen=True)
class Entry:
    """A tokenizer that is compared, under a label of its own in the tables."""

    label: str
    tokenizer: MediaTokenizer

    @property
    def bits_per_position(self) -> float:
        """Bits of one position: the sum over its codes of log2 of their number of values, of blocks of one size."""
        return sum(log2(size) for size in self.tokenizer.codebook_sizes)

    def count_bits(self, positions: int, groups: int | None = None) -> float:
        """Bits of the first so many positions of an item of one size, block by block; of so many groups alone where
        these are given."""
        chosen = None if groups is None else self.tokenizer.find_groups(groups)
        bits, left = 0.0, positions
        for block, count in self.tokenizer.segments:
            taken = left if count is None else min(left, count)
            sizes = self.tokenizer.group_sizes(block)
            bits += taken * sum(log2(size) for group, size in enumerate(sizes) if chosen is None or group in chosen)
            left -= taken
        return bits

    def list_parts(self) -> set[str]:
        """Names of the classes of networks inside, by which a judge that is part of it is found."""
        return {type(module).__name__ for module in self.tokenizer.modules() if type(module) is not nn.Module}


def open_entries(named: Sequence[str]) -> list[Entry]:
    """The tokenizers that are named, with labels that differ. ValueError, in one line, for one that cannot be read, for
    tokenizers of different media and for none at all."""
    if not named:
        raise ValueError("--suite tokenizers compares tokenizers: name their folders with --tokenizers A B C")
    loaded = [_open(name) for name in named]
    media = {tokenizer.modality for _, tokenizer in loaded}
    if len(media) > 1:
        kinds = ", ".join(f"{label} ({tokenizer.modality})" for label, tokenizer in loaded)
        raise ValueError(f"one table holds tokenizers of one medium; got {kinds}: run them apart")
    times = Counter(label for label, _ in loaded)
    seen: Counter[str] = Counter()
    entries = []
    for label, tokenizer in loaded:
        seen[label] += 1
        entries.append(Entry(label if times[label] == 1 else f"{label}#{seen[label]}", tokenizer))
    return entries


def _open(named: str) -> tuple[str, MediaTokenizer]:
    label, separator, source = named.partition("=")
    if not separator:
        label, source = "", named
    folder = Path(source).expanduser()
    if not is_tokenizer(folder):
        if label in PUBLISHED or label in SOURCES:
            return label, pretrained.load(label, source)
        inside = sorted(path.name for path in folder.glob("*_tokenizer") if path.is_dir()) if folder.is_dir() else []
        advice = f"; name one of its {', '.join(inside)}" if inside else ""
        raise ValueError(f"{source} is not the folder of a tokenizer{advice}")
    if issubclass(find_family_class(read_family(folder)), LatentTokenizer):
        raise ValueError(f"{source} has continuous latents and no codes, so no bits to compare; leave it out")
    own = folder.resolve()
    tail = own.parent.name if own.name.endswith("_tokenizer") else own.name
    return label or tail, load_tokenizer(folder, _open_continued(own))


def _open_continued(folder: Path) -> MediaTokenizer | None:
    """The tokenizer that the one in a folder builds on, which lies beside it in a model's folder; None for one that
    stands alone. ValueError where it is not there."""
    medium = find_continued_medium(folder)
    if medium is None:
        return None
    beside = folder.parent / f"{medium}_tokenizer"
    if not is_tokenizer(beside):
        raise ValueError(f"{folder} continues the codes of {medium}: its {medium}_tokenizer belongs beside it")
    return load_tokenizer(beside)
