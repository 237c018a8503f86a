"""The documents of a dataset as training draws them: opened once, kept with their codes, rendered at every draw.

    row → document → the same with codes, kept in the corpus's cache        once (`EncodedDocuments`)
    kept document → its words dropped or not → tokens                       at every draw (`RenderedDocuments`)

The key of a kept document holds all that decides it: its texts and roles, and what each of its media is known by
(`code_cache.py`). So a row or a file that was changed in place is a new document to the next run, and gets its own
codes. A draw of a kept document opens neither its row nor its media.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from unimodal.coder.features import FeatureMemory
from unimodal.corpus.code_cache import CodeCache, Refuse, hash_content, make_key, pack_arrays, unpack_arrays
from unimodal.corpus.record_cache import Place
from unimodal.data.datasets import ImportedDataset
from unimodal.data.order import make_generator
from unimodal.files import write_bytes_atomically
from unimodal.sequence.document import Document, Media, Part, Text, Turn, make_part
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.vocabulary import Vocabulary

FORMAT = "2"  # of a kept document
MOST_TOLD = 5  # of a file's documents that are named as too long
#: numbers of each document: whether its words are dropped is decided anew for each
DRAWS = 8
_PLACE = np.dtype([("known", "?"), ("file", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])


class EncodedDocuments:
    """The documents of a dataset by number, with codes in place of their media.

    Media that the model reads through features keep their files, except in answers, which the model is to write.
    streaming: encode the media of a document each time that it is asked for, and keep nothing.
    """

    def __init__(
        self, dataset: ImportedDataset, codes: CodeCache, vocabulary: Vocabulary, streaming: bool = False
    ) -> None:
        self.streaming = streaming
        self.dataset, self.codes, self.records = dataset, codes, codes.records
        self._features = {layout.modality for layout in vocabulary.layouts if layout.features is not None}
        self._places = np.zeros(len(dataset), _PLACE)  # where each kept document lies

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Document:
        """Document `number`. Raises ValueError if one of its media cannot be used."""
        if self.streaming:
            return self._encode_media(self.dataset[number])
        known, *place = self._places[number].tolist()
        record = self.records.read(Place(*place)) if known else None
        return self._make(number) if record is None else _unpack_document(record)

    def hash_document(self, number: int) -> int:
        """A 128-bit number that changes with all that a document holds: its texts, roles, and codes or files of media.

        Under `streaming`, media are known by their files. Raises ValueError if one of its media cannot be used.
        """
        if self.streaming:
            return int.from_bytes(make_key(str(number), self._describe(self.dataset[number]).hex()))
        words: list[str] = []
        for turn in self[number].turns:
            words.append(f"turn {turn.role} {'learnt' if turn.learn else 'not learnt'}")
            for part in turn.parts:
                if isinstance(part, Text):
                    words.append(f"text {part.text}")
                elif part.codes is None:
                    words.append(f"{part.modality} {hash_content(part)}")
                else:
                    values = part.codes.astype("<i8").tobytes().hex()
                    words.append(f"codes {part.modality} {part.grid} {part.codes.shape} {values}")
        return int.from_bytes(make_key(str(number), *words))

    def find_missing(self, number: int) -> list[Media] | None:
        """The media of a document that need codes; None if the document is kept already.

        Raises ValueError for a medium that is not there.
        """
        document = self.dataset[number]
        if self._find(number, self._describe(document)) is not None:
            return None
        return [
            part
            for part, is_read in self._list_parts(document)
            if not isinstance(part, Text) and part.codes is None and not is_read
        ]

    def _make(self, number: int) -> Document:
        """Document `number` from its row: found in the cache, or encoded and put there."""
        document = self.dataset[number]
        key = self._describe(document)
        record = self._find(number, key)
        if record is not None:
            return _unpack_document(record)
        encoded = self._encode_media(document)
        if self._describe(document) != key:
            raise ValueError("a medium of it was changed while it was read; leave it alone until it is encoded")
        self._places[number] = (True, *self.records.add(key, _pack_document(encoded)))
        return encoded

    def _encode_media(self, document: Document) -> Document:
        parts = iter([self._encode(part, is_read) for part, is_read in self._list_parts(document)])
        return Document(turn.replace_parts([next(parts) for _ in turn.parts]) for turn in document.turns)

    def _find(self, number: int, key: bytes) -> bytes | None:
        found = self.records.get(key)
        if found is None:
            return None
        self._places[number] = (True, *found[0])
        return found[1]

    def _describe(self, document: Document) -> bytes:
        """The key of a document; documents that become the same document with codes have the same key."""
        words = ["document", FORMAT]
        parts = self._list_parts(document)
        for turn in document.turns:
            words.append(f"turn {turn.role} {'learnt' if turn.learn else 'not learnt'}")
            for part, is_read in (next(parts) for _ in turn.parts):
                if isinstance(part, Text):
                    words.append(f"text {part.text}")
                elif part.codes is None:
                    words.append(f"{'read' if is_read else 'codes of'} {part.modality} {self.codes.describe(part)}")
                else:
                    words.append(f"codes {part.modality} {part.grid} {part.codes.shape} {part.codes.tobytes().hex()}")
        return make_key(*words)

    def _list_parts(self, document: Document) -> Iterator[tuple[Part, bool]]:
        """Each part, and whether the model reads it through features (media in the last answer are written instead)."""
        for number, turn in enumerate(document.turns):
            is_answer = turn.role == "assistant" and number == len(document.turns) - 1
            for part in turn.parts:
                yield part, not isinstance(part, Text) and part.modality in self._features and not is_answer

    def _encode(self, part: Part, is_read: bool) -> Part:
        """The part with codes; a part that is read through features gets a file that can be looked at again."""
        if isinstance(part, Text):
            return part
        if not is_read:
            return self.codes.encode_once(part) if self.streaming else self.codes.encode_part(part)
        self.codes.check(part)
        if self.streaming:
            return part
        if part.data is None:
            assert part.path is not None
            return make_part(part.modality, path=os.path.abspath(part.path))
        path = self.records.folder / "media" / hash_content(part).split()[-1]
        if not path.is_file():
            write_bytes_atomically(path, part.data)
        return make_part(part.modality, path=os.path.abspath(path))


class RenderedDocuments:
    """Documents by number, rendered when they are asked for; each is numbered `DRAWS` times.

    A document whose medium cannot be used raises ValueError under `on_bad_row="fail"`; under `"skip"` the next one
    takes its place, and it is named once on stderr. A document longer than `limit` (tokens, and what sets them) is
    named too, and given whole: the batches shorten it or leave it out, so that a draw does not depend on earlier draws.

    chosen: which documents, int64 [M]. features: sees media for a model that reads them through features.
    """

    def __init__(
        self,
        documents: EncodedDocuments,
        chosen: np.ndarray,
        template: Template,
        limit: tuple[int, str],
        dropout: float = 0.0,
        seed: int = 0,
        features: FeatureMemory | None = None,
        done_with_long: str = "left out",
    ) -> None:
        self.done_with_long = done_with_long
        self.documents, self.dataset, self.chosen, self.template = documents, documents.dataset, chosen, template
        self.limit, self.dropout, self.seed, self.features = limit, dropout, seed, features
        coder = documents.codes.coder
        self.system = coder.processor.system if coder is not None else ""
        self.bad: dict[int, str] = {}  # documents that cannot be used, and why
        self._too_long = np.zeros(len(documents), bool)  # only to name each once
        self._checked = np.zeros(len(documents), bool)  # whose codes are known to be the vocabulary's

    def __len__(self) -> int:
        return len(self.chosen) * DRAWS

    @property
    def num_too_long(self) -> int:
        """The number of documents that were too long, of those rendered so far."""
        return int(self._too_long.sum())

    def __getitem__(self, index: int) -> Rendered:
        item, draw = index % len(self.chosen), index // len(self.chosen)
        for step in range(len(self.chosen)):
            number = int(self.chosen[(item + step) % len(self.chosen)])
            document = self.open(number)
            if document is not None:
                return self._render(document, number, item, draw)
        last = list(self.bad.values())[-1]
        raise ValueError(f"no document of {self.dataset.cfg.path} can be used; the last one: {last}")

    def render_once(self) -> Iterator[Rendered]:
        """Renders each document that can be used, once and in order, those that are too long included."""
        for item, number in enumerate(map(int, self.chosen)):
            document = self.open(number)
            if document is None:
                continue
            yield self._render(document, number, item, draw=0)

    def hash_documents(self, rank: int = 0, num_ranks: int = 1) -> int:
        """The sum, modulo 2^128, of the hashes of those of this rank's documents that can be used."""
        total = 0
        for number in map(int, self.chosen[rank::num_ranks]):
            if self.documents.streaming or self.open(number) is not None:
                total += self.documents.hash_document(number)
        return total % 2**128

    def open(self, number: int) -> Document | None:
        """The document with codes; None if it is skipped."""
        if number in self.bad:
            return None
        try:
            document = self.documents[number]
            if not self._checked[number]:
                self._check_codes(document)
                self._checked[number] = True
            return document
        except ValueError as error:
            self.refuse(number, error)
            return None

    def _check_codes(self, document: Document) -> None:
        """Raises ValueError for codes that the vocabulary has not: those of a row that brings them itself."""
        for part in document.parts:
            if not isinstance(part, Text) and part.codes is not None:
                self.template.vocabulary.encode_span(part.modality, part.codes, part.grid)

    def refuse(self, number: int, error: ValueError) -> None:
        """Names a document that cannot be used on stderr, or raises ValueError, whichever its dataset asks for."""
        self.bad[number] = f"{self.dataset.describe_place(number)}: {error}"
        if self.dataset.cfg.on_bad_row == "fail":
            raise ValueError(f"{self.bad[number]}; mend it, or set on_bad_row to skip") from None
        print(f"skipped {self.bad[number]}", file=sys.stderr, flush=True)

    def _render(self, document: Document, number: int, item: int, draw: int) -> Rendered:
        """A document in tokens; `item` and `draw` decide whether its words are dropped."""
        makes_media = any(
            not isinstance(part, Text) for turn in document.turns if turn.role == "assistant" for part in turn.parts
        )
        document = self.template.begin_chat(document, self.system)
        if makes_media and make_generator(self.seed, "condition", item, draw).random() < self.dropout:
            document = document.drop_text()
        rendered = self.template.render(document)
        length = self.template.vocabulary.positions.count(rendered.ids)
        if length > self.limit[0]:
            self._tell_too_long(number, length)
            return rendered
        if not rendered.read:
            return rendered
        assert self.features is not None, "the vocabulary has features: the corpus needs the memory of its model"
        return self.features.fill_rendered(rendered)

    def _tell_too_long(self, number: int, num_tokens: int, limit: tuple[int, str] | None = None) -> None:
        """Names a document that is too long for `limit`, once, and only the first few of its file."""
        if self._too_long[number]:
            return
        self._too_long[number] = True
        count = self.num_too_long
        if count <= MOST_TOLD:
            more = "; further ones of this file are not named" if count == MOST_TOLD else ""
            where, (most, name) = self.dataset.describe_place(number), limit or self.limit
            print(
                f"{self.done_with_long} {where}: {num_tokens} tokens, but {name} is {most}{more}",
                file=sys.stderr,
                flush=True,
            )


