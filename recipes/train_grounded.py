"""Teaches a model masks and boxes: what lies under one, where something is, and everything named and marked at once.

    python tools/prepare_scenes.py                                            # pictures, and what they are drawn of
    python tools/prepare_grounded.py                                          # masks as files, for their tokenizer
    python recipes/train_tokenizer.py recipes/configs/mask_tokenizer.yaml     # with the plugin of masks
    python recipes/train_grounded.py recipes/configs/grounded.yaml [--set loop.steps=200] [--dry-run]
    unimodal evaluate --model data/models/grounded --suite grounding          # with both plugins

Masks are up to so many codes of HiMTok, boxes four codes on a grid, both written by the decoder as any other medium;
the tasks are in `unimodal/data/grounded/tasks.py`. ``base`` is a model of ours, which keeps what it knows, or a stock
causal LM, which then reads pictures by the tokenizer of ``media``. A model with masks is used with
``UNIMODAL_PLUGINS=unimodal.tokenizers.more_media.masks,unimodal.tokenizers.more_media.boxes``. Interrupt it when you
like; the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import unimodal.tokenizers.more_media.masks  # noqa: F401 - registers the medium
from unimodal.coder.media_coder import MediaCoder, load_coder
from unimodal.config import MAY_CHANGE, Config, save_config
from unimodal.data.grounded.coded import CodedScenes, PlannedScenes, code_scenes
from unimodal.data.grounded.tasks import MEDIA_OF_TASK, GroundedSource, check_shares
from unimodal.data.mixture import Batches, Mixture
from unimodal.model.attention import Packing, set_attention
from unimodal.model.base import load_base
from unimodal.model.build import count_parameters
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import MediumSettings, ProcessorConfig, read_processor, read_sampling
from unimodal.model_folder.write import save_model
from unimodal.objectives.next_token import HeadGroups, compute_sliced_cross_entropy
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.more_media.boxes import BoxConfig, BoxTokenizer
from unimodal.tokenizers.registry import load_tokenizer
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import describe_resume, describe_settings, hash_files, hash_json, hash_weights
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig
from unimodal.tuning.grown import grow_base
from unimodal.vocabulary import make_media_vocabulary

QUESTION = "What is this?"  # about a mask or a box that comes without words


class GroundedRecipe(Config):
    base: Annotated[str, MAY_CHANGE] = "model_cards/nano"
    media: Annotated[Path | None, MAY_CHANGE] = None  # whose pictures a stock base reads; None: the base's own
    masks: Annotated[Path, MAY_CHANGE] = Path("data/models/mask_tokenizer")
    data: Annotated[Path, MAY_CHANGE] = Path("data/prepared")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/grounded")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/grounded")
    num_bins: int = 65  # of a side of a box: every pixel of a picture of 64
    pictures: int = Field(6000, ge=1)  # that are learnt from, at most
    questions: int = Field(4, ge=1)  # about one picture, at most
    #: share of the questions; a task that is left out is not learnt
    shares: dict[str, float] = {
        "mask_to_name": 1.0,
        "box_to_name": 1.0,
        "words_to_mask": 1.0,
        "words_to_box": 1.0,
        "all_at_once": 0.5,
    }
    planned_passes: int = Field(40, ge=1)  # over the pictures, each time with other questions
    tokens_per_step: int = Field(2048, ge=1)
    text_weight: float = Field(2.0, gt=0)  # of a text label against a code, since names are short
    attention: Annotated[str, MAY_CHANGE] = "auto"
    loop: LoopConfig = LoopConfig(
        steps=1200, learning_rate=1e-3, final_learning_rate=5e-5, warmup_steps=30, log_every=20, betas=(0.9, 0.98),
        optimizer="muon",
    )  # fmt: skip


class Documents:
    """The documents of a source: document i is draw i // items of picture i % items."""

    def __init__(self, source: GroundedSource, passes: int, template: Template):
        self.source, self.passes, self.template = source, passes, template

    def __len__(self) -> int:
        return len(self.source) * self.passes

    def __getitem__(self, index: int) -> Rendered:
        draw, item = divmod(index, len(self.source))
        return self.template.render(self.source.make_document(item, draw))


