"""Media tokenizers: one file per family behind the contract of `interface.py`.

`load_tokenizer(folder)` reads the `family` of the folder's config.json and loads that class; nothing heavy is imported
before. To add a family, write its file and a line in `FAMILIES`.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimodal.files import describe_error, read_json

if TYPE_CHECKING:
    from unimodal.tokenizers.interface import MediaTokenizer


def family_of(folder: str | Path) -> str:
    """The `family` in a tokenizer folder's config.json. Raises ValueError if there is none or it is not known."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a tokenizer folder: config.json is missing")
    family = read_json(path).get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"{path} names the tokenizer family {family!r}; known are {', '.join(FAMILIES)}")
    return family


def load_tokenizer(folder: str | Path, **parts: Any) -> MediaTokenizer:
    """The tokenizer that `save` wrote to `folder`, in float32 and eval mode.

    `parts` are modules that some families build on, e.g. `image_tokenizer=` for clips; a family takes what its `load`
    names and leaves the rest. Raises ValueError, in one line, for a folder that is not a tokenizer.
    """
    module, name = FAMILIES[family_of(folder)]
    load = getattr(importlib.import_module(module), name).load
    wanted = inspect.signature(load).parameters
    try:
        return load(folder, **{key: part for key, part in parts.items() if key in wanted})
    except Exception as error:
        if type(error).__name__ not in ("ValidationError", "SafetensorError"):
            raise
        raise ValueError(
            f"{folder} does not hold a usable tokenizer ({describe_error(error)}); take it from the model again"
        ) from None


# family → (module, class); imported only when a folder of that family is loaded
FAMILIES: dict[str, tuple[str, str]] = {
    "semantic_pixel_fsq": ("unimodal.tokenizers.nano.image", "ImageTokenizer"),
    "causal_motion_fsq": ("unimodal.tokenizers.nano.video", "VideoTokenizer"),
    "mel_fsq": ("unimodal.tokenizers.nano.audio", "AudioTokenizer"),
    "chameleon": ("unimodal.tokenizers.pretrained.chameleon", "ChameleonTokenizer"),
    "emu3": ("unimodal.tokenizers.pretrained.emu3", "Emu3Tokenizer"),
    "emu3_video": ("unimodal.tokenizers.pretrained.emu3", "Emu3VideoTokenizer"),
    "janus": ("unimodal.tokenizers.pretrained.janus", "JanusTokenizer"),
    "janus_reader": ("unimodal.tokenizers.pretrained.janus", "JanusReader"),
    "encodec": ("unimodal.tokenizers.pretrained.audio", "EncodecTokenizer"),
    "dac": ("unimodal.tokenizers.pretrained.audio", "DacTokenizer"),
    "mimi": ("unimodal.tokenizers.pretrained.audio", "MimiTokenizer"),
    "xcodec2": ("unimodal.tokenizers.pretrained.xcodec2", "Xcodec2Tokenizer"),
}
