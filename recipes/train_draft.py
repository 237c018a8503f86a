"""Trains draft heads for a model: small networks that guess its next tokens, for the fast decoder `draft-heads`.

    python recipes/train_draft.py recipes/configs/train_draft.yaml [--set heads.kind=medusa] [--dry-run]
    unimodal generate "a red apple" --to image --out apple.png --decoder draft-heads

The model stays as it is, and so do its answers: they take fewer passes. The heads learn from the answers of a corpus,
or, with `own_answers`, from what the model itself answers to so many of its requests, which is closer to what they will
have to guess. Writes `draft_heads` into the model's folder, where `--decoder draft-heads` finds it, or a folder named
by `out`; then it counts the passes of held-out requests with the heads and without. Interrupt it when you like; the
same command goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.data.mixture import Batches, Mixture
from unimodal.data.order import mix64
from unimodal.generation.engine import Engine
from unimodal.generation.fast.draft_heads import DraftHeadDecoder
from unimodal.model.attention import Packing, set_attention
from unimodal.model.base import load_base
from unimodal.model.draft_heads import DraftHeads, DraftHeadSettings, copy_head_rows, make_draft_heads
from unimodal.model.fourier_head import FOURIER_FILE
from unimodal.model.image_head import ImageHead
from unimodal.model.logits import read_logit_rule
from unimodal.model_folder.draft_heads import DRAFT_HEADS, load_draft_heads, save_draft_heads
from unimodal.model_folder.settings import MediumSettings, read_sampling
from unimodal.objectives.future_tokens import DECAY, compute_future_losses, sum_future_losses
from unimodal.objectives.next_token import HeadGroups, shift_labels
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.templates.own import Rendered
from unimodal.training.batches import WeightedLoss
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import Parallel
from unimodal.training.identity import hash_json
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.tuning.identity import describe_inputs, describe_run
from unimodal.tuning.loss import to_tensors
from unimodal.tuning.own_answers import (
    find_request,
    make_request_config,
    read_documents,
    split_documents,
    store_documents,
    write_own_answers,
)
from unimodal.tuning.plan import check_validation, count_steps
from unimodal.tuning.save import check_place
from unimodal.tuning.vocabulary import make_joint_template, open_media


class DraftRecipe(Config):
    model: Annotated[Path, MAY_CHANGE] = Path("model_cards/nano")  # a model folder with its media tokenizers
    heads: DraftHeadSettings = DraftHeadSettings()
    states_per_batch: int = Field(256, ge=1)  # of those that a batch has, by chance: what is learnt from costs most
    decay: float = Field(DECAY, gt=0, le=1)  # the weight of a place, for each further place
    corpus: CorpusConfig
    #: learn from the model's own answers to so many requests of the corpus; 0: from the answers that the corpus has
    own_answers: int = Field(0, ge=0)
    out: Annotated[Path | None, MAY_CHANGE] = None  # by default draft_heads in the model's folder
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/draft")
    tries: Annotated[int, MAY_CHANGE] = Field(8, ge=1)  # requests whose passes are counted at the end
    loop: LoopConfig = LoopConfig(
        steps=400, learning_rate=2e-3, final_learning_rate=1e-4, warmup_steps=40, weight_decay=0.01, log_every=20
    )


def run(cfg: DraftRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    out = cfg.model / DRAFT_HEADS if cfg.out is None else cfg.out
    for name, folder in (("out", out), ("run", cfg.run), ("corpus.codes", cfg.corpus.codes)):
        check_place(name, folder)
    if out.resolve() == cfg.model.resolve() or (out.exists() and not flags.dry_run and any(out.iterdir())):
        raise ValueError(f"out: {out} has something in it; name another folder, or remove it")
    check_validation(cfg.loop, cfg.corpus, measured_at_end=True)

    # the model, which stays as it is, and its documents
    parallel = Parallel(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    base = load_base(str(cfg.model))
    media = open_media(cfg.model, parallel.device)
    template = make_joint_template(base, media)
    vocabulary, model = template.vocabulary, base.model.to(parallel.device).requires_grad_(False).eval()
    if (cfg.model / FOURIER_FILE).is_file():
        raise ValueError(f"model: {cfg.model} has Fourier heads, which draft heads do not learn; name another")
    if not vocabulary.positions.is_flat:
        raise ValueError(f"model: {cfg.model} writes several codes at a position, which is not guessed; name another")
    inputs = describe_inputs(template, media, model)
    limit = int(model.config.get_text_config().max_position_embeddings)
    corpus = Corpus(cfg.corpus, template, media, keep_codes=not flags.dry_run, max_positions=limit)
    engine, sampling = Engine(model, vocabulary), read_sampling(cfg.model)

    # the heads, the only thing that learns
    if cfg.heads.own_rows and isinstance(model.get_output_embeddings(), ImageHead):
        raise ValueError("heads.own_rows: the codes of this model are not scored by a matrix; leave it out")
    width = int(model.config.get_text_config().hidden_size)
    heads = make_draft_heads(cfg.heads, width, vocabulary.size, cfg.loop.seed).to(parallel.device)
    copy_head_rows(heads, model)
    groups, rule = HeadGroups.from_vocabulary(vocabulary), read_logit_rule(model)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    set_attention(model)

    def compute_loss(batch: PackedBatch, step: int) -> WeightedLoss:
        ids, labels, positions, *_ = to_tensors(batch, parallel.device)
        with torch.no_grad():
            packing = Packing.from_position_ids(positions)
            hidden = model.get_decoder()(
                input_ids=ids, position_ids=positions, use_cache=False, packing=packing
            ).last_hidden_state.float()
        targets = shift_labels(labels, positions)
        generator = torch.Generator().manual_seed(mix64(cfg.loop.seed ^ mix64(step)))
        losses = compute_future_losses(
            heads, hidden, ids, targets, positions, embed, head, groups, rule=rule,
            most=cfg.states_per_batch, generator=generator,
        )  # fmt: skip
        found = sum_future_losses(losses, cfg.decay)
        total = found.total + 0.0 * sum(weight.sum() for weight in heads.parameters())  # a batch may have no answers
        return WeightedLoss(total, found.weight, found.per_block, int((batch.segment_ids > 0).sum()))

    num = sum(weight.numel() for weight in heads.parameters())
    print(f"{cfg.heads.kind} heads, {cfg.heads.num_ahead} tokens ahead: {num:,} weights learn", file=sys.stderr)
    if flags.dry_run:
        batch = corpus.make_batches().next_batch()
        loss = compute_loss(batch, 0)
        whose = f"{cfg.own_answers:,} of the model's own answers" if cfg.own_answers else "their answers"
        print(f"{sum(corpus.counts.values()):,} documents; learns from {whose}")
        print(f"untrained: {float(loss.total.detach()) / max(loss.weight, 1e-12):.3f} nats a token ahead, in one batch")
        return
    corpus.encode()
    corpus.check()
    loop = count_steps(cfg.loop, corpus, parallel)
    identity = describe_run(cfg, inputs, corpus, cfg.loop, parallel)
    if cfg.own_answers:
        documents = find_own_answers(cfg, engine, corpus, sampling, hash_json(sorted(identity.items())))
        pad, tokens = vocabulary.get_control_id("<|pad|>"), max(cfg.corpus.tokens_per_batch, cfg.corpus.length)
        mixture = Mixture({"own": documents}, {"own": 1.0}, cfg.corpus.seed)
        batches = Batches(mixture, cfg.corpus.length, tokens, pad, "pack", cfg.corpus.batches_per_window)
    else:
        batches = corpus.make_batches(whole_passes=cfg.loop.epochs is not None)
    validation = corpus.make_validation_batches()
    trainer = Trainer(
        heads, batches, compute_loss, loop, cfg.run, validation=validation, identity=identity, restart=flags.restart
    )
    trainer.run()
    if not trainer.use_best():
        trainer.use_ema()

    save_draft_heads(out, heads, vocabulary.size)
    held_out = list(split_documents(validation))
    tried = held_out or [one[number] for one in corpus.sets.values() for number in range(min(cfg.tries, len(one)))]
    kind = "held-out" if held_out else "training"
    count_passes(cfg, engine, load_draft_heads(out, model, vocabulary.size), tried, kind)
    print(f"wrote {out}", file=sys.stderr)


def find_own_answers(
    cfg: DraftRecipe, engine: Engine, corpus: Corpus, sampling: Mapping[str, MediumSettings], identity: str
) -> list[Rendered]:
    """The model's own answers: those of a run that was interrupted, or new ones."""
    path = cfg.run / f"own_answers-{identity}.npz"
    if path.is_file():
        return read_documents(path)

    def tell(done: int, of: int) -> None:
        print(f"{done} of {of} answers", file=sys.stderr, flush=True)

    documents = write_own_answers(engine, list(corpus.sets.values()), sampling, cfg.own_answers, cfg.corpus.seed, tell)
    store_documents(path, documents)
    return documents


