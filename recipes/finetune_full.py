"""Teaches a pretrained language model to see, hear and draw by training all of it: every weight and the new rows.

    python recipes/finetune_full.py recipes/configs/finetune_full.yaml [--set loop.steps=50] [--dry-run]
    torchrun --nproc-per-node 8 recipes/finetune_full.py recipes/configs/finetune_full.yaml

The settings are those of finetune_lora.py without its adapter. Under torchrun weights, gradients and optimizer state
are split over the ranks (FSDP2). Writes a whole stock model with its tokenizers to ``out``. Interrupt it when you like;
the same command, on as many ranks, goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch

from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.evaluation import run_suite
from unimodal.model.adapter import merge
from unimodal.model.base import SMOLLM2, load_base
from unimodal.model.build import build_model
from unimodal.model.depth_decoder import DepthSettings
from unimodal.model.fourier_head import FourierSettings
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import start
from unimodal.training.settings import LoopConfig
from unimodal.tuning.identity import describe_inputs, describe_resumed_run
from unimodal.tuning.objective import check_objective, list_weight_files, make_objective
from unimodal.tuning.plan import check_validation, describe_plan, try_one_step
from unimodal.tuning.push import PushSettings, check_push, push_tuned
from unimodal.tuning.rollout import make_batches
from unimodal.tuning.rows import collect_block_features, describe_controls, read_donor
from unimodal.tuning.save import check_folders, check_room, find_writing, save_tokenizers, save_tuned
from unimodal.tuning.trainer import make_trainer
from unimodal.tuning.vocabulary import make_joint_template, open_media
from unimodal.tuning.watching import WatchConfig, look_before, make_watcher


class FullRecipe(Config):
    base: Annotated[str, MAY_CHANGE] = SMOLLM2
    media: Annotated[Path | None, MAY_CHANGE] = Path("model_cards/nano")
    corpus: CorpusConfig
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/full")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/full")
    push: Annotated[PushSettings | None, MAY_CHANGE] = None  # the model, whole, goes to the Hub at the end
    #: media of tokenizers with several codes a step, such as [image], that take one position a step in place of one a
    #: code: the model reads the sum of their rows, and a small network of the size `depth` writes them
    #: (docs/vocabulary.md, "Several codes a step at one position"); such a model is not exported
    summed: tuple[str, ...] = ()
    #: medium → the order in which the codes of its books are written: flat, delay, coarse_first
    code_order: dict[str, str] = {}
    depth: DepthSettings = DepthSettings()
    fourier: FourierSettings | None = None  # blocks of ordered codes that a smooth density scores; not exported
    initialiser: str = "codebook"
    donor: Annotated[Path | None, MAY_CHANGE] = (
        None  # a trained model of ours with the same tokenizers, for initialiser omp
    )
    attention: Annotated[str, MAY_CHANGE] = "auto"
    loss: LossConfig = LossConfig(z_loss=1e-5)
    #: what the model is asked and measured by at every validation
    watch: Annotated[WatchConfig | None, MAY_CHANGE] = None
    #: what is learnt in place of the next token (docs/objectives.md)
    objective: ObjectiveConfig = ObjectiveConfig()
    loop: LoopConfig = LoopConfig(
        steps=1000, learning_rate=1e-4, final_learning_rate=1e-5, warmup_steps=50, log_every=10, weight_decay=0.01
    )


def run(cfg: FullRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    check_folders(cfg.out, cfg.run, cfg.corpus.codes, {"base": cfg.base, "media": cfg.media})
    check_validation(cfg.loop, cfg.corpus, cfg.watch is not None)
    check_objective(cfg.objective, cfg.loss)
    writing = find_writing(cfg.objective, cfg.base)
    check_push(cfg.push, cfg.media, cfg.summed, cfg.fourier is not None, writing)
    parallel = start("fsdp")
    device, main = parallel.device, parallel.is_main

    # the base, the vocabulary behind its rows, and the data in it
    base = load_base(cfg.base)
    media = open_media(cfg.media, device)
    template = make_joint_template(base, media, cfg.summed, cfg.code_order)
    max_positions = int(base.model.config.max_position_embeddings)
    inputs = describe_inputs(
        template,
        media,
        base.model,
        {"donor": cfg.donor and cfg.donor / "model.safetensors"} | list_weight_files(cfg.objective),
    )
    corpus = Corpus(cfg.corpus, template, media, not flags.dry_run, max_positions, rows=cfg.objective.rows)

    # the model: everything is trained, the new rows on both sides as a parameter of their own
    model = build_model(
        base,
        template.vocabulary,
        freeze_base=False,
        initialiser=cfg.initialiser,
        features=collect_block_features(template.vocabulary, media) if cfg.initialiser == "codebook" else None,
        words=describe_controls(template) if template.vocabulary.size > base.num_rows else None,
        donor=read_donor(cfg.donor, template) if cfg.donor else None,
        seed=cfg.loop.seed,
        attention=cfg.attention,
        depth=cfg.depth,
        fourier=cfg.fourier,
    ).to(device)
    check_room(cfg.out, model, whole=True)
    module = make_objective(cfg.objective, cfg.loss, model, template, media)
    batches = make_batches(module, corpus, media, cfg.loop, parallel)
    if flags.dry_run:
        first = batches.next_batch()
        if main:
            print(describe_plan(model, template, corpus, first))
            print(try_one_step(module, first, device))
            print(describe_resumed_run(cfg.run, cfg, inputs, cfg.loop, flags.restart))
        return parallel.close()

    watcher = make_watcher(cfg.watch, cfg.loop, model, template, cfg.run, run_suite)
    trainer = make_trainer(
        cfg, cfg.loop, cfg.run, module, batches, corpus, inputs, parallel, flags.restart, watcher,
        cfg.objective.shares_every,
    )  # fmt: skip
    if main:
        save_tokenizers(cfg.run / "tokenizers", template, media, max_positions, writing)
    look_before(watcher, cfg.loop, cfg.run, parallel)
    trainer.run()
    if not trainer.use_best():
        trainer.use_ema()

    # whole tensors again, in a model that was never split
    state = parallel.gather_state(model)
    if main:
        whole = build_model(
            cfg.base, template.vocabulary, freeze_base=False, initialiser="mean", depth=cfg.depth, fourier=cfg.fourier
        )
        whole.load_state_dict(state)
        save_tuned(cfg.out, merge(whole), None, template, media, cfg, writing)
        print(f"wrote {cfg.out}", file=sys.stderr)
        if cfg.push is not None:
            push_tuned(cfg.out, cfg.push)
    parallel.close()


if __name__ == "__main__":
    run_training(FullRecipe, run)
