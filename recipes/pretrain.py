"""Trains a stock Llama from scratch on documents of text, pictures, video and audio.

    python recipes/pretrain.py recipes/configs/pretrain.yaml [--set loop.steps=50] [--dry-run]
    torchrun --nproc-per-node 8 recipes/pretrain.py recipes/configs/pretrain.yaml

``text`` is a folder with a tokenizer.json, ``media`` a model folder whose tokenizers are used, and ``corpus.datasets``
are datasets of any format or, for a corpus of any size, token shards of recipes/tokenize_dataset.py (made with
``model=RUN/tokenizers``, which this recipe writes first). Under torchrun everything is split over the ranks (FSDP2).
recipes/train_nano.py is the same for the data of nano, with rows that share structure. The same command goes on after
an interruption.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch

from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.evaluation import run_suite
from unimodal.model.attention import set_attention
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.depth_decoder import DepthSettings, add_depth_decoder
from unimodal.model.fourier_head import FourierSettings, add_fourier_heads
from unimodal.model.tokenformer import PattentionSettings, check_tokenformer, make_tokenformer
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.text.tokenizer import TextTokenizer
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import start
from unimodal.training.settings import LoopConfig
from unimodal.tuning.identity import describe_inputs, describe_resumed_run
from unimodal.tuning.objective import check_objective, make_objective
from unimodal.tuning.plan import check_validation, describe_plan, try_one_step
from unimodal.tuning.push import PushSettings, check_push, push_tuned
from unimodal.tuning.save import check_folders, check_room, find_writing, save_tokenizers, save_tuned
from unimodal.tuning.trainer import make_trainer
from unimodal.tuning.vocabulary import make_template, open_media
from unimodal.tuning.watching import WatchConfig, look_before, make_watcher


class PretrainRecipe(Config):
    text: Annotated[Path, MAY_CHANGE] = Path(
        "model_cards/nano"
    )  # a folder with the tokenizer.json of a text tokenizer or of a model
    media: Annotated[Path | None, MAY_CHANGE] = Path("model_cards/nano")
    corpus: CorpusConfig
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/pretrained")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/pretrained")
    push: Annotated[PushSettings | None, MAY_CHANGE] = None  # the model, whole, goes to the Hub at the end
    decoder: NanoConfig = NanoConfig()
    #: layers that attend to parameters, which grow when trained (docs/objectives.md); such a model is not exported
    pattention: PattentionSettings | None = None
    #: media of tokenizers with several codes a step, such as [image], that take one position a step in place of one a
    #: code: the model reads the sum of their rows, and a small network of the size `depth` writes them
    #: (docs/vocabulary.md, "Several codes a step at one position"); such a model is not exported
    summed: tuple[str, ...] = ()
    #: medium → the order in which the codes of its books are written: flat, delay, coarse_first
    code_order: dict[str, str] = {}
    depth: DepthSettings = DepthSettings()
    fourier: FourierSettings | None = None  # blocks of ordered codes that a smooth density scores; not exported
    attention: Annotated[str, MAY_CHANGE] = "auto"
    loss: LossConfig = LossConfig(z_loss=1e-5)
    #: what the model is asked and measured by at every validation
    watch: Annotated[WatchConfig | None, MAY_CHANGE] = None
    #: what is learnt in place of the next token (docs/objectives.md)
    objective: ObjectiveConfig = ObjectiveConfig()
    loop: LoopConfig = LoopConfig(
        steps=5000, learning_rate=2e-3, final_learning_rate=5e-5, warmup_steps=200, log_every=20, betas=(0.9, 0.98)
    )


def run(cfg: PretrainRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    source = cfg.pattention and cfg.pattention.source
    check_folders(cfg.out, cfg.run, cfg.corpus.codes, {"media": cfg.media, "pattention.source": source})
    check_validation(cfg.loop, cfg.corpus, cfg.watch is not None)
    check_objective(cfg.objective, cfg.loss, from_nothing=True)
    writing = find_writing(cfg.objective)
    check_push(cfg.push, cfg.media, cfg.summed, cfg.fourier is not None, writing)
    check_tokenformer(cfg.pattention, cfg.push is not None, bool(cfg.summed))
    if cfg.loss.keep_share < 1:
        raise ValueError("loss.keep_share below 1 needs weights that know something; use it in fine-tuning")
    parallel = start("fsdp")
    device, main = parallel.device, parallel.is_main

    # text rows, controls, one block a codebook; and the data in them
    text = TextTokenizer.load(cfg.text)
    media = open_media(cfg.media, device)
    template = make_template(text, text.size, media, cfg.summed, cfg.code_order)
    inputs = describe_inputs(template, media, files={"pattention.source": source and source / "model.safetensors"})
    corpus = Corpus(cfg.corpus, template, media, keep_codes=not flags.dry_run, max_positions=cfg.decoder.max_positions)

    control = template.vocabulary.get_control_id

    def make_model() -> torch.nn.Module:
        made = build_nano(
            template.vocabulary.size,
            cfg.decoder,
            pad_id=control("<|pad|>"),
            bos_id=control("<|bos|>"),
            eos_id=control("<|end_of_turn|>"),
            seed=cfg.loop.seed,
        )
        if cfg.pattention is not None:
            make_tokenformer(made, cfg.pattention, cfg.loop.seed)
        add_depth_decoder(made, template.vocabulary, cfg.depth, cfg.loop.seed)
        if cfg.fourier is not None:
            add_fourier_heads(made, template.vocabulary, cfg.fourier, cfg.loop.seed)
        return made

    model = make_model().to(device)
    set_attention(model, cfg.attention)
    check_room(cfg.out, model, whole=True)
    module = make_objective(cfg.objective, cfg.loss, model, template, media)
    batches = corpus.make_batches(parallel.rank, parallel.num_ranks, whole_passes=cfg.loop.epochs is not None)
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
        save_tokenizers(cfg.run / "tokenizers", template, media, cfg.decoder.max_positions, writing)
    look_before(watcher, cfg.loop, cfg.run, parallel)
    trainer.run()
    if not trainer.use_best():
        trainer.use_ema()

    # whole tensors again, in a model that was never split
    state = parallel.gather_state(model)
    if main:
        whole = make_model()
        whole.load_state_dict(state)
        save_tuned(cfg.out, whole, None, template, media, cfg, writing)
        print(f"wrote {cfg.out}", file=sys.stderr)
        if cfg.push is not None:
            push_tuned(cfg.out, cfg.push)
    parallel.close()


if __name__ == "__main__":
    run_training(PretrainRecipe, run)
