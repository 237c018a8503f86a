"""Gives a trained model a reader of pictures: frozen encoders, and a small map of their features into its prompt.

    python recipes/train_reader.py recipes/configs/reader.yaml [--set encoders=[lite0]] [--dry-run]

With one encoder the map is a matrix (LiMBeR), with two it fuses them (CoME-VL). ``model`` is a model folder of ours,
whole; it stays as it is, and so do its words, its drawings and what it hears: only pictures in questions are read
through the features from then on. An encoder is `lite0` or `lite1`, or a vision transformer of transformers by hub id
or folder (CLIP, SigLIP, DINOv2, DINOv3, BEiT, ViT). ``dataset`` are files of any format that unimodal.data.datasets
reads; rows that show pictures and answer in words are learnt from. Writes a whole model folder to ``out``, with the
reader in ``image_reader``. Interrupt it when you like; the same command goes on, and with --restart it begins anew.

At the end it says the loss of held-out answers with their own pictures, and with another document's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field

from unimodal.config import MAY_CHANGE, Config, save_config
from unimodal.corpus.read_documents import AnyReader, ReadDocuments, give_reader, keep_readable
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.model.adapter_files import is_adapter
from unimodal.model.attention import set_attention
from unimodal.model.base import load_base
from unimodal.model_folder.layout import VOCABULARY_FILE, locate_reader
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.reader import ReaderLoss
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.tokenizers import hash_stored
from unimodal.tokenizers.readers.come_vl import CoMEVLConfig, CoMEVLReader
from unimodal.tokenizers.readers.frozen_encoder import FrozenEncoder
from unimodal.tokenizers.readers.limber import LimberConfig, LimberReader
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import hash_weights
from unimodal.tuning.in_memory import InMemoryRecipe, train_in_memory
from unimodal.tuning.loss import read_values, to_tensors
from unimodal.vocabulary import read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary


class FusionConfig(Config):
    """Of two encoders: see `tokenizers/readers/come_vl.py`."""

    first_layers: tuple[int, ...] | None = None
    second_layers: tuple[int, ...] | None = None
    hidden: int = 256
    heads: int = 8
    reach: float | None = 0.25
    pool: int = 1
    dropout: float = 0.1
    orthogonal: Literal["matrix_exp", "cayley"] = "matrix_exp"


class ReaderRecipe(InMemoryRecipe):
    model: Annotated[Path, MAY_CHANGE] = Path("model_cards/nano")
    encoders: tuple[str, ...] = Field(default=("lite0",), min_length=1, max_length=2)
    image_sizes: tuple[int, ...] = ()  # of each encoder's pictures; by default its own
    fusion: FusionConfig = FusionConfig()
    dataset: DatasetConfig
    loss: LossConfig = LossConfig()
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/reader")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/reader")


def run(cfg: ReaderRecipe, flags: Flags) -> None:
    if not (cfg.model / VOCABULARY_FILE).is_file() or is_adapter(cfg.model):
        raise ValueError(f"model: {cfg.model} is no whole model folder; name one, or merge the adapter by its export")
    parallel = cfg.begin({"model": cfg.model})
    device = parallel.device

    # the model, which stays as it is, and the reader that it gets
    base = load_base(str(cfg.model))
    vocabulary = read_vocabulary(cfg.model / VOCABULARY_FILE)
    if isinstance(vocabulary, AdoptedVocabulary) or not vocabulary.positions.is_flat:
        raise ValueError(f"model: {cfg.model} has another format or summed positions; name a model of ours without")
    model = base.model.to(device).requires_grad_(False)
    set_attention(model)
    reader = make_reader(cfg, int(model.config.hidden_size)).to(device)
    scale_to_rows(reader, model, vocabulary.text_size)
    template = Template(
        give_reader(vocabulary, reader.num_features, ""), TextTokenizer(cast(TokenizerData, base.tokenizer))
    )

    # the documents, whose pictures the encoders see once
    documents = keep_readable(open_dataset(cfg.dataset))
    cfg.split(documents, "documents that show a picture and answer in words")
    limit = min(cfg.length, int(model.config.max_position_embeddings))
    read = ReadDocuments(documents, template, reader, limit)
    learnt, kept = cfg.split([read[n] for n in range(len(read))], "documents")
    inputs = {"model weights": hash_weights(model), "documents": f"{len(read):,} documents, {read.hash()[:32]}"}
    module = ReaderLoss(model, template.vocabulary, reader, read.find_seen, cfg.loss)
    pad = vocabulary.get_control_id("<|pad|>")

    def describe() -> str:
        weights = sum(p.numel() for p in reader.parameters() if p.requires_grad)
        return f"{len(learnt):,} documents; {reader.num_features} features a picture; {weights:,} weights learn"

    trained = train_in_memory(cfg, flags, parallel, module, learnt, kept, pad, inputs, describe)
    if trained and parallel.is_main:
        save_reader(cfg, reader.eval(), template)
        print(f"wrote {cfg.out}", file=sys.stderr)
        report_reading(module.eval(), kept, cfg.length, pad, device)
    parallel.close()


def make_reader(cfg: ReaderRecipe, width: int) -> AnyReader:
    """A reader with the encoders' weights. width: of the decoder."""
    sizes = cfg.image_sizes or (None,) * len(cfg.encoders)
    if len(sizes) != len(cfg.encoders):
        raise ValueError(f"image_sizes has {len(sizes)} sizes for {len(cfg.encoders)} encoders; give one for each")
    opened = [FrozenEncoder.open(source, size) for source, size in zip(cfg.encoders, sizes, strict=True)]
    torch.manual_seed(cfg.loop.seed)
    reader: AnyReader
    if len(opened) == 1:
        reader = LimberReader(LimberConfig(width=width, encoder=opened[0].settings))
        reader.encoder.load_state_dict(opened[0].state_dict())
        return reader
    first, second = (one.settings for one in opened)
    reader = CoMEVLReader(CoMEVLConfig(width=width, first=first, second=second, **cfg.fusion.model_dump()))
    reader.first.load_state_dict(opened[0].state_dict())
    reader.second.load_state_dict(opened[1].state_dict())
    return reader


