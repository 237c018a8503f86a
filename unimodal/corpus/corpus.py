"""Datasets → batches for tuning: documents opened, their media encoded once, rendered, packed and dealt to the ranks.

A dataset is a file or folder of any format that `unimodal.data.datasets` reads, or a folder of token shards. Documents
are kept with their codes in the folder `codes`, one cache for all datasets of a corpus: a second run, or another recipe
on the same pictures, encodes nothing again, and no draw opens a medium.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from unimodal.coder.features import FeatureMemory
from unimodal.coder.media_coder import MediaCoder
from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.code_cache import CodeCache
from unimodal.corpus.documents import EncodedDocuments, RenderedDocuments, encode_documents
from unimodal.corpus.judged import JudgedDocuments, PairedDocuments, PromptDocuments
from unimodal.corpus.record_cache import RecordCache
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.data.mixture import Batches, DocumentSet, Mixture
from unimodal.data.order import shuffle_numbers
from unimodal.data.token_shards import MANIFEST, TokenShards
from unimodal.data.tokenized import collect_hashes
from unimodal.sequence.cutting import LongRows, RowFitter
from unimodal.sequence.packing import PackedBatch, pack, stack
from unimodal.sequence.templates.own import Rendered, Template

if TYPE_CHECKING:
    from unimodal.objectives.objective import RowKind

#: what messages say was done with documents that are too long
DONE_WITH_LONG: dict[LongRows, str] = {
    "drop": "left out",
    "error": "too long:",
    "truncate": "truncated",
    "split": "split",
}


class CorpusConfig(Config):
    """What to learn from, and how it is arranged in batches."""

    called_elsewhere: ClassVar[Mapping[str, str]] = {
        "max_length": "corpus.length",
        "max_seq_length": "corpus.length",
        "cutoff_len": "corpus.length",
        "truncation_mode": "corpus.long_rows",
        "truncation_strategy": "corpus.long_rows",
        "val_size": "corpus.validation_share",
        "split_dataset_ratio": "corpus.validation_share",
        "group_by_length": "corpus.packing=false",
        "last_round": "corpus.mask_history",
    }

    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    validation: tuple[DatasetConfig, ...] = ()
    #: share of each dataset's documents that is held out, if `validation` is empty
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    validation_batches: int = Field(default=8, ge=1)  # at most
    codes: Annotated[Path, MAY_CHANGE] = Path("data/cache/codes")  # the folder of the cache
    #: encode media each time that they are drawn, and keep nothing: for codes that would not fit on the disk
    streaming: bool = False
    length: int = Field(default=1024, ge=2)  # tokens of a row: the longest document
    tokens_per_batch: int = Field(default=1024, ge=2)  # of one rank, in one of the batches of a step
    batches_per_window: int = Field(default=16, ge=1)
    #: several documents in a row of `length` tokens; False: one a row, and rows of similar length in a batch
    packing: bool = True
    #: what becomes of a document that is longer than a row or than the model's positions (`sequence/cutting.py`)
    long_rows: LongRows = "drop"
    mask_history: bool = False  # only the last answer of a document is learnt
    #: share of the documents with media as answers that lose their words, for guidance (arXiv 2207.12598)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)


class ChosenShards:
    """Some of the documents of token shards. chosen: their numbers, int64 [M]."""

    def __init__(self, shards: TokenShards, chosen: np.ndarray) -> None:
        self.shards, self.chosen = shards, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Rendered:
        return self.shards[int(self.chosen[index])]


class Corpus:
    """The training and validation documents of a configuration. Opening it names every row that is left out.

    max_positions: the model's; a row may be longer, a document may not. features: sees media for a model that reads
    them through features. keep_codes: False keeps codes only until the process ends. rows: what the rows of the
    datasets hold. before: ids that every document begins with, those of a soft prompt.
    """

    def __init__(
        self,
        cfg: CorpusConfig,
        template: Template,
        coder: MediaCoder | None,
        keep_codes: bool = True,
        max_positions: int | None = None,
        features: FeatureMemory | None = None,
        rows: RowKind = "answers",
        before: Sequence[int] = (),
    ) -> None:
        self.cfg, self.template, self.rows = cfg, template, rows
        if cfg.tokens_per_batch < cfg.length and "tokens_per_batch" in cfg.model_fields_set:
            print(
                f"corpus.tokens_per_batch {cfg.tokens_per_batch} is less than a row: batches have corpus.length "
                f"{cfg.length}",
                file=sys.stderr,
            )
        self.limit = (cfg.length, "corpus.length")
        if max_positions is not None and max_positions < cfg.length:
            self.limit = (max_positions, "the model's number of positions")
        self.before = tuple(before)
        if before:
            most, name = self.limit[0] - len(before), f"{self.limit[1]}, less {len(before)} of the soft prompt,"
            if most < 2:
                raise ValueError(f"a soft prompt of {len(before)} tokens does not fit {self.limit[1]} {self.limit[0]}")
            self.limit = (most, name)
        #: answers that an objective compares or scores are whole: those that are too long are left out
        self._long_rows: LongRows = cfg.long_rows if rows == "answers" or cfg.long_rows == "error" else "drop"
        self._fit = RowFitter(
            template.vocabulary, self.limit[0], self._long_rows, cfg.mask_history, cfg.length, self.before
        )
        self._features = features
        self._records = RecordCache(cfg.codes if keep_codes and not cfg.streaming else None)
        self._codes = CodeCache(coder, self._records, template.vocabulary)
        self.sets: dict[str, DocumentSet] = {}
        self.weights: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._training: dict[str, RenderedDocuments] = {}
        self._validation: dict[str, RenderedDocuments] = {}
        self._shards: dict[str, TokenShards] = {}
        self._validation_shards: dict[str, ChosenShards] = {}
        self._chosen: dict[str, np.ndarray] = {}  # the documents of each set to learn from
        if cfg.validation and cfg.validation_share:
            print("corpus.validation is given, so corpus.validation_share holds nothing out", file=sys.stderr)
        for number, dataset in enumerate(cfg.datasets):
            name = f"{number}:{Path(dataset.path).name}"
            self.weights[name] = dataset.weight
            if (Path(dataset.path) / MANIFEST).is_file():
                if rows != "answers":
                    raise ValueError(
                        f"{dataset.path} holds token shards, which have no {rows}; name the dataset itself"
                    )
                self._add_shards(name, dataset)
            else:
                self._add_documents(name, dataset, cfg.seed + number)
            self.counts[name] = len(self._chosen[name])
        for number, dataset in enumerate(cfg.validation):
            documents = self._open(dataset)
            name = f"{number}:{Path(dataset.path).name}"
            self._validation[name] = self._render(documents, np.arange(len(documents)))

    def _add_documents(self, name: str, dataset: DatasetConfig, seed: int) -> None:
        documents = self._open(dataset)
        held_out, self._chosen[name] = self._split(name, len(documents))
        self._training[name] = self._render(documents, self._chosen[name], self.cfg.condition_dropout, seed)
        self.sets[name] = self._training[name]
        if len(held_out):
            self._validation[name] = self._render(documents, held_out)

    def _add_shards(self, name: str, dataset: DatasetConfig) -> None:
        shards = self._shards[name] = self._open_shards(dataset)
        held_out, self._chosen[name] = self._split(name, len(shards))
        self.sets[name] = ChosenShards(shards, self._chosen[name]) if len(held_out) else shards
        if len(held_out):
            self._validation_shards[name] = ChosenShards(shards, held_out)

    def _split(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the documents that are held out, numbers of those to learn from)."""
        order = shuffle_numbers(count, self.cfg.seed)
        share = 0.0 if self.cfg.validation else self.cfg.validation_share
        num = round(share * count)
        if share and not num:
            print(
                f"nothing of {name.partition(':')[2]} is held out: validation_share {share:g} of {count} documents is "
                f"none; give at least {math.ceil(1000 / count) / 1000:g}, or name corpus.validation",
                file=sys.stderr,
            )
        if num == count:
            raise ValueError(
                f"nothing of {name.partition(':')[2]} is left to learn from: validation_share {share:g} of {count} "
                "documents is all of them; give less"
            )
        return np.sort(order[:num]), np.sort(order[num:])

    def encode(self, rank: int = 0, num_ranks: int = 1) -> int:
        """Encodes this rank's share of all media, and returns how many were new; does nothing under `streaming`.

        A medium that cannot be used is met here, not when a step draws it: it raises ValueError, or is named and
        skipped, whichever its dataset asks for.
        """
        if self.cfg.streaming:
            return 0
        self._records.refresh()
        num_encoded = encode_documents(list(self._list_sides()), rank, num_ranks)
        self._records.finish_writing()
        return num_encoded

    def _list_sides(self) -> Iterator[RenderedDocuments]:
        """All sets of documents, the two sides of pairs apart."""
        for one in [*self._training.values(), *self._validation.values()]:
            yield one
            if isinstance(one, PairedDocuments):
                yield one.rejected

    def hash_share(self, rank: int = 0, num_ranks: int = 1) -> dict[str, int]:
        """Hashes this rank's share of each set of documents, by name. Call it after `encode`.

        The sums over all ranks tell one corpus from another.
        """
        found = {f"data {name}": shards.compute_fingerprint() for name, shards in self._shards.items()}
        numbers = {name: int(text[:16], 16) if rank == 0 else 0 for name, text in found.items()}
        numbers |= {f"data {name}": one.hash_documents(rank, num_ranks) for name, one in self._training.items()}
        return numbers | {f"validation {n}": one.hash_documents(rank, num_ranks) for n, one in self._validation.items()}

    def count_documents(self, name: str) -> int:
        """The number of documents in a set that `hash_share` names."""
        kind, _, of = name.partition(" ")
        return self.counts[of] if kind == "data" else len(self._validation[of].chosen)

    def make_batches(
        self, rank: int = 0, num_ranks: int = 1, per_window: int | None = None, whole_passes: bool = False
    ) -> Batches:
        """The endless training batches of a rank.

        per_window: batches that are drawn at a time, in place of the setting. whole_passes: each pass takes every
        document once and ends with a batch; a pass has as many documents as all sets together.
        """
        cfg = self.cfg
        mixture = self.make_mixture(rank, num_ranks, whole_passes)
        pad = self.template.vocabulary.get_control_id("<|pad|>")
        tokens = max(cfg.tokens_per_batch, cfg.length)
        arrangement: Literal["pack", "pad"] = "pack" if cfg.packing else "pad"
        window, draws = per_window or cfg.batches_per_window, self.count_pass() if whole_passes else None
        return Batches(mixture, cfg.length, tokens, pad, arrangement, window, *self.limit, self._fit, draws)

    def make_mixture(self, rank: int = 0, num_ranks: int = 1, whole_passes: bool = False) -> Mixture:
        """The endless documents of a rank, which its batches are made of."""
        sizes = self.counts if whole_passes else None
        return Mixture(self.sets, self.weights, self.cfg.seed, rank, num_ranks, sizes)

    def count_pass(self) -> int:
        """The number of documents in one pass over all sets that have a weight."""
        return sum(count for name, count in self.counts.items() if self.weights[name] > 0)

    def count_batches(self, passes: float, rank: int = 0, num_ranks: int = 1) -> float:
        """Counts the batches of a rank in so many passes, by drawing and arranging every document."""
        batches, total = self.make_batches(rank, num_ranks, whole_passes=True), 0.0
        for number in range(math.ceil(passes)):
            total += batches.count_pass() * min(1.0, passes - number)
        return total

    def check(self) -> None:
        """Counts and reports the documents that are too long, and draws one batch.

        Raises ValueError if there is no document to learn from, and for a document that is too long under `long_rows:
        error`.
        """
        if self.cfg.long_rows != "drop":
            for name, one in [*self._training.items(), *self._validation.items()]:
                for _ in one.render_once():
                    pass
                self._tell_long(name.partition(":")[2], one.num_too_long, len(one.chosen))
        self.make_batches(per_window=1).next_batch()

    def _tell_long(self, name: str, num: int, count: int) -> None:
        """Reports what becomes of documents that are too long. Raises ValueError under `long_rows: error`."""
        if num:
            limit = f"{num:,} of {count:,} documents of {name}: {self.limit[1]} is {self.limit[0]}"
            if self._long_rows == "error":
                raise ValueError(f"too long are {limit}; raise it, or set corpus.long_rows to drop, truncate or split")
            print(f"{DONE_WITH_LONG[self._long_rows]} {limit}", file=sys.stderr, flush=True)

    def make_validation_batches(self) -> list[PackedBatch]:
        """The held-out documents in packed batches, the same for every rank.

        Raises ValueError if documents are held out and none of them can be used.
        """
        held_out = [document for one in self._validation.values() for document in one.render_once()]
        held_out += [one[number] for one in self._validation_shards.values() for number in range(len(one))]
        rendered = [piece for document in held_out for piece in self._fit(document)]
        if not rendered and (self._validation or self._validation_shards):
            raise ValueError("no document for validation can be used; give others, or none")
        rows = pack(rendered, self.cfg.length, self.template.vocabulary.get_control_id("<|pad|>"))
        rows = [rows[index] for index in shuffle_numbers(len(rows), self.cfg.seed)]  # they come sorted by length
        num = max(1, self.cfg.tokens_per_batch // self.cfg.length)
        batches = [stack(rows[first : first + num]) for first in range(0, len(rows), num)]
        return batches[: self.cfg.validation_batches]

    def _open(self, dataset: DatasetConfig) -> EncodedDocuments:
        opened = open_dataset(dataset, kind=self.rows)
        for row in opened.bad_rows[:5]:
            print(f"skipped {row}", file=sys.stderr)
        if opened.num_bad > 5:
            print(f"skipped {opened.num_bad} rows of {dataset.path} in all", file=sys.stderr)
        if opened.ignored:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(opened.ignored.items()))
            print(f"not read of {dataset.path}: files of other kinds, {kinds}", file=sys.stderr)
        if opened.unread:
            print(f"not used of {dataset.path}: {', '.join(sorted(opened.unread))}", file=sys.stderr)
        return EncodedDocuments(opened, self._codes, self.template.vocabulary, self.cfg.streaming)

    def _open_shards(self, dataset: DatasetConfig) -> TokenShards:
        shards = TokenShards(dataset.path, collect_hashes(self.template.vocabulary))
        positions = self.template.vocabulary.positions
        longer = np.flatnonzero(shards.lengths > self.limit[0]).tolist()  # in rows; a position may hold several
        too_long = sum(positions.is_flat or positions.count(shards[n].ids) > self.limit[0] for n in longer)
        self._tell_long(dataset.path, too_long, len(shards))
        return shards

    def _render(
        self, documents: EncodedDocuments, chosen: np.ndarray, dropout: float = 0.0, seed: int = 0
    ) -> RenderedDocuments:
        done = DONE_WITH_LONG[self._long_rows]
        if self.rows == "pairs":
            rejected = EncodedDocuments(
                documents.dataset.show_rejected(), self._codes, self.template.vocabulary, self.cfg.streaming
            )
            most = self.cfg.length - 2 * len(self.before)
            row = (most, "corpus.length (for both answers)")
            return PairedDocuments(documents, rejected, chosen, self.template, self.limit, row, self._features, done)
        if self.rows == "prompts":
            return PromptDocuments(documents, chosen, self.template, self.limit, features=self._features)
        if self.rows == "labels":
            return JudgedDocuments(documents, chosen, self.template, self.limit, self._features, done)
        return RenderedDocuments(documents, chosen, self.template, self.limit, dropout, seed, self._features, done)
