"""Training on documents that are all held in memory, with the last ones kept for validation.

The recipes for what stands beside a stock decoder (continuous media, readers, motion) make their documents by encoders
of their own, once, and then share this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar, cast

import torch
from pydantic import Field
from torch import nn

from unimodal.config import MAY_CHANGE, Config
from unimodal.data.mixture import Batches, DocumentSet, Mixture
from unimodal.sequence.packing import PackedBatch, pack, stack
from unimodal.training.batches import BatchSource
from unimodal.training.command import Flags
from unimodal.training.distributed import Parallel, start
from unimodal.training.identity import describe_settings
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.tuning.loss import make_packed_loss
from unimodal.tuning.plan import try_one_step
from unimodal.tuning.save import check_folders

Document = TypeVar("Document")


class InMemoryRecipe(Config):
    """What these recipes have in common; each names its own folders."""

    length: int = Field(default=256, ge=8)  # tokens of a packed row
    tokens_per_batch: int = Field(default=2048, ge=8)
    held_out: int = Field(default=32, ge=0)  # the last documents, which validate
    out: Annotated[Path, MAY_CHANGE]
    run: Annotated[Path, MAY_CHANGE]
    loop: LoopConfig = LoopConfig.model_validate(
        {"steps": 500, "learning_rate": 1e-3, "final_learning_rate": 5e-5, "warmup_steps": 20, "log_every": 10,
         "weight_decay": 0.0}
    )  # fmt: skip

    def begin(self, sources: Mapping[str, str | Path | None]) -> Parallel:
        """Check the folders and start the ranks. sources: setting → folder that is only read.

        Raises ValueError for folders that cannot be used.
        """
        if self.loop.threads:
            torch.set_num_threads(self.loop.threads)
        check_folders(self.out, self.run, self.run, sources)
        return start("ddp")

    def split(self, documents: Sequence[Document], what: str) -> tuple[Sequence[Document], Sequence[Document]]:
        """(what is learnt from, what is held out). Raises ValueError, with `what` they are, if nothing is learnt."""
        num = len(documents) - self.held_out
        if num < 1:
            raise ValueError(f"held_out is {self.held_out} of {len(documents)} {what}; nothing is left to learn from")
        return documents[:num], documents[num:]


def train_in_memory(
    cfg: InMemoryRecipe,
    flags: Flags,
    parallel: Parallel,
    module: nn.Module,
    learnt: DocumentSet,
    kept: DocumentSet,
    pad: int,
    inputs: Mapping[str, str],
    describe: Callable[[], str],
) -> bool:
    """Train an objective; whether it was trained, which a dry run does not do.

    module: called as an `Objective`. inputs: what else decides the run, for its identity. describe: what `--dry-run`
    says of it.
    """
    mixture = Mixture({"documents": learnt}, None, cfg.loop.seed, parallel.rank, parallel.num_ranks)
    dealt = Batches(mixture, cfg.length, max(cfg.length, cfg.tokens_per_batch), pad)
    batches = cast(BatchSource[PackedBatch], dealt)
    if flags.dry_run:
        if parallel.is_main:
            print(describe())
            print(try_one_step(module, batches.next_batch(), parallel.device))
        return False
    validation = [stack([row]) for row in pack([kept[n] for n in range(len(kept))], cfg.length, pad)]
    trainer = Trainer(
        module, batches, make_packed_loss(parallel.wrap(module), parallel.device), cfg.loop, cfg.run,
        validation=validation or None, parallel=parallel, identity=describe_settings(cfg) | dict(inputs),
        restart=flags.restart,
    )  # fmt: skip
    trainer.run()
    if not trainer.use_best():
        trainer.use_ema()
    return True
