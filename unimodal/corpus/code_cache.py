"""Media → the same with codes, each medium encoded once: codes of one run serve the next, and another recipe too.

A file is known by its path, its size and the time of its last change, bytes by their hash. Only an unknown file is
opened: its content is hashed, and encoded unless a copy of it was encoded before. The key of the codes also holds the
hash of the tokenizer and the way in which pictures are fitted to it.

Shapes: N codes, G groups.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.corpus.record_cache import KEY_BYTES, RecordCache
from unimodal.files import describe_error, quote_path
from unimodal.sequence.document import Media, make_part
from unimodal.vocabulary import Vocabulary

ENCODE_BATCH = 32
Refuse = Callable[[ValueError], None]


class CodeCache:
    """The codes of media in `records`, made by the tokenizers of `coder`; a coder of None means text only.

    vocabulary: the model's, which says of which media the grid is kept beside the codes.
    """

    def __init__(self, coder: MediaCoder | None, records: RecordCache, vocabulary: Vocabulary) -> None:
        self.coder, self.records = coder, records
        self._grids = {layout.modality for layout in vocabulary.layouts if layout.grid is not None}

    def encode_part(self, part: Media) -> Media:
        """The part with codes, from the cache or made now. Raises ValueError for a medium that cannot be used."""
        if part.codes is not None:
            return part
        found = self._find(part)
        if found is None:
            waiting: dict[str, _Waiting] = {}
            self._take(part, waiting)
            for modality, batch in waiting.items():
                if batch.media:
                    self._encode(modality, batch)
            found = self._find(part)
        assert found is not None
        return found

    def encode_once(self, part: Media) -> Media:
        """The part with codes, made now and not kept. Raises ValueError for a medium that cannot be used."""
        if part.codes is not None:
            return part
        coder = self._need_coder(part)
        [(codes, grid)] = coder.encode_with_grids(part.modality, [coder.read_part(part)])
        own_grid = grid is not None and part.modality in self._grids
        return make_part(part.modality, codes, grid=grid[1:] if own_grid and grid is not None else None)

    def encode_all(self, parts: Iterable[tuple[Sequence[Media], Refuse]]) -> int:
        """Encodes, in batches, the media that have no codes yet; returns how many these were.

        parts: the media of each document, and a function that is called with the error if one of them cannot be used.
        """
        waiting: dict[str, _Waiting] = {}
        done = 0
        for media, refuse in parts:
            for part in media:
                try:
                    if self._find(part) is None:
                        self._take(part, waiting)
                except ValueError as error:
                    refuse(error)
                    break
                if part.modality in waiting and len(waiting[part.modality].media) == ENCODE_BATCH:
                    done += self._encode(part.modality, waiting.pop(part.modality))
        return done + sum(self._encode(modality, batch) for modality, batch in waiting.items() if batch.media)

    def describe(self, part: Media) -> str:
        """All that decides the codes of a part without any: which medium it is, and what turns it into codes."""
        tokenizer = self._describe_tokenizer(part.modality, self._need_coder(part))
        return f"{identify(part)}{_describe_time(part)} {tokenizer}"

    def check(self, part: Media) -> None:
        """Raises ValueError for a medium that the model reads through features and that cannot be used."""
        self._need_coder(part).encode_part(part)

    def _need_coder(self, part: Media) -> MediaCoder:
        if self.coder is None:
            raise ValueError(f"the data hold {part.name} ({part.modality}) but no tokenizers are given; set `media`")
        self.coder.vocabulary.get_layout(part.modality)
        return self.coder

    def _describe_tokenizer(self, modality: str, coder: MediaCoder) -> str:
        own_shape = " in its own shape" if modality in self._grids else ""  # the same network may be set to one size
        return f"{modality} {coder.sha256[modality]} {coder.processor.image_fit}{own_shape}"

    def _find(self, part: Media) -> Media | None:
        found = self.records.get(make_key("codes of", self.describe(part)))
        if found is None:
            return None
        _, (codes, *grid) = unpack_arrays(found[1])
        return make_part(part.modality, codes, grid=(int(grid[0][0]), int(grid[0][1])) if grid else None)

    def _take(self, part: Media, waiting: dict[str, _Waiting]) -> None:
        """Puts a medium into its batch, unless a copy of it is encoded already or waits in the batch."""
        coder = self._need_coder(part)
        known_as = self.describe(part)
        batch = waiting.setdefault(part.modality, _Waiting())
        if any(known_as in names for names in batch.names.values()):
            return
        content = f"{hash_content(part)}{_describe_time(part)} {self._describe_tokenizer(part.modality, coder)}"
        same = self.records.get(make_key("codes of", content))
        if same is not None:
            self.records.add(make_key("codes of", known_as), same[1])
            return
        if content not in batch.media:
            batch.media[content] = coder.read_part(part)
        if self.describe(part) != known_as:
            raise ValueError(f"{part.name} was changed while it was read; leave it alone until it is encoded")
        batch.names.setdefault(content, {content: None})[known_as] = None

    def _encode(self, modality: str, batch: _Waiting) -> int:
        assert self.coder is not None
        found = self.coder.encode_with_grids(modality, list(batch.media.values()))
        for names, (codes, grid) in zip(batch.names.values(), found, strict=True):
            own_grid = [np.array(grid[1:])] if grid is not None and modality in self._grids else []
            record = pack_arrays(None, [codes, *own_grid])
            for name in names:
                self.records.add(make_key("codes of", name), record)
        return len(batch.media)


@dataclass
class _Waiting:
    """Media of one modality that are encoded together: content → tensor, and content → all names that it is known
    by.
    """

    media: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, dict[str, None]] = field(default_factory=dict)


def _describe_time(part: Media) -> str:
    """Which part of a file is encoded; '' for the whole file."""
    return f" from {part.start_s} for {part.seconds}" if part.start_s > 0 or part.seconds is not None else ""


def identify(part: Media) -> str:
    """What a medium without codes is known by. Opens no file. Raises ValueError for a file that is not there."""
    if part.data is not None:
        return hash_content(part)
    assert part.path is not None
    try:
        found = os.stat(part.path)
    except OSError as error:
        raise ValueError(f"{quote_path(part.path)} cannot be read: {describe_error(error)}") from None
    return f"file {os.path.abspath(part.path)} {found.st_size} {found.st_mtime_ns}"


def hash_content(part: Media) -> str:
    """The hash of a file's content or of a part's bytes. Raises ValueError for a file that cannot be read."""
    if part.data is not None:
        return f"content {hashlib.sha256(part.data).hexdigest()}"
    assert part.path is not None
    try:
        with Path(part.path).open("rb") as stream:
            return f"content {hashlib.file_digest(stream, 'sha256').hexdigest()}"
    except OSError as error:
        raise ValueError(f"{quote_path(part.path)} cannot be read: {describe_error(error)}") from None


def make_key(*words: str) -> bytes:
    """The key of the record that these words describe."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest()[:KEY_BYTES]


def pack_arrays(header: object, arrays: Sequence[np.ndarray]) -> bytes:
    """Packs JSON and arrays of integers into bytes, as int32 if all values fit; `unpack_arrays` is the inverse."""
    stored = [
        array.astype("<i4" if array.size == 0 or -(2**31) <= array.min() <= array.max() < 2**31 else "<i8")
        for array in arrays
    ]
    described = [header, [[array.dtype.str, list(array.shape)] for array in stored]]
    text = json.dumps(described, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in stored)])


def unpack_arrays(record: bytes) -> tuple[object, list[np.ndarray]]:
    """The header and the arrays that `pack_arrays` packed, as int32 or int64."""
    end = 4 + int.from_bytes(record[:4], "little")
    header, described = json.loads(record[4:end].decode("utf-8", "surrogatepass"))
    arrays = []
    for dtype, shape in described:
        array = np.frombuffer(record, dtype, int(np.prod(shape)), offset=end).reshape(shape)
        arrays.append(array)
        end += array.nbytes
    return header, arrays
