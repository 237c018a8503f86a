"""The decoder of a model folder: the stock causal LM that config.json names, or an adapter on a base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from unimodal.files import describe_error, read_json
from unimodal.model.adapter import load_adapter
from unimodal.model.adapter_files import is_adapter, read_adapter_record
from unimodal.model.base import find_decoder_class, load_base, silence_transformers
from unimodal.model.continuous_media import attach_continuous_media
from unimodal.model.depth_decoder import attach_depth_decoder
from unimodal.model.fourier_head import attach_fourier_heads
from unimodal.model.image_head import HEAD_FILE, ImageHead, attach_image_head
from unimodal.model.prompt_files import has_soft_prompt, read_soft_prompt
from unimodal.model.soft_prompt import attach_soft_prompt
from unimodal.model.tokenformer import is_tokenformer, load_tokenformer
from unimodal.model_folder.layout import CONFIG_FILE
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_decoder(folder: Path, vocabulary: Vocabulary) -> PreTrainedModel:
    """Loads the decoder of a folder in float32: its causal LM, or the base that it names with the folder's adapter on
    it.

    Raises ValueError, in one line, for weights that are missing, damaged or of another vocabulary.
    """
    if is_adapter(folder):
        return load_adapter(folder)[0]
    rows = read_json(folder / CONFIG_FILE).get("vocab_size", 0)
    if not isinstance(rows, int) or rows < vocabulary.size:
        raise ValueError(
            f"{folder}: the decoder has {rows} rows but vocabulary.json {vocabulary.size}; they do not belong together"
        )
    decoder = load_tokenformer(folder) if is_tokenformer(folder) else load_stock(folder, torch.float32)
    attach_image_head(decoder, folder)
    attach_depth_decoder(decoder, folder, vocabulary)
    attach_continuous_media(decoder, folder, vocabulary)
    attach_fourier_heads(decoder, folder, vocabulary)
    if has_soft_prompt(folder):
        attach_soft_prompt(decoder, read_soft_prompt(folder))
    _check_head(decoder, vocabulary, folder)
    return decoder


def load_stock(folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """Loads the causal LM of a whole model's folder, as transformers has it, in eval mode. dtype "auto": as it is
    stored.

    Raises ValueError, in one line, for an architecture that is no causal LM and for weights that cannot be used.
    """
    from safetensors import SafetensorError

    architectures = read_json(folder / CONFIG_FILE).get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    stock = find_decoder_class(architecture)
    if stock is None:
        raise ValueError(f"{folder}/{CONFIG_FILE} names the architecture {architecture}; it must be a causal LM")
    try:
        with silence_transformers():
            decoder, found = stock.from_pretrained(
                folder,
                dtype=dtype,
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
    return decoder.eval()


def load_base_of(folder: Path) -> PreTrainedModel | None:
    """The base as it was before a folder's adapter, in float32; None for a whole model."""
    if not is_adapter(folder):
        return None
    return load_base(read_adapter_record(folder).base).model.eval()


def _check_head(decoder: PreTrainedModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Raises ValueError if a block of codes is scored by rows of zeros: the folder has lost its head of their own."""
    head = decoder.get_output_embeddings()
    for block in vocabulary.blocks:
        if not isinstance(head, ImageHead) and not head.weight[block.start].any():
            raise ValueError(f"{folder}: nothing scores the {block.label} codes; {HEAD_FILE} is missing, convert again")
