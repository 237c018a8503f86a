"""The decoder of a model folder: the stock causal LM that config.json names, or an adapter on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unimodal.files import describe_error
from unimodal.model.adapter import load_adapter
from unimodal.model.adapter_files import BASE_FILE, is_adapter
from unimodal.model.base import find_decoder_class, load_base
from unimodal.model.image_head import HEAD_FILE, ImageHead, attach_image_head
from unimodal.model_folder.find import read_json
from unimodal.vocabulary import Vocabulary


def load_decoder(folder: Path, vocabulary: Vocabulary) -> Any:
    """The stock Hugging Face causal LM that config.json names, or an adapter on the base it names, in float32."""
    if is_adapter(folder):
        return load_adapter(folder)[0]
    import transformers
    from safetensors import SafetensorError

    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or ["none"])[0])
    stock = find_decoder_class(architecture)
    if stock is None:
        raise ValueError(f"{folder}/config.json names the architecture {architecture}; it must be a causal LM")
    if config.get("vocab_size", 0) < vocabulary.size:
        raise ValueError(
            f"{folder}: the decoder has {config.get('vocab_size')} rows but vocabulary.json {vocabulary.size}; "
            "they do not belong together"
        )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        decoder, found = stock.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"the decoder in {folder} cannot be loaded: {describe_error(error)}") from None
    if found["missing_keys"]:
        names = ", ".join(sorted(found["missing_keys"])[:3])
        raise ValueError(f"{folder}: the decoder lacks {names}; copy or download it again")
    attach_image_head(decoder, folder)
    _check_head(decoder, vocabulary, folder)
    return decoder.eval()


def _check_head(decoder: Any, vocabulary: Vocabulary, folder: Path) -> None:
    """ValueError for codes that are scored by rows of zeros: those that a head of their own stands for."""
    head = decoder.get_output_embeddings()
    for block in vocabulary.blocks:
        if not isinstance(head, ImageHead) and not head.weight[block.start].any():
            raise ValueError(f"{folder}: nothing scores the {block.label} codes; {HEAD_FILE} is missing, convert again")


def load_base_of(folder: Path) -> Any | None:
    """The base as it was before a folder's adapter, in float32; None for a whole model."""
    if not is_adapter(folder):
        return None
    return load_base(str(read_json(folder / BASE_FILE)["base"])).model.eval()
