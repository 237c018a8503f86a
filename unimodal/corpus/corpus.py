"""Datasets → batches for tuning: documents opened, their media encoded once, rendered, packed, dealt to the ranks.

A dataset is a file or folder of any format that `unimodal.data.datasets` reads, or a folder of token shards. Codes are
kept in a folder of their own, one file for each medium, named by the hash of its bytes and of its tokenizer: a second
run, or another recipe on the same pictures, encodes nothing again.

Shapes: N tokens of a document.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from unimodal.coder.features import FeatureMemory
from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config
from unimodal.data.datasets import DatasetConfig, ImportedDataset, open_dataset
from unimodal.data.mixture import Batches, DocumentSet, Mixture, shuffled
from unimodal.data.sources import generator
from unimodal.data.token_shards import MANIFEST, TokenShards
from unimodal.data.tokenized import vocabulary_hashes
from unimodal.files import atomic_write_bytes
from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text, Turn
from unimodal.sequence.packing import PackedBatch, pack, stack
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.vocabulary import Vocabulary

ENCODE_BATCH = 32
TOLD = 5  # documents of a file that are told to be too long
DRAWS = 8  # times that a document is numbered, so that dropping its text is decided anew from one to the next


class CorpusConfig(Config):
    """What to learn from and how it is arranged."""

    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    validation: tuple[DatasetConfig, ...] = ()
    validation_share: float = Field(
        default=0.0, ge=0, lt=1
    )  # of the documents of `datasets`, where `validation` is empty
    validation_batches: int = Field(default=8, ge=1)  # at most
    codes: Path = Path("data/cache/codes")
    length: int = Field(default=1024, ge=2)  # tokens of a row: the longest document
    tokens_per_batch: int = Field(default=1024, ge=2)  # of one rank, in one of the batches of a step
    batches_per_window: int = Field(default=16, ge=1)
    #: share of the documents that answer with media whose words are left out, for guidance (arXiv 2207.12598)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0


class CodeCache:
    """Media parts → the same with codes. `folder=None` keeps them in memory only.

    vocabulary: that of the model. Media that it reads through features get codes only where it is to write them.
    """

    def __init__(self, coder: MediaCoder | None, folder: Path | None, vocabulary: Vocabulary | None = None) -> None:
        self.coder, self.folder = coder, folder
        layouts = vocabulary.layouts if vocabulary is not None else ()
        self._features = {layout.modality for layout in layouts if layout.features is not None}
        self._grids = {layout.modality for layout in layouts if layout.grid is not None}
        self._held: dict[str, np.ndarray] = {}

    def document(self, document: Document) -> Document:
        """The document with codes in every media part. ValueError for a file that cannot be used."""
        answer = self._answer(document)
        return Document(
            Turn(turn.role, [(self._read if self._seen(p, turn, answer) else self._part)(p) for p in turn.parts])
            for turn in document.turns
        )

    @staticmethod
    def _answer(document: Document) -> Turn | None:
        """The turn that is learnt to be written, media and all."""
        return document.turns[-1] if document.turns and document.turns[-1].role == "assistant" else None

    def _seen(self, part: Part, turn: Turn, answer: Turn | None) -> bool:
        """Whether a part is read through features, and needs no codes."""
        return not isinstance(part, Text) and part.modality in self._features and turn is not answer

    def _read(self, part: Part) -> Part:
        if not isinstance(part, Text):
            self._need(part).encode_part(part)  # it can be used
        return part

    def fill(self, documents: Iterable[tuple[Document, Callable[[ValueError], None]]]) -> int:
        """Encodes in batches what is not encoded yet; returns how many media that were.

        Each document comes with what to call for a medium of it that cannot be used.
        """
        waiting: dict[str, dict[str, Tensor]] = {}
        done = 0
        for document, refuse in documents:
            answer = self._answer(document)
            for turn, part in ((one, part) for one in document.turns for part in one.parts):
                if isinstance(part, Text) or part.codes is not None or self._seen(part, turn, answer):
                    continue
                try:
                    key = self._key(part)
                    batch = waiting.setdefault(part.modality, {})
                    if key in batch or self._find(key) is not None:
                        continue
                    batch[key] = self._need(part).read_part(part)
                except ValueError as error:
                    refuse(error)
                    break
                if len(batch) == ENCODE_BATCH:
                    done += self._encode(part.modality, waiting.pop(part.modality))
        return done + sum(self._encode(modality, batch) for modality, batch in waiting.items() if batch)

    def _part(self, part: Part) -> Part:
        if isinstance(part, Text) or part.codes is not None:
            return part
        key = self._key(part)
        codes = self._find(key)
        if codes is None:
            self._encode(part.modality, {key: self._need(part).read_part(part)})
            codes = self._find(key)
        if part.modality in self._grids:  # held as [h, w]
            assert codes is not None
            return MEDIA_PARTS[part.modality](codes=codes.reshape(-1), grid=codes.shape)
        return MEDIA_PARTS[part.modality](codes=codes)

    def _key(self, part: Media) -> str:
        coder = self._need(part)
        source = part.source
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        digest = hashlib.sha256(content)
        digest.update(f"{part.modality} {coder.sha256[part.modality]} {coder.processor.image_fit}".encode())
        if part.modality in self._grids:  # the same network may also be set to one size
            digest.update(b" in its own shape")
        return digest.hexdigest()[:40]

    def _find(self, key: str) -> np.ndarray | None:
        if key not in self._held and self.folder is not None:
            path = self.folder / key[:2] / f"{key}.npy"
            if path.is_file():
                self._held[key] = np.load(path)
        return self._held.get(key)

    def _encode(self, modality: str, media: dict[str, Tensor]) -> int:
        assert self.coder is not None
        found = self.coder.encode_with_grids(modality, list(media.values()))
        for key, (codes, grid) in zip(media, found, strict=True):
            shaped = codes.reshape(grid[1:]) if grid is not None and modality in self._grids else codes
            self._held[key] = shaped.astype(np.int32)
            if self.folder is not None:
                data = io.BytesIO()
                np.save(data, self._held[key])
                atomic_write_bytes(self.folder / key[:2] / f"{key}.npy", data.getvalue())
        return len(media)

    def _need(self, part: Media) -> MediaCoder:
        if self.coder is None:
            raise ValueError(f"the data hold {part.name} ({part.modality}) but no tokenizers are given; set `media`")
        self.coder.vocabulary.layout(part.modality)
        return self.coder


class RenderedDocuments:
    """Documents by number, encoded and rendered when they are asked for; each stands here `DRAWS` times.

    A document whose medium cannot be used raises ValueError under `on_bad_row="fail"`; under `"skip"` the next one
    stands in for it, and it is told once. One of more than `limit` tokens (a number and what sets it) is told too;
    it is left to the batches to leave it out, since what is drawn must not depend on what was drawn before.
    """

    def __init__(
        self,
        dataset: ImportedDataset,
        chosen: Sequence[int],
        cache: CodeCache,
        template: Template,
        limit: tuple[int, str],
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.dataset, self.chosen, self.cache, self.template = dataset, chosen, cache, template
        self.limit, self.dropout, self.seed = limit, dropout, seed
        self.too_long: set[int] = set()  # only to tell of each once
        self.features: FeatureMemory | None = None
        self.system = cache.coder.processor.system if cache.coder is not None else ""
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.chosen) * DRAWS

    def documents(self) -> Iterator[tuple[Document, Callable[[ValueError], None]]]:
        """Every document, and what to call if it cannot be used."""
        return ((self.dataset[number], partial(self._refuse, number)) for number in self.chosen)

    def __getitem__(self, index: int) -> Rendered:
        item, draw = index % len(self.chosen), index // len(self.chosen)
        for step in range(len(self.chosen)):
            number = self.chosen[(item + step) % len(self.chosen)]
            document = self._encoded(number)
            if document is not None:
                return self._rendered(document, number, item, draw)
        last = list(self.bad.values())[-1]
        raise ValueError(f"no document of {self.dataset.cfg.path} can be used; the last one: {last}")

    def once(self) -> Iterator[Rendered]:
        """Every document that can be used and is not too long, in its order."""
        for item, number in enumerate(self.chosen):
            document = self._encoded(number)
            if document is None:
                continue
            rendered = self._rendered(document, number, item, draw=0)
            if len(rendered) <= self.limit[0]:
                yield rendered

    def _rendered(self, document: Document, number: int, item: int, draw: int) -> Rendered:
        """A document in tokens, its words dropped or not as its place says."""
        makes_media = any(
            not isinstance(part, Text) for turn in document.turns if turn.role == "assistant" for part in turn.parts
        )
        document = self.template.begin_chat(document, self.system)
        if makes_media and generator(self.seed, "condition", item, draw).random() < self.dropout:
            document = document.drop_text()
        rendered = self.template.render(document)
        if len(rendered) > self.limit[0]:
            self._tell(number, len(rendered))
            return rendered
        if not rendered.read:
            return rendered
        assert self.features is not None, "Corpus.read_with comes first"
        return self.features.fill_rendered(rendered)

    def _tell(self, number: int, num_tokens: int) -> None:
        """That a document is too long: once, and of the first few of its file."""
        if number in self.too_long:
            return
        self.too_long.add(number)
        if len(self.too_long) <= TOLD:
            more = "; further ones of this file are left out in silence" if len(self.too_long) == TOLD else ""
            where, (most, limit) = self.dataset.where(number), self.limit
            print(f"left out {where}: {num_tokens} tokens, but {limit} is {most}{more}", file=sys.stderr, flush=True)

    def _encoded(self, number: int) -> Document | None:
        """The document with codes, or None for one that is skipped."""
        if number in self.bad:
            return None
        try:
            return self.cache.document(self.dataset[number])
        except ValueError as error:
            self._refuse(number, error)
            return None

    def _refuse(self, number: int, error: ValueError) -> None:
        """A document that cannot be used: told, or fatal, as its dataset says."""
        self.bad[number] = f"{self.dataset.where(number)}: {error}"
        if self.dataset.cfg.on_bad_row == "fail":
            raise ValueError(f"{self.bad[number]}; mend it, or set on_bad_row to skip") from None
        print(f"skipped {self.bad[number]}", file=sys.stderr, flush=True)


class Corpus:
    """The training and validation documents of a configuration. Opening reports every row that is left out."""

    def __init__(
        self,
        cfg: CorpusConfig,
        template: Template,
        coder: MediaCoder | None,
        keep_codes: bool = True,
        max_positions: int | None = None,
    ) -> None:
        """max_positions: of the model that is to learn; a row may be longer, a document in it may not."""
        self.cfg, self.template = cfg, template
        self.limit = (cfg.length, "corpus.length")
        if max_positions is not None and max_positions < cfg.length:
            self.limit = (max_positions, "the model's number of positions")
        self.cache = CodeCache(coder, cfg.codes if keep_codes else None, template.vocabulary)
        self.sets: dict[str, DocumentSet] = {}
        self.weights: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._validation: list[RenderedDocuments] = []
        for number, dataset in enumerate(cfg.datasets):
            name = f"{number}:{Path(dataset.path).name}"
            self.weights[name] = dataset.weight
            if (Path(dataset.path) / MANIFEST).is_file():
                shards = TokenShards(dataset.path, vocabulary_hashes(template.vocabulary))
                too_long = int((shards.lengths > self.limit[0]).sum())
                if too_long:
                    print(
                        f"left out {too_long} of {len(shards)} documents of {dataset.path}: "
                        f"{self.limit[1]} is {self.limit[0]}",
                        file=sys.stderr,
                    )
                self.sets[name], self.counts[name] = shards, len(shards)
                continue
            opened = _open(dataset)
            order = shuffled(len(opened), cfg.seed)
            held = 0 if cfg.validation else round(cfg.validation_share * len(opened))
            chosen = sorted(order[held:])
            self.counts[name] = len(chosen)
            self.sets[name] = RenderedDocuments(
                opened, chosen, self.cache, template, self.limit, cfg.condition_dropout, cfg.seed + number
            )
            self._validation.append(RenderedDocuments(opened, sorted(order[:held]), self.cache, template, self.limit))
        for dataset in cfg.validation:
            opened = _open(dataset)
            self._validation.append(RenderedDocuments(opened, range(len(opened)), self.cache, template, self.limit))

    def read_with(self, model: Any) -> None:
        """Lets this model see media through features, where it reads them so. Before the first batch."""
        if self.cache.coder is None or all(one.features is None for one in self.template.vocabulary.layouts):
            return
        memory = FeatureMemory(model, self.cache.coder, later=True)
        for documents in (*self.sets.values(), *self._validation):
            if isinstance(documents, RenderedDocuments):
                documents.features = memory

    def encode(self, rank: int = 0, num_ranks: int = 1) -> int:
        """Encodes this rank's share of all media; returns how many were new. A medium that cannot be used is met here,
        not when a step draws it: ValueError, or told and skipped, as its dataset says."""
        sets = [*(one for one in self.sets.values() if isinstance(one, RenderedDocuments)), *self._validation]
        mine = (document for number, document in enumerate(chain(*(one.documents() for one in sets)))
                if number % num_ranks == rank)  # fmt: skip
        return self.cache.fill(mine)

    def batches(self, rank: int = 0, num_ranks: int = 1, per_window: int | None = None) -> Batches:
        """The endless training batches of a rank. per_window: batches drawn at a time, in place of the setting."""
        cfg = self.cfg
        mixture = Mixture(self.sets, self.weights, cfg.seed, rank, num_ranks)
        pad = self.template.vocabulary.control_id("<|pad|>")
        tokens = max(cfg.tokens_per_batch, cfg.length)
        return Batches(mixture, cfg.length, tokens, pad, "pack", per_window or cfg.batches_per_window, *self.limit)

    def check(self) -> None:
        """ValueError if there is no document to learn from."""
        self.batches(per_window=1).next_batch()

    def validation_batches(self) -> list[PackedBatch]:
        """The held-out documents in packed batches, the same for every rank. ValueError if there are some, and none
        can be used."""
        rendered = [document for one in self._validation for document in one.once()]
        if not rendered and any(len(one.chosen) for one in self._validation):
            raise ValueError("no document for validation can be used; give others, or none")
        rows = pack(rendered, self.cfg.length, self.template.vocabulary.control_id("<|pad|>"))
        rows = [rows[index] for index in shuffled(len(rows), self.cfg.seed)]  # they come sorted by length
        num = max(1, self.cfg.tokens_per_batch // self.cfg.length)
        batches = [stack(rows[first : first + num]) for first in range(0, len(rows), num)]
        return batches[: self.cfg.validation_batches]


def _open(dataset: DatasetConfig) -> ImportedDataset:
    opened = open_dataset(dataset)
    for row in opened.bad_rows[:5]:
        print(f"skipped {row}", file=sys.stderr)
    if opened.num_bad > 5:
        print(f"skipped {opened.num_bad} rows of {dataset.path} in all", file=sys.stderr)
    return opened
