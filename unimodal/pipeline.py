"""The whole flow on one page: files and words in, files and words out.

    from unimodal.pipeline import load
    from unimodal.sequence.document import Image

    model = load()                                                  # nano; or a folder, or a hub id
    [answer] = model.chat(["What is this?", Image(path="apple.png")])
    print(answer.text)
    model.generate("a red apple", to="image", seed=1).save("apple.png")

file → media → tokenizer → codes → vocabulary → sequence → decoder → sequence → vocabulary → codes → tokenizer → media

Legend: N tokens of a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unimodal.generation.engine import Engine, GenerationConfig
from unimodal.pipeline_folder import (
    MediumSettings,
    ProcessorConfig,
    find_model,
    read_json,
    read_processor,
    read_sampling,
)
from unimodal.pipeline_media import MediaCoder, MediaCodes, Output
from unimodal.sequence.document import Document, Part, Text, Turn
from unimodal.sequence.template import Template
from unimodal.sequence.text_tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MediaCodes", "Output", "Unimodal", "load"]
