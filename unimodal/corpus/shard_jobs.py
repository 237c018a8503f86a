"""A corpus → token shards: the plan, the job that writes one shard, and the processes that work off a plan.

A plan is a list of items {dataset, shard}, the same for every worker; worker i of n does items i, i + n, i + 2n, … .
Shard k of a dataset holds its documents k·S … (k+1)·S - 1, and no batch crosses a shard, so the bytes of a shard depend
on the data and the settings alone. A worker is a `ShardWriter`, whether it is a process, a rank of torchrun, a task of
an array job or a Ray actor. Finished shards are never made again.

Legend: S documents per shard.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal, TypedDict

import torch
from pydantic import Field, field_validator

from unimodal.config import Config
from unimodal.corpus.tokenizer import CorpusTokenizer
from unimodal.data.datasets import DatasetConfig, ImportedDataset, open_dataset
from unimodal.data.token_shards import (
    Manifest,
    Skipped,
    TokenShards,
    is_done,
    prepare_shards,
    remove_partial_shards,
    write_shard,
)
from unimodal.files import join_lines, write_json
from unimodal.sequence.templates.own import Rendered

REPORT = "report.json"
JOIN_EVERY_S = 0.2


class ShardItem(TypedDict):
    """One shard of the plan."""

    dataset: str
    shard: int


class ShardResult(ShardItem):
    """What became of an item of the plan."""

    written: bool  # False: it was there already
    documents: int


@dataclass(frozen=True)
class ShardReport:
    """The content of `report.json`, written once all shards of a dataset are there."""

    documents: int
    shards: int
    tokens: int
    tokens_by_modality: dict[str, int]
    bad_rows: list[str]  # place and reason of every row that could not be used
    ignored_members: dict[str, int]  # members of tars by extension, of kinds that are not read


class CorpusJob(Config):
    """All that a worker must know; the same for all workers of a run."""

    model: str | None = None  # a folder or hub id with the tokenizers and the vocabulary; None: nano
    datasets: dict[str, DatasetConfig] = {}
    out: Path = Path("data/tokenized")  # one folder of shards for each dataset
    documents_per_shard: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=16, ge=1)  # documents whose media are encoded together
    max_tokens: int | None = Field(default=None, ge=1)  # a longer document is a bad row
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=1, ge=0)  # of each worker; 0 leaves torch's own choice

    @field_validator("datasets")
    @classmethod
    def _check_names(cls, value: dict[str, DatasetConfig]) -> dict[str, DatasetConfig]:
        for name in value:
            if (
                not name
                or name.startswith(".")
                or not name.replace("-", "").replace("_", "").replace(".", "").isalnum()
            ):
                raise ValueError(f"the dataset name {name!r} becomes a folder; use letters, digits, - and _")
        return value


class ShardWriter:
    """Writes shards of a job; `writer({"dataset": name, "shard": k})` returns what became of shard k."""

    def __init__(self, job: CorpusJob, index: int = 0) -> None:
        """index: the worker's number, which picks its GPU. Raises ValueError for a job without datasets."""
        if not job.datasets:
            raise ValueError("there are no datasets; give one with --set datasets.NAME.path=FILE")
        self.job, self.index = job, index
        self._datasets: dict[str, ImportedDataset] = {}
        self._manifests: dict[str, Manifest] = {}

    @cached_property
    def tokenizer(self) -> CorpusTokenizer:
        if self.job.threads:
            torch.set_num_threads(self.job.threads)
        return CorpusTokenizer(self.job.model, self._choose_device(), self.job.max_tokens)

    def _choose_device(self) -> str:
        if self.job.device != "cuda":
            return self.job.device
        if not torch.cuda.is_available():
            raise ValueError("device is cuda but torch sees no GPU here; set device to cpu")
        return f"cuda:{self.index % torch.cuda.device_count()}"

    def get_dataset(self, name: str) -> ImportedDataset:
        """The dataset of that name; its first use opens it, which reads all its rows."""
        if name not in self._datasets:
            try:
                self._datasets[name] = open_dataset(self.job.datasets[name])
            except ValueError as error:
                raise ValueError(f"dataset {name}: {error}") from None
        return self._datasets[name]

    def get_folder(self, name: str) -> Path:
        """The folder of a dataset's shards."""
        return self.job.out / name

    def get_manifest(self, name: str) -> Manifest:
        """What a dataset's shards have in common: its size, the hashes, and every setting that decides their bytes."""
        if name in self._manifests:
            return self._manifests[name]
        dataset, coder = self.get_dataset(name), self.tokenizer.coder
        record = {
            "dataset": name,
            "file": Path(dataset.cfg.path).name,
            "format": dataset.format,
            "rows_sha256": dataset.compute_fingerprint(),
            "bad_rows": dataset.num_bad,
            "image_fit": coder.processor.image_fit,
            "max_audio_s": coder.processor.find_limits("audio").seconds,
            "max_tokens": self.job.max_tokens,
            "batch_size": self.job.batch_size,
            "device": coder.device.type,
        }
        size, hashes = self.tokenizer.vocabulary.size, self.tokenizer.hashes
        self._manifests[name] = Manifest(len(dataset), self.job.documents_per_shard, size, hashes, record)
        return self._manifests[name]

    def list_items(self) -> list[ShardItem]:
        """The whole plan, finished items included."""
        return [
            {"dataset": name, "shard": shard}
            for name in self.job.datasets
            for shard in range(self.get_manifest(name).num_shards)
        ]

    def prepare(self) -> None:
        """Writes the manifests. Raises ValueError if a folder holds shards of other data, settings or tokenizers."""
        for name in self.job.datasets:
            prepare_shards(self.get_folder(name), self.get_manifest(name))

    def is_done(self, item: ShardItem) -> bool:
        """Whether the shard is there, and made of these rows, settings, tokenizers and media files."""
        name, shard = item["dataset"], item["shard"]
        return is_done(self.get_folder(name), self.get_manifest(name), shard, self._fingerprint_media(name, shard))

    def _fingerprint_media(self, name: str, shard: int) -> str:
        return self.get_dataset(name).fingerprint_media(self.get_manifest(name).list_documents(shard))

    def __call__(self, item: ShardItem) -> ShardResult:
        """Writes the shard unless it is there. Returns the item with `written` and the numbers of documents.

        Raises ValueError for the first document that cannot be tokenized under `on_bad_row="fail"`.
        """
        name, shard = item["dataset"], item["shard"]
        manifest = self.get_manifest(name)
        prepare_shards(self.get_folder(name), manifest)
        written = not self.is_done(item)
        if written:
            documents = self.tokenize(name, manifest.list_documents(shard))
            write_shard(self.get_folder(name), manifest, shard, documents, self._fingerprint_media(name, shard))
        return {"dataset": name, "shard": shard, "written": written, "documents": len(manifest.list_documents(shard))}

    def tokenize(self, name: str, numbers: range) -> Iterator[Rendered | Skipped]:
        """Tokenizes documents of a dataset by number; one that cannot be tokenized is `Skipped`, with its place and the
        reason.

        Raises ValueError for the first of these under `on_bad_row="fail"`.
        """
        dataset = self.get_dataset(name)
        for start in range(numbers.start, numbers.stop, self.job.batch_size):
            batch = range(start, min(start + self.job.batch_size, numbers.stop))
            for number, made in zip(batch, self.tokenizer([dataset[n] for n in batch]), strict=True):
                if isinstance(made, Skipped):
                    reason = f"{dataset.describe_place(number)}: {made.reason}"
                    if dataset.cfg.on_bad_row == "fail":
                        raise ValueError(f"dataset {name}: {reason}; mend it, or set on_bad_row to skip")
                    made = Skipped(reason)
                yield made

    def finish(self, name: str) -> ShardReport | None:
        """Writes `report.json` once all shards of a dataset are there, and returns it; None before.

        Raises ValueError if none of its rows could be tokenized.
        """
        folder = self.get_folder(name)
        if not all(self.is_done(item) for item in self.list_items() if item["dataset"] == name):
            return None
        shards = TokenShards(folder, self.tokenizer.hashes)
        dataset = self.get_dataset(name)
        report = ShardReport(
            documents=len(shards),
            shards=shards.manifest.num_shards,
            tokens=shards.num_tokens,
            tokens_by_modality=shards.count_tokens(self.tokenizer.vocabulary.modalities),
            bad_rows=[*map(str, dataset.bad_rows), *shards.skipped],
            ignored_members=dict(sorted(dataset.ignored.items())),
        )
        write_json(folder / REPORT, asdict(report), indent=1)
        remove_partial_shards(folder)
        if not len(shards):
            raise ValueError(f"none of the rows of dataset {name} could be tokenized; the first: {shards.skipped[0]}")
        return report


