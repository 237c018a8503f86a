"""A base under another text tokenizer: its text rows made anew, its special tokens or media rows kept, in a new folder.

    a stock model     new text rows | the base's special tokens that the new tokenizer lacks
    a model of ours   new text rows | controls | codes of the media

All other weights stay. A folder of ours keeps its media tokenizers and its settings; its card, reports and samples,
which speak of the old model, are not copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from unimodal.export.new_folder import check_space, check_target, create_folder
from unimodal.files import read_json, write_json, write_text_atomically
from unimodal.model.base import LoadedBase, load_base, read_precision, read_tokenizer_settings
from unimodal.model.depth_decoder import DEPTH_FILE
from unimodal.model.image_head import ImageHead
from unimodal.model_folder.layout import (
    GENERATION_FILE,
    PROCESSOR_FILE,
    TEXT_FILES,
    VOCABULARY_FILE,
    list_special_ids,
    locate_reader,
    locate_tokenizer,
)
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.tuning.transplant.measure import TextCost, measure_text
from unimodal.tuning.transplant.methods import MadeRows
from unimodal.tuning.transplant.request import TransplantRequest
from unimodal.tuning.transplant.resize import Tables, read_tables, replace_tables
from unimodal.tuning.transplant.special_tokens import KEPT_SETTINGS, SpecialTokens, keep_special_tokens
from unimodal.vocabulary import CONTROLS, Vocabulary, read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD_FILE = "transplant.json"
NAMED_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True, eq=False)
class TransplantBase:
    """A loaded base, the vocabulary of one that is a model of ours, its text tokenizer, and its tables as they were."""

    loaded: LoadedBase
    vocabulary: Vocabulary | None
    old: OpenedTokenizer
    tables: Tables

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def num_text_rows(self) -> int:
        """Rows of the tables that are text: all of a stock model's."""
        return len(self.tables.input) if self.vocabulary is None else self.vocabulary.text_size

    def find_start(self, vocabulary: Vocabulary | None) -> int | None:
        """The row before a text: the start of a document, or the token that ends the one before it."""
        if vocabulary is not None:
            return vocabulary.get_control_id("<|bos|>")
        return next(iter(_list_ids(self.model, "bos_token_id") + _list_ids(self.model, "eos_token_id")), None)


@dataclass(frozen=True, eq=False)
class TransplantPlan:
    """What a base becomes: the rows that are kept behind the text rows, and the vocabulary or the special tokens."""

    request: TransplantRequest
    kept: Tensor  # int64, rows of the base
    vocabulary: Vocabulary | None
    special: SpecialTokens | None

    def make_tables(self, base: TransplantBase, made: MadeRows) -> Tables:
        """The new tables: the text rows that a method makes of the base's, and the rows that are kept."""
        old, text = base.tables, slice(0, base.num_text_rows)

        def join(rows: Tensor, table: Tensor) -> Tensor:
            return torch.cat([rows.to(table), table[self.kept]])

        return Tables(
            join(made.make(old.input[text], "input"), old.input),
            None if old.output is None else join(made.make(old.output[text], "output"), old.output),
            None if old.bias is None else join(made.make_bias(old.bias[text]), old.bias),
        )


@dataclass(frozen=True)
class Transplanted:
    """What was made: rows that were copied, mixed and filled, and what a given text costs before and after."""

    copied: int
    mixed: int
    filled: int
    before: TextCost | None = None
    after: TextCost | None = None


def open_base(name: str) -> TransplantBase:
    """Load a stock model (a folder, hub id or GGUF) or a model of ours. Raises ValueError for what cannot be moved."""
    loaded = load_base(name)
    path = Path(name) / VOCABULARY_FILE
    vocabulary = read_vocabulary(path) if path.is_file() else None
    if isinstance(vocabulary, AdoptedVocabulary) or isinstance(loaded.model.get_output_embeddings(), ImageHead):
        raise ValueError(
            f"{name} is a converted checkpoint, whose text rows have no place of their own; name another base"
        )
    if vocabulary is not None and any(layout.features is not None for layout in vocabulary.layouts):
        raise ValueError(
            f"{name} reads media as features at a text row of its own, which would move; name another base"
        )
    data = cast(TokenizerData, loaded.tokenizer)
    if vocabulary is None and {token["content"] for token in data["added_tokens"]} >= {*CONTROLS}:
        raise ValueError(f"{name} is a model of ours without its {VOCABULARY_FILE}; name a folder that holds all of it")
    return TransplantBase(loaded, vocabulary, OpenedTokenizer(data, name), read_tables(loaded.model))


def plan_transplant(base: TransplantBase, new: OpenedTokenizer) -> TransplantPlan:
    """Lay out the rows under another tokenizer. The plan's request is to be filled with what a method reads besides."""
    request = TransplantRequest(base.old, new)
    if base.vocabulary is not None:
        kept = torch.arange(base.vocabulary.text_size, base.vocabulary.size)
        blocks, layouts = base.vocabulary.blocks, base.vocabulary.layouts
        made = Vocabulary.build(new.text.size, blocks, layouts, new.text.reserved_ids, new.text.sha256)
        return TransplantPlan(request, kept, made, None)
    needed = [row for name in NAMED_IDS for row in _list_ids(base.model, name)]
    lost = [row for row in needed if row not in request.shared.values()]
    special = keep_special_tokens(cast(TokenizerData, base.loaded.tokenizer), new.data, request.num_rows, lost)
    moved = {at: row for row, at in special.rows.items() if at < request.num_rows}
    named = [base.old.unknown_id, *_list_ids(base.model, "pad_token_id"), *_list_ids(base.model, "bos_token_id")]
    request = replace(request, special=moved, unknown=[row for row in named if row is not None])
    return TransplantPlan(request, torch.tensor(special.added, dtype=torch.int64), None, special)


