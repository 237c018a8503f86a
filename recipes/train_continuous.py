"""Teaches a language model to read and draw pictures as continuous vectors in place of codes (VL-GPT).

    python recipes/train_continuous.py recipes/configs/continuous.yaml [--set media.head=mse] [--dry-run]

``base`` is any causal language model by hub id or folder, ``tokenizer`` the folder of a latent tokenizer of pictures
of one size (`recipes/train_tokenizer.py`, such as system=tatitok-bl32-vae), ``dataset`` files of any format that
unimodal.data.datasets reads, with pictures and words. A picture is read through one linear map and written by a head,
vector after vector, by the same decoder (docs/objectives.md). Writes an adapter folder to ``out``, with the tokenizer;
`generation/vector_writer.py` draws and answers with it. Interrupt it when you like; the same command goes on, and with
--restart it begins anew.

At the end it draws for held-out words and says how often the drawn vectors are nearest to the picture that the words
are of, among all held out.

Shapes: B pictures, N vectors of a picture, K their width.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field

from unimodal.config import MAY_CHANGE, Config
from unimodal.corpus.latent_documents import LatentDocuments, make_latent_template
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.generation.vector_writer import VectorWriter
from unimodal.model.base import SMOLLM2, load_base
from unimodal.model.build import build_model
from unimodal.model.continuous_media import ContinuousSettings, add_continuous_media
from unimodal.model.lora import LoraSettings
from unimodal.model_folder.layout import locate_tokenizer
from unimodal.objectives.continuous import ContinuousLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.sequence.templates.own import Rendered
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.tokenizers.registry import load_latent_tokenizer
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import hash_weights
from unimodal.tuning.in_memory import InMemoryRecipe, train_in_memory
from unimodal.tuning.rows import describe_controls
from unimodal.tuning.save import save_tuned


class ContinuousMediaConfig(Config):
    """The head, of `ContinuousSettings`; medium and width are the tokenizer's. weight: of a vector, a word has 1."""

    head: str = Field(default="flow", pattern="^(mse|cosine|flow)$")
    layers: int = 3
    hidden: int = 256
    draws: int = 4
    weight: float = Field(default=1.0, gt=0)


class ContinuousRecipe(InMemoryRecipe):
    base: Annotated[str, MAY_CHANGE] = SMOLLM2
    tokenizer: Annotated[Path, MAY_CHANGE]
    dataset: DatasetConfig
    media: ContinuousMediaConfig = ContinuousMediaConfig()
    lora: LoraSettings | None = LoraSettings()  # null trains the new rows, the map and the head alone
    loss: LossConfig = LossConfig()
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/continuous")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/continuous")


def run(cfg: ContinuousRecipe, flags: Flags) -> None:
    parallel = cfg.begin({"base": cfg.base, "tokenizer": cfg.tokenizer})
    device = parallel.device

    # the base, and behind its rows the controls and the row that stands for a vector
    base = load_base(cfg.base)
    tokenizer = load_latent_tokenizer(cfg.tokenizer).to(device)
    text = TextTokenizer(cast(TokenizerData, base.tokenizer))
    template = make_latent_template(text, base.num_rows, tokenizer)
    vocabulary = template.vocabulary
    inputs = {"base weights": hash_weights(base.model), "image tokenizer": tokenizer.sha256[:16]}

    # the documents, each picture encoded once
    limit = min(cfg.length, int(base.model.config.max_position_embeddings))
    learnt, kept = (
        LatentDocuments(some, template, tokenizer, limit)
        for some in cfg.split(list(open_dataset(cfg.dataset)), "documents")
    )
    inputs["documents"] = f"{len(learnt):,} documents, {learnt.hash()[:32]}"

    # the model: frozen base, LoRA, new rows, the map and the head
    model = build_model(base, vocabulary, cfg.lora, words=describe_controls(template), seed=cfg.loop.seed)
    head = ContinuousSettings.model_validate(
        {"medium": tokenizer.modality, "width": tokenizer.width, **cfg.media.model_dump(exclude={"weight"})}
    )
    add_continuous_media(model, vocabulary, head, cfg.loop.seed).fit(learnt.collect_vectors())
    model.to(device)
    module = ContinuousLoss(model, vocabulary, cfg.loss, cfg.media.weight)
    pad = vocabulary.get_control_id("<|pad|>")

    def describe() -> str:
        return f"{len(learnt):,} documents to learn from, {len(kept)} held out; {tokenizer.tokens_per_item} vectors"

    trained = train_in_memory(cfg, flags, parallel, module, learnt, kept, pad, inputs, describe)
    if trained and parallel.is_main:
        save_tuned(cfg.out, model, cfg.base, template, None, cfg)
        shutil.copytree(cfg.tokenizer, locate_tokenizer(cfg.out, tokenizer.modality), dirs_exist_ok=True)
        print(f"wrote {cfg.out}", file=sys.stderr)
        report_drawing(VectorWriter(model.eval(), vocabulary), [kept[n] for n in range(len(kept))])
    parallel.close()


def report_drawing(writer: VectorWriter, documents: list[Rendered]) -> None:
    """Print how near pictures that are drawn for the documents' words are to the documents' own pictures."""
    media, vocabulary = writer.media, writer.vocabulary
    start, prompts, pictures = vocabulary.get_start_id(media.settings.medium), [], []
    for document in documents:
        learnt = (document.ids == start) & (document.labels == start)
        if learnt.any() and (document.ids == media.row).sum() == writer.num_vectors:  # one picture, which is drawn
            assert document.values is not None
            prompts.append(document.ids[: int(learnt.argmax())].tolist())
            pictures.append(torch.from_numpy(document.values[document.ids == media.row]))
    if len(prompts) < 2:
        return
    drawn = writer.write(prompts, seeds=list(range(len(prompts))))  # [B, N, K]
    own = torch.stack(pictures).to(drawn)
    apart = torch.cdist(media.standardise(drawn).flatten(1), media.standardise(own).flatten(1))  # [B, B]
    nearest = int((apart.argmin(1) == torch.arange(len(apart), device=apart.device)).sum())
    ratio = float(apart.diagonal().mean() / apart.mean())
    print(
        f"{len(prompts)} held-out words: the drawn vectors are nearest to their own picture {nearest} times (by chance "
        f"1), at {ratio:.2f} of the mean distance"
    )


if __name__ == "__main__":
    run_training(ContinuousRecipe, run)