def run_worker(job: CorpusJob, index: int, count: int, writer: ShardWriter | None = None) -> None:
    """Does the share of worker `index` of `count`, and reports its progress on stderr."""
    writer = writer or ShardWriter(job, index)
    mine = writer.list_items()[index::count]
    parent = multiprocessing.parent_process()
    for number, item in enumerate(mine, start=1):
        if parent is not None and not parent.is_alive():
            return  # the run was killed: nobody waits for this worker
        start_s = time.monotonic()
        done = writer(item)
        took = f"in {time.monotonic() - start_s:.1f} s" if done["written"] else "was there"
        print(
            f"worker {index} of {count}: {item['dataset']} shard {item['shard']}, {done['documents']:,} documents, "
            f"{took} ({number}/{len(mine)})",
            file=sys.stderr,
            flush=True,
        )


def run_processes(job: CorpusJob, first: int, workers: int, count: int) -> None:
    """Runs workers first … first + workers - 1 of `count` as processes. The first error stops all of them and is
    raised.

    Where the system allows it, they are forks of one process that imports torch once for all of them.
    """
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    errors: SimpleQueue[str] = context.SimpleQueue()
    processes = [
        context.Process(target=_run_child, args=(job, first + number, count, errors), daemon=True)
        for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            failed = [process for process in processes if process.exitcode not in (None, 0)]
            if failed:
                break
            next(process for process in processes if process.is_alive()).join(JOIN_EVERY_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if not errors.empty():
        raise ValueError(errors.get())
    killed = [first + number for number, process in enumerate(processes) if process.exitcode]
    if killed:
        code = processes[killed[0] - first].exitcode
        raise ValueError(
            f"worker {killed[0]} ended with exit code {code}; finished shards are kept: run the same command again, "
            "with fewer workers if memory ran out"
        )


def _run_child(job: CorpusJob, index: int, count: int, errors: SimpleQueue[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of the group; the parent ends its workers
    try:
        run_worker(job, index, count)
    except (ValueError, OSError) as error:
        errors.put(join_lines(str(error)))
        raise SystemExit(2) from None
