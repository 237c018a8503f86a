"""From a pretrained language model and media tokenizers to one model to train, and from that to a model folder.

The steps that the fine-tuning recipes have in common, each a function: the vocabulary behind a base's rows, what is
known of the new rows before training, the training loss, the plan that `--dry-run` prints, and the saved folder.

Shapes: V rows, R new rows, D width, B rows of a batch, N tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.coder.media_coder import MediaCoder, load_coder
from unimodal.config import Config, save_config
from unimodal.corpus.corpus import Corpus, tensors_of
from unimodal.files import atomic_write_bytes, atomic_write_text
from unimodal.media.registry import MEDIA
from unimodal.model.adapter import save_adapter
from unimodal.model.adapter_files import is_adapter
from unimodal.model.base import BaseModel
from unimodal.model.build import num_parameters
from unimodal.model.initialisers import Donor
from unimodal.model.structured_rows import level_features
from unimodal.model_folder.find import PROCESSOR_FILE, ProcessorConfig, read_json, reader_folder, tokenizer_folder
from unimodal.objectives.packed import PackedLoss
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import Template
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.tokenizer import TextTokenizer
from unimodal.training.loop import WeightedLoss
from unimodal.vocabulary import Vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import TEXT_FILES, AdoptedVocabulary

#: what the controls mean, in words that any base knows: where their rows begin
CONTROL_WORDS = {
    "<|image_start|>": " image:", "<|image_end|>": " end of image", "<|audio_start|>": " sound:",
    "<|audio_end|>": " end of sound", "<|video_start|>": " video:", "<|video_end|>": " end of video",
    "<|frame|>": " next frame", "<|bos|>": " start", "<|eos|>": " end", "<|system|>": " system:", "<|user|>": " user:",
    "<|assistant|>": " assistant:", "<|end_of_turn|>": "\n\n", "<|pad|>": " nothing",
}  # fmt: skip


def check_out(folder: Path) -> None:
    """ValueError for a place that no folder can be written to, before anything is computed for it."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"out: {place} {'cannot be written to' if place.is_dir() else 'is a file'}; choose another")


def open_media(folder: Path | None, device: torch.device | str = "cpu") -> MediaCoder | None:
    """The media tokenizers of a model folder; None without one: text only."""
    if folder is None:
        return None
    if not (folder / "vocabulary.json").is_file():
        raise ValueError(f"media: {folder} has no vocabulary.json; name a model folder, such as model_cards/nano")
    return load_coder(folder, device, lambda step: print(step, file=sys.stderr))


def joint_template(base: BaseModel, media: MediaCoder | None) -> Template:
    """The template over the base's text rows, the controls, and the blocks of the media tokenizers behind them.

    A base that is a model of ours keeps its own vocabulary, and a converted checkpoint its own format as well.
    """
    text = TextTokenizer(base.tokenizer)
    own = Path(base.name) / "vocabulary.json"
    if own.is_file() and not is_adapter(base.name):
        vocabulary = read_vocabulary(own)
        if not isinstance(vocabulary, AdoptedVocabulary):
            return Template(vocabulary, text)
        if media is None or media.folder.resolve() != own.parent.resolve():
            raise ValueError(f"{base.name} is a converted checkpoint with tokenizers of its own; set media={base.name}")
        return open_template(media.processor.template, vocabulary, own.parent)
    return new_template(text, base.num_rows, media)


def new_template(text: TextTokenizer, num_rows: int, media: MediaCoder | None) -> Template:
    """The template over `num_rows` text rows, those beyond the tokenizer's being padding, and the media's blocks."""
    blocks, layouts = (media.vocabulary.blocks, media.vocabulary.layouts) if media else ((), ())
    if media and any(layout.grid is not None for layout in layouts):
        raise ValueError(
            f"media: the pictures of {media.folder} have any number of codes; make a folder of tokenizers with one "
            "size by tools/convert_checkpoint.py tokenizers"
        )
    layouts = tuple(replace(layout, features=None) for layout in layouts)  # read as it is written, by its codes
    reserved = {*text.reserved_ids, *range(text.size, num_rows)}
    return Template(Vocabulary.build(num_rows, blocks, layouts, reserved, text.sha256), text)


