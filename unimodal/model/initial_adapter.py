"""An adapter trained further, on other data or with another objective: the weights that a new run begins from.

A run that was interrupted goes on by itself, with its optimizer and its place in the data. This is for the next part:
a new run, whose base, LoRA and tokenizers are those of a finished adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.adapter import read_new_rows, read_tensors
from unimodal.model.adapter_files import LORA_FILE, ROWS_FILE, is_adapter, read_adapter_record
from unimodal.model.base import hash_base
from unimodal.model.continuous_media import CONTINUOUS_FILE
from unimodal.model.depth_decoder import DEPTH_FILE, attach_depth_decoder
from unimodal.model.fourier_head import FOURIER_FILE, attach_fourier_heads, find_fourier_heads
from unimodal.model.lora import ADAPTER, find_lora_layers, load_lora_state
from unimodal.model.rows import ExtendedHead, TiedExtendedHead, find_base_table, find_rows, get_new_rows
from unimodal.model.soft_prompt import find_soft_prompt
from unimodal.model.structured_rows import load_rows
from unimodal.vocabulary import Vocabulary, read_vocabulary
from unimodal.vocabulary.match import match_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAME = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern")


def list_initial_files(folder: Path | None) -> dict[str, Path | None]:
    """The weights that `begin_from_adapter` reads, by the name under which a run is known by them."""
    if folder is None:
        return {}
    names = (LORA_FILE, ROWS_FILE, DEPTH_FILE, FOURIER_FILE)
    return {f"initial/{name}": folder / name for name in names if (folder / name).is_file()}


def begin_from_adapter(model: PreTrainedModel, folder: str | Path, vocabulary: Vocabulary) -> int:
    """Give the LoRA and the new rows of a model that `build_model` made the values of an adapter folder; in place.

    The adapter may have been trained with other media: the rows of what both have are taken, and the rest begins as the
    model began it. Returns how many of the new rows were taken.
    Raises ValueError, in one line, for a folder that is no adapter, for one of another base or of other LoRA settings,
    and for one that holds a part which this model lacks.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        raise ValueError(f"initial: {folder} holds no adapter; name a folder that recipes/finetune_lora.py wrote")
    record = read_adapter_record(folder)
    if hash_base(model) != record.base_sha256:
        raise ValueError(f"initial: {folder} was trained on another base, {record.base}; name that as `base`")
    theirs = read_vocabulary(folder / "vocabulary.json")
    same = theirs.to_dict() == vocabulary.to_dict()
    if record.soft_prompt and find_soft_prompt(model) is None:
        raise ValueError(f"initial: {folder} has a soft prompt; set prompt.source={folder} to train it further")
    if (folder / CONTINUOUS_FILE).is_file():
        raise ValueError(f"initial: {folder} reads and writes vectors, which recipes/train_continuous.py trains")
    if not same and any((folder / name).is_file() for name in (DEPTH_FILE, FOURIER_FILE)):
        raise ValueError(
            f"initial: {folder} has heads for its own codes; take its tokenizers, `summed` and `code_order`"
        )
    _take_lora(model, folder, record.lora)
    taken = 0
    if record.new_rows:
        pairs = [(ours, other) for ours, other in match_rows(vocabulary, theirs) if other.start >= record.base_rows]
        _take_rows(model, folder, theirs, pairs)
        taken = sum(len(ours) for ours, _ in pairs)
    if (folder / DEPTH_FILE).is_file():
        attach_depth_decoder(model, folder, vocabulary, torch.float32)
    if (folder / FOURIER_FILE).is_file():
        if find_fourier_heads(model) is None:
            raise ValueError(f"initial: {folder} has Fourier heads; set `fourier` as its recipe.yaml has it")
        attach_fourier_heads(model, folder, vocabulary, torch.float32)
    return taken


def _take_lora(model: PreTrainedModel, folder: Path, stored: bool) -> None:
    if not find_lora_layers(model):
        if stored:
            raise ValueError(f"initial: {folder} has LoRA, and lora is null; set it as {folder}/recipe.yaml has it")
        return
    if not stored:  # rows alone were trained: LoRA begins now
        return
    from peft import LoraConfig

    ours, theirs = model.peft_config[ADAPTER], LoraConfig.from_pretrained(folder)
    for name in _SAME:
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"initial: the LoRA of {folder} has {name} {getattr(theirs, name)}, and this run "
                f"{getattr(ours, name)}; set `lora` as {folder}/recipe.yaml has it"
            )
    load_lora_state(model, read_tensors(folder / LORA_FILE))


@torch.no_grad()
def _take_rows(model: PreTrainedModel, folder: Path, theirs: Vocabulary, pairs: list[tuple[range, range]]) -> None:
    num_base = find_base_table(model).num_embeddings
    stored = read_new_rows(folder, theirs.size - num_base)
    embedding, head = find_rows(model), model.get_output_embeddings()
    sides: dict[str, nn.Module] = {"input": embedding}
    if isinstance(head, ExtendedHead) and not isinstance(head, TiedExtendedHead):
        sides["output"] = head
    for side, table in get_new_rows(model).items():
        if side not in stored:
            raise ValueError(f"{folder}/{ROWS_FILE} has no {side} rows; copy or download the folder again")
        rows = table.detach().clone()
        for ours, other in pairs:
            found = stored[side][other.start - num_base : other.stop - num_base]
            rows[ours.start - num_base : ours.stop - num_base] = found.to(rows.device, rows.dtype)
        _set_rows(sides[side], rows)


def _set_rows(module: nn.Module, rows: Tensor) -> None:
    if nn.utils.parametrize.is_parametrized(module, "new_rows"):
        load_rows(module, rows, "new_rows")
    else:
        module.new_rows.copy_(rows)  # type: ignore[operator, union-attr]
