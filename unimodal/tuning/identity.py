"""The identity of a tuning run: its settings, and the content of every file and folder that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config
from unimodal.corpus.corpus import Corpus
from unimodal.sequence.templates.own import Template
from unimodal.training.distributed import Parallel
from unimodal.training.identity import (
    Identity,
    describe_resume,
    describe_settings,
    hash_files,
    hash_json,
    hash_weights,
)
from unimodal.training.settings import LoopConfig


def describe_inputs(
    template: Template, media: MediaCoder | None, base: nn.Module | None = None, files: Mapping[str, Path | None] = {}
) -> Identity:
    """Hashes of the base's weights, the tokenizers, the vocabulary, and further files by name.

    Call it before the base is changed.
    """
    vocabulary = template.vocabulary
    inputs = {} if base is None else {"base weights": hash_weights(base)}
    inputs["text tokenizer"] = template.text.sha256[:16]
    if media is not None:
        inputs |= {f"{medium} tokenizer": media.sha256[medium][:16] for medium in vocabulary.media}
        processor = media.processor
        inputs["sequence format"] = hash_json([processor.template, processor.system, processor.image_fit])
    inputs["vocabulary"] = hash_json(vocabulary.to_dict())
    return inputs | {name: hash_files([path]) for name, path in files.items() if path is not None}


def describe_resumed_run(folder: Path, cfg: Config, inputs: Identity, loop: LoopConfig, restart: bool) -> str:
    """`describe_resume` of a tuning run, for a dry run, which does not hash the documents."""
    identity = describe_settings(cfg) | inputs | _describe_order(loop)
    return describe_resume(folder, identity, restart, unknown=("data ", "validation "))


def describe_run(cfg: Config, inputs: Identity, corpus: Corpus, loop: LoopConfig, parallel: Parallel) -> Identity:
    """The identity of a run: the settings of its recipe, `inputs`, and a hash of its documents, shared out over ranks.

    Whether steps or epochs were given counts too, since they go through the documents in different orders.
    """
    shares = parallel.gather(corpus.hash_share(parallel.rank, parallel.num_ranks))
    found: Identity = {}
    for name in shares[0]:
        total = sum(share[name] for share in shares) % 2**128
        found[name] = f"{corpus.count_documents(name):,} documents, {total:032x}"
    return describe_settings(cfg) | inputs | found | _describe_order(loop)


def _describe_order(loop: LoopConfig) -> Identity:
    return {"order of the documents": "steps" if loop.epochs is None else "epochs"}
