"""Trains the learned part of a compression method for a model: to answer under it as the whole model does.

    python recipes/train_compressor.py recipes/configs/train_compressor.yaml [--set method=pmod] [--dry-run]

The model stays as it is. Each step runs it on a batch of documents, whole and under the method, and lowers the
divergence of what it expects at the words that it would answer, or what the method says that it learns by. Any corpus
with media in its questions will do. Writes a folder that `load_compressor` of `unimodal.compression.trained` opens.
Interrupt it when you like; the same command goes on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unimodal.compression import METHODS, Method
from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.learned import DecoderShape
from unimodal.compression.trained import find_learned, load_compressor, save_compressor
from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.model.base import load_base
from unimodal.objectives.next_token import IGNORE
from unimodal.sequence.packing import PackedBatch
from unimodal.training.batches import WeightedLoss
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import Parallel
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.tuning.identity import describe_inputs, describe_run
from unimodal.tuning.loss import to_tensors
from unimodal.tuning.plan import count_steps
from unimodal.tuning.vocabulary import make_joint_template, open_media


class CompressorRecipe(Config):
    model: Annotated[Path, MAY_CHANGE] = Path("model_cards/nano")  # a model folder with its media tokenizers
    method: str = "tokenpacker"
    keep: float = Field(0.25, gt=0, lt=1)
    #: shares that take turns from step to step, in place of `keep` alone: one module for several
    shares: tuple[float, ...] = ()
    settings: dict[str, bool | int | float | str] = {}  # of the method, beside these
    corpus: CorpusConfig
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/compressor")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/compressor")
    tries: Annotated[int, MAY_CHANGE] = Field(8, ge=1)  # batches on which it is compared with even pruning at the end
    loop: LoopConfig = LoopConfig(
        steps=500, learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=20, weight_decay=0.0, log_every=20
    )


def run(cfg: CompressorRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    kind = find_learned(cfg.method)
    if cfg.out.exists() and not flags.dry_run and any(cfg.out.iterdir()):
        raise ValueError(f"out: {cfg.out} has something in it; name another folder")
    if cfg.loop.evaluate_every:
        raise ValueError("loop.evaluate_every: a compressor is compared at the end; set it to 0")

    # the model, which stays as it is, and its documents: one a row, since a packed row is not compressed
    parallel = Parallel(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    base = load_base(str(cfg.model))
    media = open_media(cfg.model, parallel.device)
    template = make_joint_template(base, media)
    vocabulary, decoder = template.vocabulary, base.model.to(parallel.device).requires_grad_(False).eval()
    if not vocabulary.positions.is_flat:
        raise ValueError(f"model: {cfg.model} reads the sum of several codes, which is not compressed; name another")
    inputs = describe_inputs(template, media, decoder)
    settings = cfg.corpus.model_copy(update={"packing": False})
    limit = int(decoder.config.max_position_embeddings)
    corpus = Corpus(settings, template, media, keep_codes=not flags.dry_run, max_positions=limit)

    # the method and its module, the only thing that learns
    shape = DecoderShape.of(decoder.config)
    torch.manual_seed(cfg.loop.seed)
    module = kind.make_part(shape).to(parallel.device)
    method = kind(cfg.keep, **cfg.settings, **{kind.part: module})  # type: ignore[arg-type]  # the class checks them
    shares = cfg.shares or (cfg.keep,)

    def read(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
        ids, labels, *_ = to_tensors(batch, parallel.device)
        valid = torch.from_numpy(batch.segment_ids > 0).to(parallel.device)
        learnt = torch.zeros_like(valid)
        learnt[:, :-1] = labels[:, 1:] != IGNORE
        return ids, valid, learnt

    def measure(one: Method, batch: PackedBatch) -> tuple[Tensor, int]:
        return compute_distillation_loss(one, decoder, vocabulary, *read(batch))

    def compute_loss(batch: PackedBatch, step: int) -> WeightedLoss:
        asked = replace(method, keep=shares[step % len(shares)])
        total, count = asked.compute_loss(decoder, vocabulary, *read(batch))
        total = total + 0.0 * sum(weight.sum() for weight in module.parameters())  # a batch may have no media
        return WeightedLoss(
            total, count, {kind.learns_by: (float(total.detach()), count)}, int((batch.segment_ids > 0).sum())
        )

    batches = corpus.make_batches(whole_passes=cfg.loop.epochs is not None)
    if flags.dry_run:
        num = sum(weight.numel() for weight in module.parameters())
        total, count = measure(method, batches.next_batch())
        print(f"{cfg.method} at {cfg.keep:g}: {num:,} weights learn, {sum(corpus.counts.values()):,} documents")
        print(f"untrained: {float(total) / max(count, 1):.3f} nats a token from the whole model, in one batch")
        return
    corpus.encode()
    corpus.check()
    trainer = Trainer(
        module, batches, compute_loss, count_steps(cfg.loop, corpus, parallel), cfg.run,
        identity=describe_run(cfg, inputs, corpus, cfg.loop, parallel), restart=flags.restart,
    )  # fmt: skip
    trainer.run()
    trainer.use_ema()

    # how far from the whole model it is on further batches, beside even pruning at the same share
    module.eval()
    tried = [batches.next_batch() for _ in range(cfg.tries)]
    with torch.no_grad():
        for name, one in ((cfg.method, method), ("stride", METHODS["stride"](cfg.keep))):
            sums = [measure(one, batch) for batch in tried]
            nats = sum(float(total) for total, _ in sums) / max(1, sum(count for _, count in sums))
            print(f"{name} at {cfg.keep:g}: {nats:.3f} nats a token from the whole model")
    save_compressor(cfg.out, method, shape)
    load_compressor(cfg.out)
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    run_training(CompressorRecipe, run)
