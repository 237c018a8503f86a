"""A tuned model as a folder: what was trained, the vocabulary, and the name of the base it belongs on.

    base.json                   the base's name, rows and hash
    adapter_config.json         peft's, where there is LoRA
    adapter_model.safetensors   LoRA, in peft's own names
    new_rows.safetensors        `input` [R, D] and, on an untied base, `output` [R, D]; in few levels where asked for
                                (`few_levels.py`)
    depth_decoder.safetensors   of a vocabulary with summed positions
    continuous_media.safetensors   of a model that reads and writes vectors
    fourier_heads.safetensors   of a model whose ordered codes are scored so
    soft_prompt/                a soft prompt, as peft stores one
    vocabulary.json

The base is not copied: loading reads it from its folder or from the hub, and refuses another base. `merge` makes a
stock model of the base's class instead, which any server of that class loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.files import describe_error, write_bytes_atomically
from unimodal.model.adapter_files import (
    FORMAT,
    LORA_FILE,
    ROWS_FILE,
    AdapterRecord,
    read_adapter_record,
    write_adapter_record,
)
from unimodal.model.base import LoadedBase, Precision, hash_base, load_base
from unimodal.model.continuous_media import attach_continuous_media, find_continuous_media
from unimodal.model.depth_decoder import attach_depth_decoder, find_depth_decoder
from unimodal.model.few_levels import pack_rows, unpack_rows
from unimodal.model.fourier_head import attach_fourier_heads, find_fourier_heads
from unimodal.model.lora import ADAPTER, add_lora, extract_lora_state, find_lora_layers, load_lora_state, merge_lora
from unimodal.model.prompt_files import read_soft_prompt, save_soft_prompt
from unimodal.model.rows import ExtendedEmbedding, extend_rows, find_base_table, find_rows, get_new_rows, merge_rows
from unimodal.model.soft_prompt import attach_soft_prompt, find_soft_prompt
from unimodal.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AGAIN = "copy or download the folder again"


def has_new_rows(model: PreTrainedModel) -> bool:
    """Whether `extend_rows` has put new rows on this model."""
    return isinstance(find_rows(model), ExtendedEmbedding)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Merge LoRA and new rows into the base, in place, and return it: a stock Hugging Face model again.

    A soft prompt stays on it: no weight of a stock class holds one.
    Raises ValueError for a base in 8 or 4 bits.
    """
    bits = {torch.int8: 8, torch.uint8: 4}
    found = next((bits[p.dtype] for p in model.parameters() if p.dtype in bits), None)
    if found is not None:
        raise ValueError(
            f"a base in {found} bits cannot be merged; load the adapter on the base in full precision and merge"
        )
    if find_lora_layers(model):
        merge_lora(model)
    return merge_rows(model) if has_new_rows(model) else model


