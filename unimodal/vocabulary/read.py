"""Read a `vocabulary.json` and choose its class: our own order of rows, or that of an adopted checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from unimodal.vocabulary.adopted import AdoptedVocabulary
from unimodal.vocabulary.stored import StoredVocabulary
from unimodal.vocabulary.vocabulary import Vocabulary


def read_vocabulary(path: str | Path, tokenizer_hashes: Mapping[str, str] | None = None) -> Vocabulary:
    """The vocabulary in a file. tokenizer_hashes: block name (or `text`) → sha256 of the tokenizer in use.

    Raises ValueError for a file that is no vocabulary, and for another hash; the message names both.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a model folder holds its vocabulary.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); take vocabulary.json from the model's folder") from None
    try:
        vocabulary = parse_vocabulary(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    vocabulary.check_hashes(tokenizer_hashes or {}, source=str(path))
    return vocabulary


def parse_vocabulary(data: object) -> Vocabulary:
    """The inverse of `Vocabulary.to_dict`, for both classes. Raises ValueError for data that is no vocabulary."""
    stored = StoredVocabulary.parse(data)
    return (AdoptedVocabulary if stored.adopted else Vocabulary).from_stored(stored)
