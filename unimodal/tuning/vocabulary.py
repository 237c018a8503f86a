"""The vocabulary of a model to train: a base's rows, and behind them the controls and the codes of the media."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from unimodal.coder.features import FeatureMemory
from unimodal.coder.media_coder import MediaCoder, load_coder
from unimodal.model.adapter_files import is_adapter
from unimodal.model.base import LoadedBase
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.vocabulary import Vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary
from unimodal.vocabulary.media_blocks import order_layouts
from unimodal.vocabulary.positions import sum_blocks


def open_media(folder: Path | None, device: torch.device | str = "cpu") -> MediaCoder | None:
    """The media tokenizers of a model folder; None without a folder, for text only."""
    if folder is None:
        return None
    if not (folder / VOCABULARY_FILE).is_file():
        raise ValueError(f"media: {folder} has no vocabulary.json; name a model folder, such as model_cards/nano")
    return load_coder(folder, device, lambda step: print(step, file=sys.stderr))


def make_joint_template(
    base: LoadedBase,
    media: MediaCoder | None,
    summed: Sequence[str] = (),
    code_order: Mapping[str, str] | None = None,
) -> Template:
    """The template over the base's rows and, behind them, the controls and the blocks of the media tokenizers.

    A base that is a model of ours keeps its own vocabulary; a converted checkpoint keeps its own format too. summed:
    the media whose codes of a step stand at one position (`vocabulary/positions.py`). code_order: medium → the order in
    which its codes are written (`vocabulary/patterns.py`), by default step by step. Raises ValueError for one that has
    a single code a step, and for one that the base was trained with otherwise.
    """
    text = TextTokenizer(cast(TokenizerData, base.tokenizer))  # transformers has read it
    own = Path(base.name) / VOCABULARY_FILE
    if own.is_file() and not is_adapter(base.name):
        vocabulary = read_vocabulary(own)
        flat = [medium for medium in summed if medium not in vocabulary.media or not vocabulary.is_summed(medium)]
        if flat:
            raise ValueError(f"summed names {flat[0]!r}, but {base.name} was not trained so; leave it out")
        _check_order(base.name, vocabulary, code_order or {})
        if not isinstance(vocabulary, AdoptedVocabulary):
            return Template(vocabulary, text)
        if media is None or media.folder.resolve() != own.parent.resolve():
            raise ValueError(f"{base.name} is a converted checkpoint with tokenizers of its own; set media={base.name}")
        return open_template(media.processor.template, vocabulary, own.parent)
    return make_template(text, base.num_rows, media, summed, code_order)


def _check_order(name: str, vocabulary: Vocabulary, code_order: Mapping[str, str]) -> None:
    """ValueError unless the media are written in this order already."""
    ordered = order_layouts(vocabulary.layouts, vocabulary.blocks, code_order)
    for layout, wanted in zip(vocabulary.layouts, ordered, strict=True):
        if layout != wanted:
            raise ValueError(f"code_order names {layout.modality!r}, but {name} was trained with another; leave it out")


def make_template(
    text: TextTokenizer,
    num_rows: int,
    media: MediaCoder | None,
    summed: Sequence[str] = (),
    code_order: Mapping[str, str] | None = None,
) -> Template:
    """The template over `num_rows` text rows (those past the tokenizer's are padding) and the blocks of the media.

    summed, code_order: see `make_joint_template`.
    """
    blocks, layouts = (media.vocabulary.blocks, media.vocabulary.layouts) if media else ((), ())
    if media and any(layout.grid is not None for layout in layouts):
        raise ValueError(
            f"media: the pictures of {media.folder} have any number of codes; make a folder of tokenizers with one "
            "size by tools/convert_checkpoint.py tokenizers"
        )
    layouts = tuple(replace(layout, features=None) for layout in layouts)  # read as it is written, by its codes
    if code_order:
        layouts = tuple(order_layouts(layouts, blocks, code_order))
    reserved = {*text.reserved_ids, *range(text.size, num_rows)}
    return Template(Vocabulary.build(num_rows, sum_blocks(blocks, summed), layouts, reserved, text.sha256), text)


def make_feature_memory(model: nn.Module, template: Template, media: MediaCoder | None) -> FeatureMemory | None:
    """The reader of media as features, for a model that reads them so; None for a model that reads codes alone.

    Puts `FeatureRows` in the place of the model's embedding table: call it once, after the last change of its rows.
    """
    if media is None or all(layout.features is None for layout in template.vocabulary.layouts):
        return None
    return FeatureMemory(model, media, later=True)