def encode_documents(sets: Sequence[RenderedDocuments], rank: int, num_ranks: int) -> int:
    """Puts this rank's share of the documents into the cache, and returns how many media were encoded.

    Media are encoded in batches across documents and sets. A document that cannot be used is refused by its set.
    """
    if not sets:
        return 0
    missing = [array("q") for _ in sets]

    def find_missing() -> Iterator[tuple[list[Media], Refuse]]:
        place = -1
        for one, numbers in zip(sets, missing, strict=True):
            for number in map(int, one.chosen):
                place += 1
                if place % num_ranks != rank or number in one.bad:
                    continue
                try:
                    media = one.documents.find_missing(number)
                except ValueError as error:
                    one.refuse(number, error)
                    continue
                if media is not None:
                    numbers.append(number)
                    yield media, partial(one.refuse, number)

    num_encoded = sets[0].documents.codes.encode_all(find_missing())
    for one, numbers in zip(sets, missing, strict=True):
        for number in numbers:
            one.open(number)
    return num_encoded


def _pack_document(document: Document) -> bytes:
    """A document as bytes: media by their codes, or by their paths if they are read through features."""
    arrays: list[np.ndarray] = []

    def describe(part: Part) -> object:
        if isinstance(part, Text):
            return part.text
        if part.codes is None:
            return [part.modality, part.path]
        arrays.append(part.codes)
        return [part.modality, None, part.grid]

    turns = [[turn.role, [describe(part) for part in turn.parts], turn.learn] for turn in document.turns]
    return pack_arrays(turns, arrays)


def _unpack_document(record: bytes) -> Document:
    turns, arrays = unpack_arrays(record)
    codes = iter(arrays)

    def make(described: object) -> Part:
        if isinstance(described, str):
            return Text(described)
        assert isinstance(described, list)
        modality, path, *grid = described
        if path is not None:
            return make_part(modality, path=path)
        return make_part(modality, next(codes), grid=grid[0] and tuple(grid[0]))

    assert isinstance(turns, list)
    return Document(Turn(role, [make(part) for part in parts], learn) for role, parts, learn in turns)
