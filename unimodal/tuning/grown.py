"""A base with rows for further media: a stock one, or a model of ours, whose media and all that it learnt stay.

The controls stand before the blocks of codes, so rows move when a medium is added. A row keeps its weights if it means
the same as before: a text row, a control of the same name, a code of a tokenizer with the same hash.

Shapes: V rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unimodal.model.adapter_files import is_adapter
from unimodal.model.base import LoadedBase
from unimodal.model.initialisers import RowRequest, initialise
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.tokenizers import MediaTokenizer
from unimodal.tuning.rows import describe_codes, describe_controls
from unimodal.vocabulary import Vocabulary, make_media_vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary


def grow_base(base: LoadedBase, tokenizers: Sequence[MediaTokenizer], seed: int = 0) -> Template:
    """Gives the model of a base, in place, a row for every control and code of these tokenizers.

    tokenizers: of all media that it is to have, those that a model of ours has already among them. New rows begin as
    the initialiser `codebook` says, by the rows of the text. Raises ValueError for a model of ours that would lose a
    medium, is an adapter, has several codes at a position or a format of its own, and for a head that is no `Linear`.
    """
    text = TextTokenizer(cast(TokenizerData, base.tokenizer))  # transformers has read it
    theirs = _read_own(base.name)
    if theirs is None:
        num_text, reserved = base.num_rows, {*text.reserved_ids, *range(text.size, base.num_rows)}
    else:
        num_text, reserved = theirs.text_size, {*theirs.text_reserved}
        for medium in theirs.media:
            if medium not in [tokenizer.modality for tokenizer in tokenizers]:
                raise ValueError(f"{base.name} has {medium}, and no tokenizer of it is given; give all of its media")
    vocabulary = make_media_vocabulary(tokenizers, num_text, reserved, text.sha256)
    source = torch.arange(vocabulary.size)
    source[num_text:] = -1
    if theirs is not None:
        source = find_same_rows(vocabulary, theirs)
    template = Template(vocabulary, text)
    _fill_tables(base, template, tokenizers, source, seed)
    return template


def find_same_rows(ours: Vocabulary, theirs: Vocabulary) -> Tensor:
    """For each row of ours the row of theirs that means the same, int64 [V]; -1 where there is none.

    Raises ValueError for another text tokenizer.
    """
    if ours.text_sha256 != theirs.text_sha256 or ours.text_size != theirs.text_size:
        raise ValueError("the vocabularies stand on different text tokenizers, so no row of theirs can be kept")
    source = torch.full((ours.size,), -1)
    source[: ours.text_size] = torch.arange(ours.text_size)
    for control in ours.controls:
        if theirs.has_control(control.name):
            source[control.id] = theirs.get_control_id(control.name)
    known = {(block.label, block.sha256, block.size): block for block in theirs.blocks}
    for block in ours.blocks:
        same = known.get((block.label, block.sha256, block.size))
        if same is not None:
            source[block.start : block.start + block.size] = torch.arange(same.start, same.start + same.size)
    return source


def _read_own(name: str) -> Vocabulary | None:
    """The vocabulary of a base that is a model of ours; None for a stock one."""
    path = Path(name) / VOCABULARY_FILE
    if not path.is_file():
        return None
    vocabulary = read_vocabulary(path)
    if is_adapter(name):
        raise ValueError(f"{name} is an adapter; merge it into a whole model with `unimodal export` first")
    if isinstance(vocabulary, AdoptedVocabulary) or not vocabulary.positions.is_flat:
        raise ValueError(f"{name} has a format of its own, to which no medium can be added; choose another base")
    return vocabulary


@torch.no_grad()
def _fill_tables(
    base: LoadedBase, template: Template, tokenizers: Sequence[MediaTokenizer], source: Tensor, seed: int
) -> None:
    vocabulary = template.vocabulary
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(f"{base.name} has tables of its own kind, which cannot grow; choose another base")
    by_medium = {tokenizer.modality: tokenizer for tokenizer in tokenizers}
    described = {block.rows: describe_codes(by_medium[block.modality], block) for block in vocabulary.blocks}
    features = {rows: found for rows, found in described.items() if found is not None}
    words = {row: ids for row, ids in describe_controls(template).items() if ids}
    kept = source >= 0
    num_new = vocabulary.size - vocabulary.text_size

    def grow(table: Tensor, side_seed: int) -> nn.Parameter:
        known = table[: vocabulary.text_size]
        drawn = initialise("codebook", RowRequest(known, num_new, features, words, seed=side_seed))
        grown = torch.cat([known, drawn])  # [V, D]
        grown[kept] = table[source[kept]]
        return nn.Parameter(grown)

    tied = head.weight is embedding.weight
    embedding.weight = grow(embedding.weight, seed)
    if head.bias is not None:
        bias = pad(head.bias, (0, 1))  # the last is of rows that are new
        head.bias = nn.Parameter(bias[source])
    head.weight = embedding.weight if tied else grow(head.weight, seed + 1)
    embedding.num_embeddings = head.out_features = vocabulary.size
    base.model.config.vocab_size = vocabulary.size
    for module in (base.model, base.model.get_decoder()):
        if hasattr(module, "vocab_size"):
            module.vocab_size = vocabulary.size