@torch.no_grad()
def scale_to_rows(reader: AnyReader, model: torch.nn.Module, num_rows: int) -> None:
    """Begin with embeddings of about the size of the model's own rows: a map's usual ones are far larger or smaller."""
    table = model.get_input_embeddings()
    rows = table(torch.arange(min(num_rows, 4096), device=next(model.parameters()).device)).float()
    size = reader.picture_size or (64, 64)
    seen = reader.look(torch.rand(4, 3, *size, device=rows.device))
    last = reader.linear if isinstance(reader, LimberReader) else reader.out
    found = reader.map(seen).std()
    last.weight *= rows.std() / found.clamp_min(1e-6)
    last.bias.copy_(rows.mean(0))


def save_reader(cfg: ReaderRecipe, reader: AnyReader, template: Template) -> None:
    """The model's folder with the reader in it; its vocabulary says how pictures are read."""
    shutil.copytree(cfg.model, cfg.out, dirs_exist_ok=True)
    folder = locate_reader(cfg.out, "image")
    reader.save(folder)
    given = give_reader(template.vocabulary, reader.num_features, hash_stored(folder))
    given.save(cfg.out / VOCABULARY_FILE)
    save_config(cfg, cfg.out / "reader.yaml")


@torch.inference_mode()
def report_reading(module: ReaderLoss, kept: Sequence[Rendered], length: int, pad: int, device: torch.device) -> None:
    """Print the loss of held-out answers with their own pictures, and with those of the next document."""
    if len(kept) < 2:
        return
    sides = []
    for shift in (0, 1):
        total, weight = 0.0, 0.0
        for document, other in zip(kept, [*kept[shift:], *kept[:shift]], strict=True):
            assert document.values is not None and other.values is not None
            own, theirs = document.values > 0, other.values[other.values > 0]
            values = np.zeros_like(document.values)
            values[own] = np.resize(theirs, int(own.sum()))
            batch = stack(pack([replace(document, values=values)], length, pad))
            found, parts = module(*to_tensors(batch, device), **read_values(batch, device))
            total, weight = total + float(found), weight + parts["weight"]
        sides.append(total / weight)
    print(
        f"{len(kept)} held-out answers: {sides[0]:.3f} nats a token with their own pictures, {sides[1]:.3f} with others"
    )


if __name__ == "__main__":
    run_training(ReaderRecipe, run)
