"""The trainer of a tuning recipe: its corpus made to codes, its batches, its loss and its identity put together."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from unimodal.config import Config
from unimodal.corpus.corpus import Corpus
from unimodal.sequence.packing import PackedBatch
from unimodal.training.batches import BatchSource, WeightedLoss
from unimodal.training.distributed import Parallel
from unimodal.training.identity import Identity
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.training.watching import Watch
from unimodal.tuning.identity import describe_run
from unimodal.tuning.loss import make_packed_loss
from unimodal.tuning.plan import count_steps
from unimodal.tuning.rollout import Rollouts


def make_trainer(
    cfg: Config,
    loop: LoopConfig,
    folder: Path,
    module: nn.Module,
    batches: BatchSource[PackedBatch],
    corpus: Corpus,
    inputs: Identity,
    parallel: Parallel,
    restart: bool = False,
    watch: Watch | None = None,
    shares_every: int = 0,
) -> Trainer[PackedBatch]:
    """Encode the corpus, check it, and make the trainer of `module`. All ranks call this; nothing is trained yet.

    module: an `Objective`. cfg: all settings of the recipe. loop: those of its loop, with steps or epochs. folder: that
    of the run. inputs: the result of `describe_inputs`. shares_every: of `make_packed_loss`. Raises ValueError for
    documents that cannot be used, and as `Trainer` does.
    """
    encoded = corpus.encode(parallel.rank, parallel.num_ranks)
    parallel.wait_for_all()
    corpus.check()  # before the trainer writes anything
    validation = corpus.make_validation_batches()
    if loop.evaluate_every and validation and watch is None and not any((one.labels >= 0).any() for one in validation):
        raise ValueError("no document for validation has an answer to score; give others, or set loop.evaluate_every=0")
    compute_loss = make_packed_loss(parallel.wrap(module), parallel.device, shares_every=shares_every)

    def loss(batch: PackedBatch, step: int) -> WeightedLoss:
        result = compute_loss(batch, step)
        if module.training and isinstance(batches, Rollouts):
            result.sums |= batches.sums
        return result

    trainer = Trainer(
        module, batches, loss, count_steps(loop, corpus, parallel), folder, validation=validation, parallel=parallel,
        identity=describe_run(cfg, inputs, corpus, loop, parallel), restart=restart, watch=watch,
    )  # fmt: skip
    if parallel.is_main:
        print(f"encoded {encoded} media; {sum(corpus.counts.values())} documents", file=sys.stderr)
    return trainer