def described_rows(template: Template) -> dict[int, list[int]]:
    """The words that each control begins as: its row → text rows."""
    words = dict(CONTROL_WORDS)
    for medium in MEDIA.values():
        words.setdefault(f"<|{medium.name}_start|>", f" {medium.noun}:")
        words.setdefault(f"<|{medium.name}_end|>", f" end of {medium.noun}")
    return {control.id: template.text.encode(words[control.name]) for control in template.vocabulary.controls}


def named_rows(path: Path, template: Template) -> dict[int, list[int]]:
    """The words that codes begin as, from a JSON file {block: [words of code 0, of code 1, …]}: row → text rows.

    Raises ValueError, in one line, for a file of another shape and for a block that does not fit the vocabulary.
    """
    listed = read_json(path)
    blocks = {block.label: block for block in template.vocabulary.blocks}
    found: dict[int, list[int]] = {}
    for name, words in listed.items():
        if name not in blocks:
            raise ValueError(f"{path} names the block {name!r}; the vocabulary has {', '.join(blocks) or 'none'}")
        if not isinstance(words, list) or len(words) != blocks[name].size or not all(isinstance(w, str) for w in words):
            raise ValueError(f"{path}: {name} needs a list of {blocks[name].size} texts, one for each code")
        found |= {blocks[name].start + code: template.text.encode(f" {text}") for code, text in enumerate(words)}
    return found


def block_features(
    vocabulary: Vocabulary, media: MediaCoder | None, named: Collection[int] = ()
) -> dict[range, Tensor]:
    """The codebook vectors of the blocks whose tokenizers have them: prototypes, or levels one-hot. range → [R, F].

    Blocks whose rows are `named` begin as their words instead.
    """
    features: dict[range, Tensor] = {}
    for modality in vocabulary.media if media else ():
        assert media is not None
        tokenizer = media.tokenizer(modality)
        for block in vocabulary.blocks:
            if block.modality != modality or block.group or block.start in named:
                continue
            semantic = getattr(tokenizer, "semantic", None)
            quantizer: Any = getattr(tokenizer, "quantizer", None)
            if block.name == "semantic" and semantic is not None:
                features[block.rows] = semantic.prototypes.detach().float().cpu()
            elif quantizer is not None and getattr(quantizer, "codebook_size", 0) == block.size:
                levels = quantizer.level_indices(torch.arange(block.size, device=media.device))
                features[block.rows] = level_features(levels.cpu(), quantizer.levels)
    return features


def shared_features(vocabulary: Vocabulary, media: MediaCoder | None) -> dict[range, Tensor]:
    """What the codes of a block have in common with each other: levels, prototypes, thumbnails. range → [R, F]."""
    features = block_features(vocabulary, media)
    for block in vocabulary.blocks:
        if media is not None and block.modality == "image" and block.name == "look":
            look: Any = getattr(media.tokenizer("image"), "look", None)
            if look is not None and len(look.table) == block.size:
                features[block.rows] = look.table.detach().float().cpu()
    return features


def donor_rows(folder: Path, template: Template) -> dict[str, Donor]:
    """A trained model of ours as the donor of the rows of the same blocks and controls: side → Donor.

    Anchors are the pieces of text that both text tokenizers have.
    """
    from safetensors.torch import load_file

    vocabulary, text = template.vocabulary, template.text
    theirs, their_text = read_vocabulary(folder / "vocabulary.json"), TextTokenizer.load(folder)
    state = load_file(folder / "model.safetensors")
    tables = {"input": state["model.embed_tokens.weight"], "output": state.get("lm_head.weight")}
    source = torch.full((vocabulary.size - vocabulary.text_size,), -1)
    for control in vocabulary.controls:
        if theirs.has_control(control.name):
            source[control.id - vocabulary.text_size] = theirs.control_id(control.name)
    blocks = {block.label: block for block in theirs.blocks}
    for block in vocabulary.blocks:
        same = blocks.get(block.label)
        if same is not None and same.size == block.size and same.sha256 == block.sha256:
            start = block.start - vocabulary.text_size
            source[start : start + block.size] = torch.arange(same.start, same.start + same.size)
    reserved = {*their_text.reserved_ids}
    anchors = []
    for row in range(their_text.size):
        piece = "" if row in reserved else their_text.decode([row])
        ids = text.encode(piece) if piece.strip() and "\ufffd" not in piece else []
        if len(ids) == 1:
            anchors.append((row, ids[0]))
    here = torch.tensor([row for row, _ in anchors])
    there = torch.tensor([row for _, row in anchors])
    donors = {}
    for side, table in tables.items():
        table = (tables["input"] if table is None else table).float()
        rows = table[source.clamp_min(0)].masked_fill((source < 0)[:, None], float("nan"))
        donors[side] = Donor(rows, table[here], there)
    return donors


