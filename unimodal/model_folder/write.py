"""Writes a model folder, laid out as its Hub repository, from the parts of a trained model."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unimodal.model.continuous_media import take_continuous_media
from unimodal.model.depth_decoder import take_depth_decoder
from unimodal.model.fourier_head import take_fourier_heads
from unimodal.model_folder.hashes import check_hash
from unimodal.model_folder.layout import (
    GENERATION_FILE,
    PROCESSOR_FILE,
    VOCABULARY_FILE,
    list_special_ids,
    locate_tokenizer,
)
from unimodal.model_folder.settings import MediumSettings, ProcessorConfig
from unimodal.text.hub_tokenizer import save_hub_tokenizer
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import MediaTokenizer, hash_stored
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(
    folder: str | Path,
    decoder: PreTrainedModel,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    tokenizers: Mapping[str, MediaTokenizer],
    processor: ProcessorConfig | None = None,
    sampling: Mapping[str, MediumSettings] | None = None,
) -> None:
    """Writes all files but the card: first beside the folder, then moved into it.

    tokenizers: by modality, one for each medium of the vocabulary. decoder: a Hugging Face causal LM, stored in half
    precision. sampling: settings by modality, kept under `unimodal` in generation_config.json. Raises ValueError if a
    tokenizer is not the one that the vocabulary was built with; then nothing is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch)
        for modality in vocabulary.media:
            if modality not in tokenizers:
                raise ValueError(f"the vocabulary has {modality} but no {modality} tokenizer was given")
            tokenizers[modality].save(locate_tokenizer(new, modality))
            found = hash_stored(locate_tokenizer(new, modality))
            check_hash(vocabulary, modality, found)
        check_hash(vocabulary, "text", text.sha256)
        vocabulary.save(new / VOCABULARY_FILE)
        save_hub_tokenizer(new, vocabulary, text, int(decoder.config.max_position_embeddings))
        from transformers.utils import logging

        logging.disable_progress_bar()
        stored = copy.deepcopy(decoder)
        for beside in (take_depth_decoder(stored), take_continuous_media(stored), take_fourier_heads(stored)):
            if beside is not None:
                beside.save(new)
        stored.half()
        stored.config.use_cache = True
        stored.save_pretrained(new)
        _write(new / PROCESSOR_FILE, (processor or ProcessorConfig()).model_dump(mode="json"))
        generation = {
            **list_special_ids(vocabulary),
            "unimodal": {name: settings.model_dump() for name, settings in (sampling or {}).items()},
        }
        _write(new / GENERATION_FILE, generation)
        for path in sorted(new.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(new)
                target.parent.mkdir(exist_ok=True)
                path.chmod(0o644)  # safetensors' own files are for the owner alone
                os.replace(path, target)


def _write(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
