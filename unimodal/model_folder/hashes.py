"""Checks, by the hash of their weights, that a model folder's tokenizers are those its vocabulary was built with."""

from __future__ import annotations

from pathlib import Path

from unimodal.model_folder.layout import VOCABULARY_FILE, locate_reader, locate_tokenizer
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import hash_stored
from unimodal.vocabulary import Vocabulary


def hash_tokenizer(folder: Path, modality: str) -> str:
    """The sha256 of a folder's tokenizer of "text" or of a medium. Raises ValueError if it cannot be read."""
    if modality == "text":
        return TextTokenizer.load(folder).sha256
    return hash_stored(locate_tokenizer(folder, modality))


def check_hash(vocabulary: Vocabulary, modality: str, sha256: str, source: str = "vocabulary") -> None:
    """Raises ValueError, naming both hashes, unless `vocabulary` was built with the tokenizer of this hash.

    source: what the message calls the vocabulary.
    """
    blocks = [block.name for block in vocabulary.blocks if block.modality == modality]
    vocabulary.check_hashes(dict.fromkeys(["text"] if modality == "text" else blocks, sha256), source=source)


def check_tokenizers(folder: Path, vocabulary: Vocabulary) -> dict[str, str]:
    """The sha256 of each media tokenizer of a folder, by modality.

    Raises ValueError, naming both hashes, unless they and the readers are those that `vocabulary` was built with.
    """
    source = folder / VOCABULARY_FILE
    found = {modality: hash_tokenizer(folder, modality) for modality in vocabulary.media}
    for modality, sha256 in found.items():
        check_hash(vocabulary, modality, sha256, str(source))
    for layout in vocabulary.layouts:
        if layout.features is not None:
            reader = hash_stored(locate_reader(folder, layout.modality))
            if reader != layout.features.sha256:
                raise ValueError(
                    f"{source}: the {layout.modality} reader has sha256 {reader} but the model was trained with "
                    f"{layout.features.sha256}; put the reader that came with the model back"
                )
    return found