def packed_loss(
    module: nn.Module, device: torch.device, by_block: bool = False
) -> Callable[[PackedBatch, int], WeightedLoss]:
    """The loss that the trainer calls: `module` is a `PackedLoss`, or what wraps it."""

    def loss(batch: PackedBatch, step: int) -> WeightedLoss:
        total, found = module(*tensors_of(batch, device))
        named: Mapping[str, tuple[float, int]] = found["blocks" if by_block else "modalities"]
        sums = {f"loss_{name}": (summed, float(count)) for name, (summed, count) in named.items()}
        return WeightedLoss(total, found["weight"], sums, int((batch.segment_ids > 0).sum()))

    return loss


# ---- the plan


def plan(model: nn.Module, template: Template, corpus: Corpus, batch: PackedBatch) -> str:
    """What a run would do, for `--dry-run`: rows, parameters, memory, data, and the beginning of one packed row."""
    vocabulary = template.vocabulary
    trained = [p for p in {id(p): p for p in model.parameters()}.values() if p.requires_grad]
    num_trained, num_all = sum(p.numel() for p in trained), num_parameters(model)
    frozen_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    config = model.config
    tokens = batch.ids.size
    # a block keeps about 14 widths and 3 inner widths of every token for the backward pass
    activations = 4 * tokens * config.num_hidden_layers * (14 * config.hidden_size + 3 * config.intermediate_size)
    lines = [f"vocabulary: {vocabulary.size:,} rows"]
    spans = []
    if not isinstance(vocabulary, AdoptedVocabulary):  # else they are all the other rows
        spans = [("text", vocabulary.text_range), ("controls", vocabulary.control_range)]
    spans += [(f"{block.label} ({block.modality})", block.rows) for block in vocabulary.blocks]
    lines += [f"  {span.start:>8,} … {span.stop - 1:>8,}  {name}" for name, span in spans]
    lines.append(f"parameters: {num_all:,}, trained {num_trained:,} ({num_trained / num_all:.1%})")
    lines.append(
        f"memory: about {(16 * num_trained + frozen_bytes + activations) / 2**20:,.0f} MiB (trained weights with "
        f"gradient and optimizer {16 * num_trained / 2**20:,.0f}, frozen {frozen_bytes / 2**20:,.0f}, activations "
        f"{activations / 2**20:,.0f})"
    )
    shares = {name: weight / sum(corpus.weights.values()) for name, weight in corpus.weights.items()}
    lines += [f"data: {name}  {corpus.counts[name]:,} documents, {share:.0%}" for name, share in shares.items()]
    used, learnt = int((batch.segment_ids > 0).sum()), int((batch.labels >= 0).sum())
    lines.append(f"a batch: {list(batch.ids.shape)} tokens, {used / tokens:.0%} filled, {learnt} of them learnt")
    lines.append(f"its first row: {spelled(batch.ids[0], template)}")
    return "\n".join(lines)