def open_tokenizers(cfg: GroundedRecipe) -> tuple[list[MediaTokenizer], ProcessorConfig, dict[str, MediumSettings]]:
    """The tokenizers of all media, and how the model in ``media`` or ``base`` reads files and writes answers.

    Raises ValueError for a folder without them, and for media that the base brings along but pictures.
    """
    needed = {MEDIA_OF_TASK[task] for task, share in cfg.shares.items() if share}
    own = (Path(cfg.base) / VOCABULARY_FILE).is_file()
    folder = Path(cfg.base) if cfg.media is None else cfg.media
    if not (folder / VOCABULARY_FILE).is_file():
        raise ValueError(f"media: {folder} has no vocabulary.json; name a model folder, such as model_cards/nano")
    coder = load_coder(folder)
    names = list(coder.vocabulary.media) if own and cfg.media is None else ["image"]
    if "image" not in coder.vocabulary.media:
        raise ValueError(f"media: {folder} has no pictures; name a model that reads them")
    tokenizers = [coder.get_tokenizer(name) for name in names]
    if "mask" in needed and "mask" not in names:
        if not (cfg.masks / "config.json").is_file():
            raise ValueError(
                f"masks: {cfg.masks} holds no tokenizer; train one with "
                "`python recipes/train_tokenizer.py recipes/configs/mask_tokenizer.yaml`"
            )
        tokenizers.append(load_tokenizer(cfg.masks))
    if "box" in needed and "box" not in names:
        tokenizers.append(BoxTokenizer(BoxConfig(num_bins=cfg.num_bins)))
    processor = read_processor(folder)
    wording = processor.wording
    questions = {**dict.fromkeys(sorted(needed), QUESTION), **wording.questions}
    processor = processor.model_copy(update={"wording": wording.model_copy(update={"questions": questions})})
    sampling = {**{name: MediumSettings(temperature=0) for name in sorted(needed)}, **read_sampling(folder)}
    return tokenizers, processor, sampling


def code_pictures(cfg: GroundedRecipe, planned: PlannedScenes, tokenizers: Sequence[MediaTokenizer]) -> CodedScenes:
    """The training scenes with codes. Raises ValueError where there are none."""
    rows = planned.find_rows("train", ("one", "count", "place", "pair"))[: cfg.pictures]
    if not rows:
        raise ValueError(f"there are no training scenes in {cfg.data / 'scenes'}; prepare them again")
    named = {tokenizer.modality: tokenizer for tokenizer in tokenizers}
    some = [named[name] for name in ("image", "mask", "box") if name in named]
    coder = MediaCoder(cfg.out, make_media_vocabulary(some), ProcessorConfig(), tokenizers=some)
    size = named["mask"].picture_size if "mask" in named else None

    def report(done: int, total: int) -> None:
        if done % 640 == 0:
            print(f"coding pictures: {done} of {total}", file=sys.stderr, flush=True)

    return code_scenes(planned, rows, coder.encode, [*named], None if size is None else size[0], report)


def make_tensors(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """→ ids, labels, position ids, each int64 [B, N]."""
    found = [torch.from_numpy(np.ascontiguousarray(a)).long() for a in (batch.ids, batch.labels, batch.position_ids)]
    return found[0], found[1], found[2]


def run(cfg: GroundedRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    if cfg.out.resolve() == Path(cfg.base).resolve():
        raise ValueError(f"out: {cfg.out} is also the base, which would be written over; choose another")
    check_shares(cfg.shares)
    planned = PlannedScenes.load(cfg.data)
    tokenizers, processor, sampling = open_tokenizers(cfg)
    base = load_base(cfg.base)
    template = grow_base(base, tokenizers, cfg.loop.seed)
    vocabulary, model = template.vocabulary, base.model
    identity = describe_settings(cfg) | {
        "scenes": hash_files([cfg.data / "scenes" / name for name in ("scenes.jsonl", "things.json", "sprites.npz")]),
        "vocabulary": hash_json(vocabulary.to_dict()),
        "base": hash_weights(model),
    }
    print(f"{count_parameters(model) / 1e6:.1f} M parameters, {vocabulary.size} rows", file=sys.stderr)
    if flags.dry_run:
        return print(describe_resume(cfg.run, identity, flags.restart), file=sys.stderr)
    source = GroundedSource(code_pictures(cfg, planned, tokenizers), cfg.shares, cfg.questions, cfg.loop.seed)
    documents = Documents(source, cfg.planned_passes, template)
    print(f"{len(source)} pictures, e.g. {len(documents[0])} tokens with their questions", file=sys.stderr)
    mixture = Mixture({"grounded": documents}, seed=cfg.loop.seed, sizes={"grounded": len(source)})
    length = min(cfg.tokens_per_step, int(model.config.max_position_embeddings))
    pad_id = vocabulary.get_control_id("<|pad|>")
    batches = Batches(mixture, length, cfg.tokens_per_step, pad_id, "pack", batches_per_window=8)
    set_attention(model, cfg.attention)
    groups = HeadGroups.from_vocabulary(vocabulary)

    def loss(batch: PackedBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        ids, labels, positions = make_tensors(batch)
        result = compute_sliced_cross_entropy(
            model, ids, labels, groups, position_ids=positions, modality_weights={"text": cfg.text_weight},
            packing=Packing.from_position_ids(positions),
        )  # fmt: skip
        return result.mean, {f"loss_{name}": part / count for name, (part, count) in result.per_block.items() if count}

    model.train()
    trainer = Trainer(model, batches, loss, cfg.loop, cfg.run, identity=identity, restart=flags.restart)
    trainer.run()
    trainer.use_ema()
    named = {tokenizer.modality: tokenizer for tokenizer in tokenizers}
    save_model(cfg.out, model.eval(), vocabulary, template.text, named, processor, sampling)
    save_config(cfg, cfg.out / "recipe.yaml")
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    run_training(GroundedRecipe, run)
