"""Teaches a pretrained language model to see, hear and draw: LoRA on its layers and new rows for the media codes.

    python recipes/finetune_lora.py recipes/configs/quickstart.yaml [--set loop.steps=50] [--dry-run]
    torchrun --nproc-per-node 2 recipes/finetune_lora.py recipes/configs/quickstart.yaml

``base`` is any causal language model by hub id or folder, ``media`` a model folder whose tokenizers are used (for a
converted Chameleon, Emu3 or Janus the base's own folder: it gets LoRA alone, its rows are there), and
``corpus.datasets`` are files of any format that unimodal.data.datasets reads. Writes an adapter folder to ``out`` that
`unimodal chat --model` and `unimodal.pipeline.load` take; the base is named in it, not copied. Interrupt it when you
like; the same command goes on, and with
--restart it begins anew. ``run/tokenizers`` is what recipes/tokenize_dataset.py takes as ``model`` to encode a
large corpus once; a dataset whose path holds such shards is read from them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch

from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.evaluation import run_suite
from unimodal.model.base import SMOLLM2, Precision, load_base
from unimodal.model.build import build_model
from unimodal.model.depth_decoder import DepthSettings
from unimodal.model.fourier_head import FourierSettings
from unimodal.model.initial_adapter import begin_from_adapter, list_initial_files
from unimodal.model.lora import LoraSettings
from unimodal.model.prompt_files import list_prompt_files
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.soft_prompt import list_prompt_ids
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import start
from unimodal.training.settings import LoopConfig
from unimodal.tuning.identity import describe_inputs, describe_resumed_run
from unimodal.tuning.objective import check_objective, list_weight_files, make_objective
from unimodal.tuning.plan import check_validation, describe_plan, try_one_step
from unimodal.tuning.prompt_start import read_prompt_start
from unimodal.tuning.push import PushSettings, check_push, push_tuned
from unimodal.tuning.rollout import make_batches
from unimodal.tuning.rows import (
    collect_block_features,
    collect_shared_features,
    describe_controls,
    read_donor,
    read_row_words,
)
from unimodal.tuning.save import check_folders, check_room, find_writing, save_tokenizers, save_tuned
from unimodal.tuning.trainer import make_trainer
from unimodal.tuning.vocabulary import make_feature_memory, make_joint_template, open_media
from unimodal.tuning.watching import WatchConfig, look_before, make_watcher


class LoraRecipe(Config):
    base: Annotated[str, MAY_CHANGE] = SMOLLM2
    media: Annotated[Path | None, MAY_CHANGE] = Path("model_cards/nano")
    corpus: CorpusConfig
    #: an adapter folder whose LoRA and rows this run begins from, to go on with other data or another objective
    initial: Annotated[Path | None, MAY_CHANGE] = None
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/lora")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/lora")
    push: Annotated[PushSettings | None, MAY_CHANGE] = None  # the model, whole, goes to the Hub at the end
    lora: LoraSettings | None = LoraSettings()  # null trains the new rows alone
    #: a soft prompt before every document (docs/objectives.md), beside LoRA or, with lora=null, in its place
    prompt: PromptSettings | None = None
    #: media of tokenizers with several codes a step, such as [image], that take one position a step in place of one a
    #: code: the model reads the sum of their rows, and a small network of the size `depth` writes them
    #: (docs/vocabulary.md, "Several codes a step at one position"); such a model is not exported
    summed: tuple[str, ...] = ()
    #: medium → the order in which the codes of its books are written: flat, delay, coarse_first
    code_order: dict[str, str] = {}
    depth: DepthSettings = DepthSettings()
    fourier: FourierSettings | None = None  # blocks of ordered codes that a smooth density scores; not exported
    initialiser: str = "codebook"
    #: JSON {block: [words of each code]}: rows of codes that have a name begin as its words
    row_words: Annotated[Path | None, MAY_CHANGE] = None
    #: codes that are alike learn together: what is trained on is fitted sooner, what is held out is not known better
    #: (measured: the docstring of unimodal/model/rows.py)
    share_rows: bool = False
    donor: Annotated[Path | None, MAY_CHANGE] = (
        None  # a trained model of ours with the same tokenizers, for initialiser omp
    )
    base_precision: Precision = "float32"
    eight_bit: bool = False  # the base's linear layers in 8 bits (bitsandbytes)
    four_bit: bool = False  # or in 4 (QLoRA)
    attention: Annotated[str, MAY_CHANGE] = "auto"
    loss: LossConfig = LossConfig()
    #: what the model is asked and measured by at every validation
    watch: Annotated[WatchConfig | None, MAY_CHANGE] = None
    #: what is learnt in place of the next token (docs/objectives.md)
    objective: ObjectiveConfig = ObjectiveConfig()
    loop: LoopConfig = LoopConfig(
        steps=500, learning_rate=1e-3, final_learning_rate=5e-5, warmup_steps=20, log_every=10, weight_decay=0.0
    )


def run(cfg: LoraRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    sources = {
        "base": cfg.base,
        "media": cfg.media,
        "donor": cfg.donor,
        "initial": cfg.initial,
        "prompt.source": cfg.prompt and cfg.prompt.source,
    }
    check_folders(cfg.out, cfg.run, cfg.corpus.codes, sources)
    check_validation(cfg.loop, cfg.corpus, cfg.watch is not None)
    check_objective(cfg.objective, cfg.loss)
    writing = find_writing(cfg.objective, cfg.base)
    check_push(cfg.push, cfg.media, cfg.summed, cfg.fourier is not None, writing)
    parallel = start("ddp")
    device, main = parallel.device, parallel.is_main

    # the base, and the vocabulary behind its rows
    base = load_base(cfg.base, cfg.base_precision, cfg.eight_bit, cfg.four_bit)
    media = open_media(cfg.media, device)
    template = make_joint_template(base, media, cfg.summed, cfg.code_order)
    max_positions = int(base.model.config.max_position_embeddings)

    inputs = describe_inputs(
        template, media, base.model,
        {"donor": cfg.donor and cfg.donor / "model.safetensors", "row_words": cfg.row_words}
        | list_initial_files(cfg.initial)
        | list_prompt_files(cfg.prompt, cfg.base)
        | list_weight_files(cfg.objective),
    )  # fmt: skip

    # the model: frozen base, LoRA, and new rows on both sides
    named = read_row_words(cfg.row_words, template) if cfg.row_words else {}
    model = build_model(
        base,
        template.vocabulary,
        cfg.lora,
        initialiser=cfg.initialiser,
        features=collect_block_features(template.vocabulary, media, named) if cfg.initialiser == "codebook" else None,
        words=describe_controls(template) | named if template.vocabulary.size > base.num_rows else None,
        donor=read_donor(cfg.donor, template) if cfg.donor else None,
        shared=collect_shared_features(template.vocabulary, media) if cfg.share_rows else None,
        seed=cfg.loop.seed,
        attention=cfg.attention,
        depth=cfg.depth,
        fourier=cfg.fourier,
        prompt=cfg.prompt,
        prompt_words=read_prompt_start(cfg.prompt, cfg.corpus, template, media, not flags.dry_run),
    )
    if cfg.initial is not None:
        taken = begin_from_adapter(model, cfg.initial, template.vocabulary)
        if main:
            print(f"begins from {cfg.initial}: {taken:,} of its new rows", file=sys.stderr)
    if not (cfg.eight_bit or cfg.four_bit):
        model.to(device)
    check_room(cfg.out, model, whole=False)
    module = make_objective(cfg.objective, cfg.loss, model, template, media)

    # the data in that vocabulary
    features = make_feature_memory(model, template, media)
    before = list_prompt_ids(model)
    corpus = Corpus(cfg.corpus, template, media, not flags.dry_run, max_positions, features, cfg.objective.rows, before)
    batches = make_batches(module, corpus, media, cfg.loop, parallel)
    if flags.dry_run:
        first = batches.next_batch()
        if main:
            print(describe_plan(model, template, corpus, first))
            print(try_one_step(module, first, device))
            print(describe_resumed_run(cfg.run, cfg, inputs, cfg.loop, flags.restart))
        return parallel.close()

    watcher = make_watcher(cfg.watch, cfg.loop, model, template, cfg.run, run_suite, features is not None)
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
    if main:
        save_tuned(cfg.out, model, cfg.base, template, media, cfg, writing)
        print(f"wrote {cfg.out}", file=sys.stderr)
        if cfg.push is not None:
            push_tuned(cfg.out, cfg.push)
    parallel.close()


if __name__ == "__main__":
    run_training(LoraRecipe, run)
