"""Encodes datasets once, media and text, into token shards that training maps into memory.

    python recipes/tokenize_dataset.py recipes/configs/tokenize_dataset.yaml --set datasets.pets.path=data/pets.jsonl
    python recipes/tokenize_dataset.py … --dry-run                               # the plan and a sample; writes nothing
    python recipes/tokenize_dataset.py … --set workers=8                            # processes of one machine
    torchrun --nproc-per-node 8 recipes/tokenize_dataset.py …                       # one worker a rank
    python recipes/tokenize_dataset.py … --set shard.index=$TASK --set shard.count=64     # one task of an array job
    python recipes/tokenize_dataset.py … --set engine=ray --set workers=64          # actors of a Ray cluster

Worker i of n writes shards i, i + n, … of one plan that depends on the data alone, so the shards are the same bytes
whoever writes them. A shard is there whole or not at all; the same command goes on after an interruption. A folder of
shards made of other rows, settings or tokenizers is refused. `out/NAME/` gets a manifest with the hashes of the
tokenizers and of the vocabulary, and at the end a report that lists every row that could not be used.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Literal

from pydantic import Field

from unimodal.config import Config, save_config
from unimodal.corpus.shard_jobs import CorpusJob, ShardWriter, run_processes, run_worker
from unimodal.sequence.document import Text
from unimodal.sequence.templates.own import Rendered
from unimodal.training.command import run_recipe
from unimodal.training.loop import Interrupted

SHOWN_BAD_ROWS = 10
SAMPLE = 8  # documents that a dry run tokenizes to estimate the rest


class ShareConfig(Config):
    """Which task of an array job this is."""

    index: int = Field(default=0, ge=0)
    count: int = Field(default=1, ge=1)


class TokenizeRecipe(CorpusJob):
    workers: int = Field(default=1, ge=1)  # processes of this task or rank; actors of Ray
    shard: ShareConfig = ShareConfig()
    engine: Literal["processes", "ray"] = "processes"


def find_place(cfg: TokenizeRecipe) -> tuple[int, int]:
    """(number of this process's first worker, of how many): tasks of the array, times ranks, times processes."""
    if cfg.shard.index >= cfg.shard.count:
        raise ValueError(f"shard.index is {cfg.shard.index} of shard.count {cfg.shard.count}; count from 0")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    first = cfg.shard.index * ranks + int(os.environ.get("RANK", "0"))
    return first * cfg.workers, cfg.shard.count * ranks * cfg.workers


def print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(writer: ShardWriter, first: int, workers: int, count: int) -> None:
    """The state of the datasets and the share of these workers, as text; the first worker names bad rows."""
    print_line(f"tokenizers and vocabulary of {writer.tokenizer.folder}, {writer.tokenizer.vocabulary.size:,} rows")
    items = writer.list_items()
    mine = [item for number in range(first, first + workers) for item in items[number::count]]
    for name in writer.job.datasets:
        dataset, manifest = writer.get_dataset(name), writer.get_manifest(name)
        shards = [item for item in items if item["dataset"] == name]
        done = sum(map(writer.is_done, shards))
        print_line(
            f"{name}: {len(dataset):,} documents of format {dataset.format}, {dataset.num_bad:,} bad rows, "
            f"{manifest.num_shards:,} shards, {done:,} done, {sum(item['dataset'] == name for item in mine):,} are mine"
        )
        if first == 0:
            for row in dataset.bad_rows[:SHOWN_BAD_ROWS]:
                print_line(f"  bad row {row}")
            if dataset.num_bad > SHOWN_BAD_ROWS:
                print_line(f"  and {dataset.num_bad - SHOWN_BAD_ROWS:,} more, all of them in the report")
            for extension, members in dataset.ignored.items():
                print_line(f"  {members:,} members .{extension} of the tars are of a kind that is not read")


def show_plan(writer: ShardWriter, first: int, workers: int, count: int) -> None:
    """Prints the plan, one line a worker, and one document of each dataset as the decoder will see it.

    A document that cannot be tokenized is named on stderr, or a ValueError, as in the run itself.
    """
    items = writer.list_items()
    for number in range(first, first + workers):
        todo = [item for item in items[number::count] if not writer.is_done(item)]
        print(f"worker {number} of {count}: {len(todo)} shards", *(f"{i['dataset']}/{i['shard']}" for i in todo[:12]))
    vocabulary = writer.tokenizer.vocabulary
    for name in writer.job.datasets:
        dataset = writer.get_dataset(name)
        sample = []
        for made in writer.tokenize(name, range(min(SAMPLE, len(dataset)))):
            if isinstance(made, Rendered):
                sample.append(made)
            else:
                print_line(f"  bad row {made.reason}")
        if not sample:
            print(f"{name}: none of the first {SAMPLE} documents can be tokenized")
            continue
        mean = sum(map(len, sample)) / len(sample)
        print(f"{name}: about {mean * len(dataset):,.0f} tokens, {mean:,.0f} a document")
        for turn in writer.tokenizer.template.parse(sample[0].ids).turns:
            shown = [
                repr(part.text) if isinstance(part, Text) else f"<{part.modality}: {len(part.codes)} codes>"
                for part in turn.parts
            ]
            print(f"  {turn.role}: {' '.join(shown)}")
    print(f"vocabulary: {vocabulary.size:,} rows, text {vocabulary.text_size:,}, media {', '.join(vocabulary.media)}")


def summarize(writer: ShardWriter) -> None:
    """One line a dataset on stdout, once its last shard is there."""
    for name in writer.job.datasets:
        report = writer.finish(name)
        if report is None:
            print_line(f"{name}: this worker is done, others are not yet")
            continue
        parts = ", ".join(f"{tokens:,} {kind}" for kind, tokens in report.tokens_by_modality.items() if tokens)
        print(
            f"{writer.get_folder(name)}: {report.documents:,} documents, {report.tokens:,} tokens ({parts}) in "
            f"{report.shards:,} shards; {len(report.bad_rows):,} bad rows",
            flush=True,
        )


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def run(cfg: TokenizeRecipe, dry_run: bool) -> None:
    job = CorpusJob(**{name: getattr(cfg, name) for name in CorpusJob.model_fields})
    first, count = find_place(cfg)
    signal.signal(signal.SIGTERM, stop)
    try:
        writer = ShardWriter(job, first)
        describe(writer, first, cfg.workers, count)
        if dry_run:
            show_plan(writer, first, cfg.workers, count)
            return
        writer.prepare()
        save_config(cfg, job.out / "recipe.yaml")
        if cfg.engine == "ray":
            from unimodal.data.ray_adapter import map_with_ray

            todo = [item for item in writer.list_items() if not writer.is_done(item)]
            map_with_ray(todo, ShardWriter, (job,), cfg.workers, gpus_per_actor=int(cfg.device == "cuda"))
        elif cfg.workers == 1:
            run_worker(job, first, count, writer)
        else:
            run_processes(job, first, cfg.workers, count)
        summarize(writer)
    except KeyboardInterrupt:
        raise Interrupted("stopped; finished shards are kept, the same command goes on") from None


if __name__ == "__main__":
    run_recipe(TokenizeRecipe, run)
