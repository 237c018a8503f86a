"""Token shards: rendered documents on disk, written once, mapped into memory by every trainer.

    folder/
      manifest.json          what the tokens mean: vocabulary size, tokenizer hashes, and the caller's own record
      shard-00000/
        ids.bin              uint16 or uint32 [T], all documents one after the other
        flags.bin            uint8 [T]: the modality in the low bits, 128 where the token is learnt
        offsets.bin          int64 [D + 1]: where each document begins
        done.json            counts and sha256; written last

Shard k holds documents k·S … (k+1)·S - 1 of a numbered plan, so shards can be made by any number of workers in any
order and come out byte for byte the same. A shard is written to a folder of another name, flushed, and renamed: one
with its marker is whole, one without is made again. Opening checks the sizes, and the tokenizer hashes if given.

A planned document that cannot be made is `Skipped`: its shard has one less, and its marker says which and why.

Legend: T tokens of a shard, D documents of a shard, S documents per shard, N tokens of a document.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from unimodal.data.mapped_files import MappedFiles
from unimodal.files import read_json_as, write_text_atomically
from unimodal.sequence.templates.own import IGNORE, Rendered

FORMAT_VERSION = 1
LEARNT = 128  # flag of a token that has a label
MODALITY_BITS = 127
DONE = "done.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Skipped:
    """Stands in for a document that cannot be made."""

    reason: str


@dataclass(frozen=True)
class Manifest:
    """What all shards of a folder have in common."""

    num_documents: int  # planned; skipped ones included
    documents_per_shard: int
    vocabulary_size: int
    tokenizer_sha256: dict[str, str]  # block name (and `text`) → sha256
    record: dict[str, object]  # how the documents were made, as the caller tells it; JSON
    format: int = FORMAT_VERSION

    @property
    def num_shards(self) -> int:
        return -(-self.num_documents // self.documents_per_shard)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype("<u2" if self.vocabulary_size <= 1 << 16 else "<u4")

    def list_documents(self, shard: int) -> range:
        """The numbers of the planned documents of a shard."""
        first = shard * self.documents_per_shard
        return range(first, min(first + self.documents_per_shard, self.num_documents))

    @property
    def fingerprint(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DoneMarker:
    """What `done.json` says of a shard that is whole."""

    fingerprint: str  # of the manifest
    num_documents: int
    num_tokens: int
    sha256: dict[str, str]  # file → its hash
    skipped: list[str] = field(default_factory=list)  # why each planned document that is missing could not be made
    media: str = ""  # fingerprint of the media files that the documents were made of


def write_token_shards(
    folder: str | Path,
    make: Callable[[int], Rendered | Skipped],
    num_documents: int,
    vocabulary_size: int,
    tokenizer_sha256: Mapping[str, str],
    record: Mapping[str, object] | None = None,
    documents_per_shard: int = 4096,
) -> TokenShards:
    """Writes the shards that are missing and opens all. `make(i)` renders document i and may depend on i alone.

    Raises ValueError for a folder that holds shards of other documents or tokenizers: nothing is mixed.
    """
    if num_documents < 1 or documents_per_shard < 1:
        raise ValueError(f"num_documents {num_documents} and documents_per_shard {documents_per_shard} must be ≥ 1")
    folder = Path(folder)
    kept = json.loads(json.dumps(record or {}))
    manifest = Manifest(num_documents, documents_per_shard, vocabulary_size, dict(tokenizer_sha256), kept)
    prepare_shards(folder, manifest)
    for shard in range(manifest.num_shards):
        if not is_done(folder, manifest, shard):
            write_shard(folder, manifest, shard, map(make, manifest.list_documents(shard)))
    return TokenShards(folder)


def prepare_shards(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a new folder. Raises ValueError if the folder holds shards of another one."""
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        if found != manifest:
            raise ValueError(
                f"{folder} holds other shards: {_describe_difference(found, manifest)}; delete it or choose another"
            )
    else:
        write_text_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def remove_partial_shards(folder: Path) -> None:
    """Removes what interrupted writers left behind; only for a folder whose shards are all finished."""
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