def save_adapter(
    folder: str | Path,
    model: PreTrainedModel,
    base: str,
    vocabulary: Vocabulary,
    dtype: torch.dtype = torch.float32,
    row_levels: int = 0,
    features: Tensor | None = None,
) -> None:
    """Write the folder that `load_adapter` reads; every file appears whole or not at all.

    base: the name that the base is loaded by. dtype: of the stored weights. row_levels: store each new row as so many
    levels on either side of 0 times a scale of its own; 127, 8 bits, take a quarter of float32 and are off by at most
    half a percent of the row's largest value. features: of the codes, [R, F], for `pack_rows`.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if find_lora_layers(model):
        state = {name: t.detach().to("cpu", dtype).contiguous() for name, t in extract_lora_state(model).items()}
        write_bytes_atomically(folder / LORA_FILE, save(state, metadata={"format": "pt"}))
        config = model.peft_config[ADAPTER]
        config.base_model_name_or_path = base
        config.inference_mode = True
        config.save_pretrained(folder)
        config.inference_mode = False
    if has_new_rows(model):
        rows: dict[str, Tensor] = {}
        for side, table in get_new_rows(model).items():
            table = table.detach().float().cpu()
            plain = {side: table.to(dtype).contiguous()}
            rows |= pack_rows(side, table, row_levels, features) if row_levels else plain
        write_bytes_atomically(folder / ROWS_FILE, save(rows, metadata={"format": "pt"}))
    for beside in (find_depth_decoder(model), find_continuous_media(model), find_fourier_heads(model)):
        if beside is not None:
            beside.save(folder)
    prompt = find_soft_prompt(model)
    if prompt is not None:
        save_soft_prompt(folder, prompt, model, base, dtype)
    vocabulary.save(folder / "vocabulary.json")
    record = AdapterRecord(
        format=FORMAT,
        base=base,
        base_rows=find_base_table(model).num_embeddings,
        base_sha256=hash_base(model),
        max_positions=int(model.config.max_position_embeddings),
        architecture=type(model).__name__,
        lora=bool(find_lora_layers(model)),
        new_rows=has_new_rows(model),
        soft_prompt=0 if prompt is None else len(prompt),
    )
    write_adapter_record(folder, record)  # last: the folder counts from now on


def load_adapter(
    folder: str | Path, base: LoadedBase | None = None, precision: Precision = "float32", check_base: bool = True
) -> tuple[PreTrainedModel, Vocabulary]:
    """The base with the folder's adapter and new rows on it, ready to run or to be trained further; and the vocabulary.

    base: a loaded base, changed in place; without it the base is loaded by the name in the folder. check_base=False
    accepts another embedding table than the one of training, such as a rounded copy. Raises ValueError, in one line,
    for an incomplete folder and for a base or vocabulary that does not belong to it.
    """
    folder = Path(folder)
    record = read_adapter_record(folder)
    vocabulary = read_vocabulary(folder / "vocabulary.json")
    base = base or load_base(record.base, precision)
    model = base.model
    if base.num_rows != record.base_rows:
        raise ValueError(f"{folder} was trained on a base of {record.base_rows} rows; {base.name} has {base.num_rows}")
    found = hash_base(model)
    if check_base and found != record.base_sha256:
        raise ValueError(
            f"{folder} was trained on the base with table {record.base_sha256[:16]}…, but {base.name} has "
            f"{found[:16]}…; name the base it was trained on, or load it with check_base=False"
        )
    model.requires_grad_(False)
    if record.new_rows:
        expected = vocabulary.size - base.num_rows
        rows = read_new_rows(folder, expected)
        extend_rows(model, expected, draw_rows=lambda table, _: table.new_zeros(expected, table.shape[1]))
        for side, parameter in get_new_rows(model).items():
            if side not in rows or rows[side].shape != parameter.shape:
                raise ValueError(f"{folder}/{ROWS_FILE} has no {side} rows {list(parameter.shape)}; {_AGAIN}")
            parameter.data = rows[side].to(parameter.device, torch.float32)
    if record.lora:
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(folder)
        config.inference_mode = False
        add_lora(model, config)
        load_lora_state(model, read_tensors(folder / LORA_FILE))
    if record.new_rows:
        for parameter in get_new_rows(model).values():
            parameter.requires_grad_(True)
    if record.soft_prompt:
        prompt = attach_soft_prompt(model, read_soft_prompt(folder))
        if len(prompt) != record.soft_prompt:
            raise ValueError(f"{folder}: its soft prompt has {len(prompt)} tokens, not {record.soft_prompt}; {_AGAIN}")
    attach_depth_decoder(model, folder, vocabulary, torch.float32)
    attach_continuous_media(model, folder, vocabulary, torch.float32)
    attach_fourier_heads(model, folder, vocabulary, torch.float32)
    return model.eval(), vocabulary


def read_new_rows(folder: Path, expected: int) -> dict[str, Tensor]:
    """The new rows [R, D] of an adapter folder by side, in full precision; `expected`: how many there must be.

    Raises ValueError, in one line, for a file that is missing or damaged, and for another number of rows.
    """
    rows = unpack_rows(read_tensors(folder / ROWS_FILE))
    if "input" not in rows:
        raise ValueError(f"{folder}/{ROWS_FILE} has no input rows; {_AGAIN}")
    if len(rows["input"]) != expected:
        raise ValueError(f"{folder}: {len(rows['input'])} new rows but vocabulary.json has {expected}; {_AGAIN}")
    return rows


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError, in one line, for one that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({describe_error(error, 120)}); {_AGAIN}") from None
