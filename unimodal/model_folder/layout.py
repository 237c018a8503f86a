"""The names of the files in a model folder, as in its Hub repository. Imports no torch.

    config.json generation_config.json model.safetensors            the decoder, any Hugging Face causal LM; a large one
                                                                     is in shards, with model.safetensors.index.json
    tokenizer.json tokenizer_config.json chat_template.jinja         text, with one token per control and media row
    vocabulary.json processor_config.json                            rows ⇄ codes; how files are read and words put
    image_tokenizer/ audio_tokenizer/ video_tokenizer/               config.json and model.safetensors each
    image_reader/                                                    the same, of a model that reads features, no codes
    depth_decoder.safetensors                                        writes the codes of summed positions
    continuous_media.safetensors                                     reads and writes vectors in place of codes
    fourier_heads.safetensors                                        score the codes of ordered blocks

An adapter has `base.json`, which names its base, and its own weights in place of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unimodal.files import read_json
from unimodal.model.adapter_files import BASE_FILE, is_adapter, read_adapter_record

if TYPE_CHECKING:
    from unimodal.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PROCESSOR_FILE = "processor_config.json"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
REQUIRED = (CONFIG_FILE, WEIGHTS, TEXT_FILES[0], VOCABULARY_FILE)
ADAPTER_REQUIRED = (BASE_FILE, TEXT_FILES[0], VOCABULARY_FILE)


def locate_tokenizer(folder: Path, modality: str) -> Path:
    return folder / f"{modality}_tokenizer"


def locate_reader(folder: Path, modality: str) -> Path:
    return folder / f"{modality}_reader"


def find_missing(folder: Path) -> list[str]:
    """The required files that are not in a folder. Raises ValueError for an index of shards that cannot be read."""
    required = list(ADAPTER_REQUIRED if is_adapter(folder) else REQUIRED)
    if WEIGHTS in required and not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        required.remove(WEIGHTS)
        required += list_shards(folder)
    return [file for file in required if not (folder / file).is_file()]


def list_shards(folder: Path) -> list[str]:
    """The weight files that `model.safetensors.index.json` names. Raises ValueError for one outside the folder."""
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside or not names:
        raise ValueError(f"{path} names {outside[0] if outside else 'no file'}; it must name safetensors files here")
    return names


def list_special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The ids that transformers' configs name: the start of a text, the end of an answer, and the padding."""
    return {
        "bos_token_id": vocabulary.get_control_id("<|bos|>"),
        "eos_token_id": vocabulary.get_control_id("<|end_of_turn|>"),
        "pad_token_id": vocabulary.get_control_id("<|pad|>"),
    }


def read_positions(folder: Path) -> int | None:
    """The number of tokens that the folder's decoder can hold at once; None for a folder of tokenizers alone."""
    if is_adapter(folder):
        return read_adapter_record(folder).max_positions
    if not (folder / CONFIG_FILE).is_file():
        return None
    config = read_json(folder / CONFIG_FILE)
    text = config.get("text_config")
    for part in (config, text):
        found = part.get("max_position_embeddings") if isinstance(part, Mapping) else None
        if isinstance(found, int):
            return found
    return None