class TokenShards:
    """The documents of a folder, mapped into memory; `shards[i]` is document i.

    tokenizer_hashes: block name (or `text`) → sha256 of the tokenizer at hand; ValueError if the manifest has another.
    """

    def __init__(self, folder: str | Path, tokenizer_hashes: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for name, wanted in (tokenizer_hashes or {}).items():
            found = self.manifest.tokenizer_sha256.get(name)
            if found is not None and found != wanted:
                raise ValueError(
                    f"{self.folder} holds codes of {name} tokenizer {found} but {wanted} is here; encode the data again"
                )
        self._files = MappedFiles()
        self._offsets = [self._open(shard) for shard in range(self.manifest.num_shards)]
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets])  # int64 [documents]
        self._ends = np.cumsum([len(offsets) - 1 for offsets in self._offsets])  # documents up to each shard's end

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def skipped(self) -> list[str]:
        """Why each planned document that is missing could not be made."""
        return [reason for shard in range(self.manifest.num_shards) for reason in self._get_marker(shard).skipped]

    def count_tokens(self, modalities: Sequence[str]) -> dict[str, int]:
        """Counts tokens by modality; marks of turns count as text. modalities: the vocabulary's, in order."""
        counts = np.zeros(len(modalities), np.int64)
        for shard in range(self.manifest.num_shards):
            flags = np.fromfile(_name_shard(self.folder, shard) / "flags.bin", np.uint8)
            counts += np.bincount(flags & MODALITY_BITS, minlength=len(modalities))
        return dict(zip(modalities, counts.tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def __getitem__(self, index: int) -> Rendered:
        """Document `index`: ids and labels int64 [N], modality uint8 [N]."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        begin, end = map(int, self._offsets[shard][row : row + 2])
        ids = self._read(shard, "ids.bin", self.manifest.dtype, begin, end).astype(np.int64)
        flags = self._read(shard, "flags.bin", np.dtype(np.uint8), begin, end)
        labels = np.where(flags & LEARNT, ids, IGNORE)
        return Rendered(ids, labels, flags & MODALITY_BITS)

    def compute_fingerprint(self) -> str:
        """A hash that changes with the tokens of any document; it takes the hashes in the markers and reads no
        tokens.
        """
        hashes = [sorted(self._get_marker(shard).sha256.items()) for shard in range(self.manifest.num_shards)]
        return sha256(json.dumps(hashes).encode()).hexdigest()

    def verify(self) -> None:
        """Reads every byte; ValueError for a shard whose sha256 is not the one in its marker."""
        for shard in range(self.manifest.num_shards):
            place = _name_shard(self.folder, shard)
            for name, wanted in self._get_marker(shard).sha256.items():
                if sha256((place / name).read_bytes()).hexdigest() != wanted:
                    raise ValueError(f"{place / name} is damaged; delete {place} and write the shards again")

    def _get_marker(self, shard: int) -> DoneMarker:
        marker = _read_marker(self.folder, shard)
        if marker is None or marker.fingerprint != self.manifest.fingerprint:
            place = _name_shard(self.folder, shard)
            raise ValueError(f"{place} is missing or unfinished; write the shards again (finished ones are kept)")
        return marker

    def _open(self, shard: int) -> np.ndarray:
        """Where each document of a shard begins and the last one ends, int64 [D + 1]. ValueError for a damaged
        shard.
        """
        place, marker = _name_shard(self.folder, shard), self._get_marker(shard)
        offsets = np.fromfile(place / "offsets.bin", "<i8")
        sizes = [(place / name).stat().st_size // width for name, width in (("ids.bin", self.manifest.dtype.itemsize),
                                                                           ("flags.bin", 1))]  # fmt: skip
        if len(offsets) != marker.num_documents + 1 or any(size != offsets[-1] for size in sizes):
            raise ValueError(f"{place} has files of the wrong size; delete it and write the shards again")
        return offsets

    def _read(self, shard: int, name: str, dtype: np.dtype[np.unsignedinteger], begin: int, end: int) -> np.ndarray:
        """Elements begin … end - 1 of a file of a shard."""
        path, width = _name_shard(self.folder, shard) / name, dtype.itemsize
        content = self._files.read(path, begin * width, (end - begin) * width)
        if content is None:
            raise ValueError(f"{path} was cut short or taken away; write the shards again")
        return np.frombuffer(content, dtype)


def _name_shard(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}"


def _read_marker(folder: Path, shard: int) -> DoneMarker | None:
    """The marker of a shard; None if it is missing or cannot be read."""
    try:
        return read_json_as(DoneMarker, _name_shard(folder, shard) / DONE)
    except ValueError:
        return None


def is_done(folder: Path, manifest: Manifest, shard: int, media: str = "") -> bool:
    """Whether a shard is whole, of this manifest, and made of media files with this fingerprint."""
    marker = _read_marker(folder, shard)
    return marker is not None and (marker.fingerprint, marker.media) == (manifest.fingerprint, media)


def write_shard(
    folder: Path, manifest: Manifest, shard: int, documents: Iterable[Rendered | Skipped], media: str = ""
) -> None:
    """Writes one shard of the documents `manifest.list_documents(shard)`, whole or not at all.

    media: fingerprint of the media files that they are made of. Raises ValueError for an empty document and for ids
    outside the vocabulary.
    """
    parts: list[Rendered] = []
    skipped: list[str] = []
    for index, part in zip(manifest.list_documents(shard), documents, strict=True):
        if isinstance(part, Skipped):
            skipped.append(part.reason)
            continue
        if len(part) == 0 or part.ids.min() < 0 or part.ids.max() >= manifest.vocabulary_size:
            raise ValueError(f"document {index} is empty or has ids outside 0 … {manifest.vocabulary_size - 1}")
        parts.append(part)
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    nothing = np.zeros(0, np.int64)
    ids = np.concatenate([nothing, *(part.ids for part in parts)])
    labels = np.concatenate([nothing, *(part.labels for part in parts)])
    flags = np.concatenate([nothing, *(part.modality for part in parts)]).astype(np.uint8)
    assert ((labels == ids) | (labels == IGNORE)).all() and flags.max(initial=0) < LEARNT
    contents = {
        "ids.bin": ids.astype(manifest.dtype).tobytes(),
        "flags.bin": (flags | np.where(labels == IGNORE, 0, LEARNT).astype(np.uint8)).tobytes(),
        "offsets.bin": offsets.astype("<i8").tobytes(),
    }
    hashes = {name: sha256(data).hexdigest() for name, data in contents.items()}
    marker = DoneMarker(manifest.fingerprint, len(parts), len(ids), hashes, skipped, media)
    partial = folder / f".partial-{shard:05d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, data in contents.items():
            _write(partial / name, data)
        _write(partial / DONE, json.dumps(asdict(marker), indent=1).encode() + b"\n")
        shutil.rmtree(_name_shard(folder, shard), ignore_errors=True)  # unfinished or damaged
        os.replace(partial, _name_shard(folder, shard))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError for a folder without token shards, and for a manifest of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is missing; {folder} holds no token shards")
    manifest = read_json_as(Manifest, path, "it is not a manifest of token shards; write the shards again")
    if manifest.format != FORMAT_VERSION:
        raise ValueError(f"{path} has format {manifest.format}, this version reads {FORMAT_VERSION}; write it again")
    return manifest


def _describe_difference(found: Manifest, wanted: Manifest) -> str:
    name = next(name for name in asdict(found) if getattr(found, name) != getattr(wanted, name))
    return f"{name} is {str(getattr(found, name))[:80]}, not {str(getattr(wanted, name))[:80]}"