def transplant(
    base: TransplantBase,
    plan: TransplantPlan,
    out: Path,
    method: str,
    copy: bool | None = None,
    seed: int = 0,
    lines: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda step: None,
) -> Transplanted:
    """Write the folder `out`, whole or not at all; the base in memory becomes the new model.

    copy: whether shared tokens keep their rows, by default as published. lines: a text that is measured before and
    after. Raises ValueError, before anything is written, for an `out` that cannot be written, and as the method does.
    """
    check_target(out, replace=False)
    model, new = base.model, plan.request.new.text
    on_step(f"mixing rows by {method}")
    made = MadeRows(method, plan.request, copy, seed)
    tables = plan.make_tables(base, made)
    before = after = None
    if lines:
        on_step("measuring the base")
        before = measure_text(model, base.old, base.find_start(base.vocabulary), lines)
    replace_tables(model, tables)
    if plan.special is not None:
        _move_ids(model, {old: at for at, old in plan.request.shared.items()} | plan.special.rows)
    if lines:
        on_step("measuring the new model")
        after = measure_text(model, plan.request.new, base.find_start(plan.vocabulary), lines)
    found = Transplanted(len(made.copied), made.mixed, made.filled, before, after)
    check_space(out.absolute().parent, sum(weight.numel() * weight.element_size() for weight in model.parameters()))
    on_step("writing")
    with create_folder(out) as folder:
        if plan.special is not None:
            _write_stock(folder, base, plan.special)
        else:
            assert plan.vocabulary is not None
            _write_ours(folder, Path(base.loaded.name), model, plan.vocabulary, new)
        write_json(folder / RECORD_FILE, describe(base, plan.request, found, method, copy, seed))
    return found


def describe(
    base: TransplantBase, request: TransplantRequest, made: Transplanted, method: str, copy: bool | None, seed: int
) -> dict[str, object]:
    """The record of a transplant: method, tokenizers by their hashes, rows by their origin, and what a text costs."""
    costs = {
        name: cost.describe() for name, cost in (("before", made.before), ("after", made.after)) if cost is not None
    }
    return {
        "format": 1, "method": method, "copy_shared": copy, "seed": seed,
        "base": Path(base.loaded.name).name if Path(base.loaded.name).exists() else base.loaded.name,
        "base_tokenizer": base.old.text.sha256, "tokenizer": request.new.text.sha256,
        "rows": {"copied": made.copied, "mixed": made.mixed, "filled": made.filled}, **costs,
    }  # fmt: skip


def _list_ids(model: PreTrainedModel, name: str) -> list[int]:
    """The ids that a config names; some name several ends."""
    found = getattr(model.config, name, None)
    return [int(row) for row in found] if isinstance(found, list) else [] if found is None else [int(found)]


def _move_ids(model: PreTrainedModel, rows: dict[int, int]) -> None:
    """Say in the model's configs where its start, end and padding are now; what is nowhere is not named."""
    for config in (model.config, model.generation_config):
        for name in NAMED_IDS:
            given = getattr(config, name, None)
            if isinstance(given, list):
                setattr(config, name, [rows[row] for row in given if row in rows] or None)
            elif given is not None:
                setattr(config, name, rows.get(int(given)))
    for name in (
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ):
        if getattr(model.generation_config, name, None) is not None:
            setattr(model.generation_config, name, None)  # rows of the old tokenizer


def _write_stock(folder: Path, base: TransplantBase, special: SpecialTokens) -> None:
    """Weights, config and tokenizer of a stock model."""
    model = base.model
    model.to(read_precision(base.loaded.name))
    model.config.use_cache = True
    model.save_pretrained(folder)
    write_text_atomically(folder / TEXT_FILES[0], json.dumps(special.data, ensure_ascii=False) + "\n")
    contents = {token["content"] for token in special.data["added_tokens"]}
    settings = read_tokenizer_settings(base.loaded.name)
    kept: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in KEPT_SETTINGS:
        value = settings.get(name)
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if text in contents:
                kept[name] = text
        elif value is not None:
            kept[name] = value
    write_json(folder / TEXT_FILES[1], kept)


def _write_ours(
    folder: Path, source: Path, model: PreTrainedModel, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    """A model folder with the media tokenizers and settings of another."""
    for layout in vocabulary.layouts:
        for place in (locate_tokenizer(source, layout.modality), locate_reader(source, layout.modality)):
            if place.is_dir():
                shutil.copytree(place, folder / place.name)
    for name in (PROCESSOR_FILE, DEPTH_FILE, "LICENSE", "NOTICE"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    vocabulary.save(folder / VOCABULARY_FILE)
    save_hub_tokenizer(folder, vocabulary, text, int(model.config.max_position_embeddings))
    for name, row in list_special_ids(vocabulary).items():
        setattr(model.config, name, row)
    if hasattr(model.config, "auto_map"):
        del model.config.auto_map  # code of an exported folder, which `unimodal export` writes
    model.to(read_precision(source))
    model.config.use_cache = True
    model.save_pretrained(folder)
    path = source / GENERATION_FILE
    sampling = read_json(path).get("unimodal", {}) if path.is_file() else {}
    write_json(folder / GENERATION_FILE, {**list_special_ids(vocabulary), "unimodal": sampling})