def spelled(ids: Any, template: Template, longest: int = 400) -> str:
    """Ids as one can read them: text as text, controls by name, runs of codes counted."""
    vocabulary = template.vocabulary
    pieces: list[str] = []
    text: list[int] = []
    runs: list[tuple[str, int]] = []

    def finish() -> None:
        if text:
            pieces.append(template.text.decode(text))
            text.clear()
        if runs:
            pieces.append(f"[{runs[0][1]} × {runs[0][0]}]")
            runs.clear()

    for row in map(int, ids):
        seen = row >= vocabulary.size  # a feature
        block = None if seen else vocabulary.block_of(row)
        label = "feature" if seen else block.label if block is not None else None
        if label is not None:
            if runs and runs[0][0] == label:
                runs[0] = (label, runs[0][1] + 1)
            else:
                finish()
                runs.append((label, 1))
        elif vocabulary.is_text(row):
            if runs:
                finish()
            text.append(row)
        else:
            finish()
            pieces.append(vocabulary.token_string(row) if vocabulary.is_control(row) else f"<{row}>")
        if sum(map(len, pieces)) > longest:
            return "".join(pieces)[:longest] + " …"
    finish()
    return "".join(pieces)


def try_one_step(module: PackedLoss, batch: PackedBatch, device: torch.device) -> str:
    """Forward and backward of one batch: that it works, its loss, and how fast it was."""
    module.train()
    began = time.monotonic()
    total, found = module(*tensors_of(batch, device))
    total.backward()
    seconds = time.monotonic() - began
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without[:3]}"
    losses = "  ".join(f"{name} {summed / count:.3f}" for name, (summed, count) in found["modalities"].items())
    mean = float(total.detach()) / max(found["weight"], 1e-12)
    return f"one step: loss {mean:.4f}  {losses}  {batch.ids.size / seconds:,.0f} tokens/s (first call, no optimizer)"


# ---- the result


def save_tokenizers(folder: Path, template: Template, media: MediaCoder | None, max_positions: int) -> None:
    """All of a model folder but its decoder: what recipes/tokenize_dataset.py needs to make shards for this run."""
    folder.mkdir(parents=True, exist_ok=True)
    for layout in template.vocabulary.layouts if media is not None else ():
        assert media is not None
        for place in (tokenizer_folder, *([reader_folder] if layout.features is not None else [])):
            source, target = place(media.folder, layout.modality), place(folder, layout.modality)
            if target.resolve() != source.resolve():
                shutil.copytree(source, target, dirs_exist_ok=True)
    if isinstance(template.vocabulary, AdoptedVocabulary):
        assert media is not None
        for name in TEXT_FILES:
            if (media.folder / name).is_file():
                atomic_write_bytes(folder / name, (media.folder / name).read_bytes())
    else:
        save_hub_tokenizer(folder, template.vocabulary, template.text, max_positions)
    if media is not None:
        processor = media.processor
        if type(template) is Template:  # of other models' tokenizers only: their words and format stay behind
            own = ProcessorConfig()
            processor = processor if processor.template == own.template else own
        fields = processor.model_dump(mode="json")
        atomic_write_text(folder / PROCESSOR_FILE, json.dumps(fields, indent=2) + "\n")
    template.vocabulary.save(folder / "vocabulary.json")


def save_tuned(
    folder: Path,
    model: nn.Module,
    base: str | None,
    template: Template,
    media: MediaCoder | None,
    cfg: Config,
) -> None:
    """Writes a folder that `unimodal.pipeline.load` reads: an adapter on the `base` of that name, or a whole model.

    base=None: `model` is merged and stock, and its weights are written in half precision.
    """
    save_tokenizers(folder, template, media, int(model.config.max_position_embeddings))
    vocabulary = template.vocabulary
    generation: dict[str, Any] = {
        "bos_token_id": vocabulary.control_id("<|bos|>"),
        "eos_token_id": vocabulary.control_id("<|end_of_turn|>"),
        "pad_token_id": vocabulary.control_id("<|pad|>"),
    }
    if media is not None and (media.folder / "generation_config.json").is_file():
        generation["unimodal"] = read_json(media.folder / "generation_config.json").get("unimodal", {})
    if base is not None:
        save_adapter(folder, model, base, vocabulary)
    else:
        model.config.use_cache = True
        model.half().save_pretrained(folder)
    atomic_write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    save_config(cfg, folder / "recipe.yaml")
