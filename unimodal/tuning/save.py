"""The result of tuning: a model folder, whole or as an adapter on its base."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config, save_config
from unimodal.files import describe_error, read_json, write_bytes_atomically, write_json, write_text_atomically
from unimodal.model.adapter import save_adapter
from unimodal.model.continuous_media import take_continuous_media
from unimodal.model.depth_decoder import take_depth_decoder
from unimodal.model.fourier_head import take_fourier_heads
from unimodal.model.tokenformer import has_pattention, save_tokenformer
from unimodal.model_folder.layout import (
    GENERATION_FILE,
    PROCESSOR_FILE,
    VOCABULARY_FILE,
    list_special_ids,
    locate_reader,
    locate_tokenizer,
)
from unimodal.model_folder.settings import ProcessorConfig, read_processor
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.sequence.templates.own import Template
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.vocabulary.adopted import TEXT_FILES, AdoptedVocabulary

PROBE_BYTES = 2**16  # written to see whether a folder takes files


def check_folders(out: Path, run: Path, codes: Path, sources: Mapping[str, str | Path | None]) -> None:
    """Check the folders of a run before anything is computed.

    sources: setting → folder that is only read. Raises ValueError for a folder that cannot be written or is full, and
    for an `out` that is the run's folder or one of the sources.
    """
    for name, source in {"run": run, **sources}.items():
        if source is not None and out.resolve() == Path(source).resolve():
            raise ValueError(f"out: {out} is also {name}, which would be written over; choose another")
    for name, folder in (("out", out), ("run", run), ("corpus.codes", codes)):
        check_place(name, folder)


def check_place(name: str, folder: Path) -> None:
    """Raises ValueError unless `folder`, the value of the setting `name`, can be made and written to."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{name}: {place} is a file; choose another")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"{name}: {place} cannot be written to ({describe_error(error)}); make room there or choose another"
        ) from None


def check_room(out: Path, model: nn.Module, whole: bool) -> None:
    """Raises ValueError if the model does not fit on the disk of `out`: better now than after hours of training.

    whole: count all weights in half precision; else the trained ones in full precision.
    """
    kept = [p for p in model.parameters() if whole or p.requires_grad]
    need = sum(2 * p.numel() if whole else p.numel() * p.element_size() for p in kept)
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise ValueError(
            f"out: {place} has {free / 2**20:,.0f} MiB free and the model takes about {need / 2**20:,.0f}; make room, "
            "or choose another"
        )


def find_writing(objective: ObjectiveConfig, base: str | Path | None = None) -> SpanWriting | None:
    """How the codes of a model are written that is trained from `base` with this objective; None for token by token.

    A base that learnt them under a mask of its own keeps that: what it never learnt, another objective does not show.
    """
    if isinstance(objective.own, SpanConfig):
        return objective.own.describe_writing()
    if base is None or not (Path(base) / PROCESSOR_FILE).is_file():
        return None
    return read_processor(Path(base)).writing


def save_tokenizers(
    folder: Path, template: Template, media: MediaCoder | None, max_positions: int, writing: SpanWriting | None = None
) -> None:
    """Write a model folder without a decoder: what recipes/tokenize_dataset.py needs to make shards for this run.

    writing: of `find_writing`, for a folder that gets a decoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for layout in template.vocabulary.layouts if media is not None else ():
        assert media is not None
        for place in (locate_tokenizer, *([locate_reader] if layout.features is not None else [])):
            source, target = place(media.folder, layout.modality), place(folder, layout.modality)
            if target.resolve() != source.resolve():
                shutil.copytree(source, target, dirs_exist_ok=True)
    if isinstance(template.vocabulary, AdoptedVocabulary):
        assert media is not None
        for name in TEXT_FILES:
            if (media.folder / name).is_file():
                write_bytes_atomically(folder / name, (media.folder / name).read_bytes())
    else:
        save_hub_tokenizer(folder, template.vocabulary, template.text, max_positions)
    processor = own = ProcessorConfig()
    if media is not None:
        processor = media.processor
        if type(template) is Template:  # our own format: only the tokenizers are taken from the other model
            processor = processor if processor.template == own.template else own
    write_json(folder / PROCESSOR_FILE, processor.model_copy(update={"writing": writing}).model_dump(mode="json"))
    template.vocabulary.save(folder / VOCABULARY_FILE)


def save_tuned(
    folder: Path,
    model: nn.Module,
    base: str | None,
    template: Template,
    media: MediaCoder | None,
    cfg: Config,
    writing: SpanWriting | None = None,
) -> None:
    """Write a folder that `unimodal.pipeline.load` reads: an adapter on the base of the name `base`, or a whole model.

    base=None: `model` is a stock model, merged already; its weights are written in half precision. A depth decoder,
    continuous media and Fourier heads go into files of their own and off the model.
    writing: of `find_writing`.
    """
    save_tokenizers(folder, template, media, int(model.config.max_position_embeddings), writing)
    vocabulary = template.vocabulary
    generation: dict[str, object] = dict(list_special_ids(vocabulary))
    if media is not None and (media.folder / GENERATION_FILE).is_file():
        generation["unimodal"] = read_json(media.folder / GENERATION_FILE).get("unimodal", {})
    if base is not None:
        save_adapter(folder, model, base, vocabulary)
    else:
        model.config.use_cache = True
        for beside in (take_depth_decoder(model), take_continuous_media(model), take_fourier_heads(model)):
            if beside is not None:
                beside.save(folder)
        if has_pattention(model):
            save_tokenformer(folder, model.half())
        else:
            model.half().save_pretrained(folder)
    write_text_atomically(folder / GENERATION_FILE, json.dumps(generation, indent=2) + "\n")
    save_config(cfg, folder / "recipe.yaml")