def count_passes(cfg: DraftRecipe, engine: Engine, heads: DraftHeads, documents: list[Rendered], kind: str) -> None:
    """Print, by medium, the passes of an answer with the heads and without, and the processor time of both."""
    sampling = read_sampling(cfg.model)
    method = DraftHeadDecoder(heads=heads, embed=engine.model.get_input_embeddings())
    sums: dict[str, list[float]] = {}
    asked = [request for request in (find_request(one, engine.vocabulary) for one in documents) if request is not None]
    for number, request in enumerate(asked[: cfg.tries]):
        config = make_request_config(request, engine.vocabulary, sampling, engine.max_positions, number)
        begun = time.process_time()
        plain = engine.generate([request.prompt], config)
        middle, passes = time.process_time(), engine.stats.forwards
        same = engine.generate([request.prompt], config, method=method) == plain
        found = sums.setdefault(request.medium, [0.0] * 6)
        new = (1, passes, engine.stats.forwards, same, middle - begun, time.process_time() - middle)
        sums[request.medium] = [old + one for old, one in zip(found, new, strict=True)]
    for medium, (num, plain_passes, passes, same, before, after) in sorted(sums.items()):
        print(
            f"{medium}: {num:.0f} {kind} requests, {plain_passes / num:.1f} passes each, {passes / num:.1f} with the "
            f"heads ({plain_passes / passes:.2f}× fewer), {before / after:.2f}× as fast; "
            f"{same:.0f} of {num:.0f} answers the same"
        )


if __name__ == "__main__":
    run_training(DraftRecipe, run)
