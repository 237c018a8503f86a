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
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.files import atomic_write_text
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
    """What every shard of a folder agrees on."""

    num_documents: int  # planned; skipped ones included
    documents_per_shard: int
    vocabulary_size: int
    tokenizer_sha256: dict[str, str]  # block name (and `text`) → sha256
    record: dict[str, Any]  # how the documents were made, as the caller tells it
    format: int = FORMAT_VERSION

    @property
    def num_shards(self) -> int:
        return -(-self.num_documents // self.documents_per_shard)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.vocabulary_size <= 1 << 16 else "<u4")

    def documents_of(self, shard: int) -> range:
        first = shard * self.documents_per_shard
        return range(first, min(first + self.documents_per_shard, self.num_documents))

    @property
    def fingerprint(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def write_token_shards(
    folder: str | Path,
    make: Callable[[int], Rendered | Skipped],
    num_documents: int,
    vocabulary_size: int,
    tokenizer_sha256: Mapping[str, str],
    record: Mapping[str, Any] | None = None,
    documents_per_shard: int = 4096,
    worker: int = 0,
    num_workers: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> TokenShards | None:
    """Writes the shards that are not there yet; `make(i)` renders document i and must depend on i alone.

    With several workers each writes shards worker, worker + num_workers, … . `on_shard(done, total)` reports progress.
    Returns the opened shards once all are there, None while other workers are still at theirs. A folder that holds
    shards of other documents or tokenizers is a ValueError: nothing is mixed.
    """
    if num_documents < 1 or documents_per_shard < 1:
        raise ValueError(f"num_documents {num_documents} and documents_per_shard {documents_per_shard} must be ≥ 1")
    if not 0 <= worker < num_workers:
        raise ValueError(f"worker is {worker}; give 0 to {num_workers - 1}")
    folder = Path(folder)
    manifest = Manifest(
        num_documents,
        documents_per_shard,
        vocabulary_size,
        dict(tokenizer_sha256),
        json.loads(json.dumps(record or {})),
    )
    prepare_shards(folder, manifest)
    for shard in range(worker, manifest.num_shards, num_workers):
        if not is_done(folder, manifest, shard):
            write_shard(folder, manifest, shard, map(make, manifest.documents_of(shard)))
        if on_shard is not None:
            on_shard(shard + 1, manifest.num_shards)
    if not missing_shards(folder, manifest):
        return TokenShards(folder)
    return None


def prepare_shards(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a new folder. Raises ValueError if the folder holds shards of another one."""
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        if found != manifest:
            raise ValueError(
                f"{folder} holds other shards: {_difference(found, manifest)}; delete it or choose another"
            )
    else:
        atomic_write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """The numbers of the shards that are not finished."""
    return [shard for shard in range(manifest.num_shards) if not is_done(folder, manifest, shard)]


def remove_partial_shards(folder: Path) -> None:
    """Removes what interrupted writers left behind; only for a folder whose shards are all finished."""
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


class TokenShards:
    """The documents of a folder, mapped into memory; `shards[i]` is document i.

    `tokenizer_hashes` maps block names (and `text`) to the sha256 at hand; another one in the manifest is a ValueError.
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
        self._ids: list[np.ndarray] = []
        self._flags: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        for shard in range(self.manifest.num_shards):
            self._open(shard)
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets])  # int64 [documents]
        self._ends = np.cumsum([len(offsets) - 1 for offsets in self._offsets])  # documents up to each shard's end

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def skipped(self) -> list[str]:
        """Why each planned document that is missing here could not be made."""
        return [reason for shard in range(self.manifest.num_shards) for reason in self._done(shard).get("skipped", [])]

    def count_tokens(self, modalities: Sequence[str]) -> dict[str, int]:
        """Tokens by modality, those of turn marks under text; `modalities` are those of the vocabulary, in order."""
        size = len(modalities)
        counts = [np.bincount(np.asarray(flags) & MODALITY_BITS, minlength=size) for flags in self._flags]
        return dict(zip(modalities, np.sum(counts, axis=0).tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def __getitem__(self, index: int) -> Rendered:
        """Document `index`: ids and labels int64 [N], modality uint8 [N]."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        begin, end = self._offsets[shard][row], self._offsets[shard][row + 1]
        ids = self._ids[shard][begin:end].astype(np.int64)
        flags = self._flags[shard][begin:end]
        labels = np.where(flags & LEARNT, ids, IGNORE)
        return Rendered(ids, labels, flags & MODALITY_BITS)

    def verify(self) -> None:
        """Reads every byte; ValueError for a shard whose sha256 is not the one in its marker."""
        for shard in range(self.manifest.num_shards):
            place = _place(self.folder, shard)
            for name, wanted in self._done(shard)["sha256"].items():
                if sha256((place / name).read_bytes()).hexdigest() != wanted:
                    raise ValueError(f"{place / name} is damaged; delete {place} and write the shards again")

    def _done(self, shard: int) -> dict[str, Any]:
        return json.loads((_place(self.folder, shard) / DONE).read_text("utf-8"))

    def _open(self, shard: int) -> None:
        place = _place(self.folder, shard)
        if not is_done(self.folder, self.manifest, shard):
            raise ValueError(f"{place} is missing or unfinished; write the shards again (finished ones are kept)")
        done = self._done(shard)
        offsets = np.fromfile(place / "offsets.bin", "<i8")
        ids = _mapped(place / "ids.bin", self.manifest.dtype)
        flags = _mapped(place / "flags.bin", np.dtype(np.uint8))
        if not (len(offsets) == done["num_documents"] + 1 and offsets[-1] == len(ids) == len(flags)):
            raise ValueError(f"{place} has files of the wrong size; delete it and write the shards again")
        self._ids.append(ids)
        self._flags.append(flags)
        self._offsets.append(offsets)


def _place(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}"


def is_done(folder: Path, manifest: Manifest, shard: int) -> bool:
    """True for a shard that is whole and of this manifest."""
    try:
        done = json.loads((_place(folder, shard) / DONE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(done, dict) and done.get("fingerprint") == manifest.fingerprint


def write_shard(folder: Path, manifest: Manifest, shard: int, documents: Iterable[Rendered | Skipped]) -> None:
    """Writes one shard of `manifest.documents_of(shard)`, whole or not at all."""
    parts: list[Rendered] = []
    skipped: list[str] = []
    for index, part in zip(manifest.documents_of(shard), documents, strict=True):
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
    done = {
        "fingerprint": manifest.fingerprint,
        "num_documents": len(parts),
        "num_tokens": len(ids),
        "sha256": {name: sha256(data).hexdigest() for name, data in contents.items()},
    }
    if skipped:
        done["skipped"] = skipped
    partial = folder / f".partial-{shard:05d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, data in contents.items():
            _write(partial / name, data)
        _write(partial / DONE, json.dumps(done, indent=1).encode() + b"\n")
        shutil.rmtree(_place(folder, shard), ignore_errors=True)  # unfinished or damaged
        os.replace(partial, _place(folder, shard))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A file mapped into memory; an empty one cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def read_manifest(folder: Path) -> Manifest:
    """ValueError for a folder that holds no token shards."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text("utf-8"))
        manifest = Manifest(**data)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {folder} holds no token shards") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a manifest of token shards ({error}); write the shards again") from None
    if manifest.format != FORMAT_VERSION:
        raise ValueError(f"{path} has format {manifest.format}, this version reads {FORMAT_VERSION}; write it again")
    return manifest


def _difference(found: Manifest, wanted: Manifest) -> str:
    name = next(name for name in asdict(found) if getattr(found, name) != getattr(wanted, name))
    return f"{name} is {str(getattr(found, name))[:80]}, not {str(getattr(wanted, name))[:80]}"
