"""The sequence formats by name: our own, and those of converted checkpoints. Each is imported when it is used."""

from __future__ import annotations

import importlib
from pathlib import Path

from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary


def open_template(name: str, vocabulary: Vocabulary, folder: str | Path) -> Template:
    """The format of this name, with a model folder's text tokenizer. Raises ValueError for an unknown name."""
    if name not in TEMPLATES:
        raise ValueError(f"the sequence format {name!r} is unknown; there are {', '.join(TEMPLATES)}")
    if name == "unimodal" and isinstance(vocabulary, AdoptedVocabulary):
        raise ValueError(
            f"{folder} is a converted checkpoint, whose sequence format processor_config.json has to name: convert it"
        )
    module, class_name = TEMPLATES[name]
    never = () if name == "unimodal" else [row for block in vocabulary.blocks for row in block.rows]
    template: Template = getattr(importlib.import_module(module), class_name)(
        vocabulary, TextTokenizer.load(folder, never)
    )
    return template


TEMPLATES = {
    "unimodal": ("unimodal.sequence.templates.own", "Template"),
    "emu3": ("unimodal.sequence.templates.emu3", "Emu3Template"),
    "chameleon": ("unimodal.sequence.templates.chameleon", "ChameleonTemplate"),
    "janus": ("unimodal.sequence.templates.janus", "JanusTemplate"),
}
