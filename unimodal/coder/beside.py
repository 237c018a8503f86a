"""What a user gives beside a file or its codes, for tokenizers whose encoder or decoder reads it: a text, or a file.

Shapes: M text vectors, D their width, H and W height and width, T samples.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.batches import read_medium
from unimodal.files import quote_path
from unimodal.media.image import fit_image, load_image
from unimodal.media.kind import detect_kind
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import Condition, MediaTokenizer

ARRAY, PLAIN = ".npy", ".txt"


@dataclass(frozen=True)
class Beside:
    """text: a caption, or what is said. file: the same as .txt; the vectors of a text model [M, D] as .npy; a picture
    or film, whose first frame is the frame before; or a sound, the beginning that is known. text_network: the text
    model, in place of the one that the tokenizer names. Text and file go together where the tokenizer reads a text and
    a medium."""

    text: str | None = None
    file: Path | None = None
    text_network: str | None = None


NOTHING_BESIDE = Beside()


def make_condition(tokenizer: MediaTokenizer, beside: Beside, kinds: Collection[str], side: str) -> Condition | None:
    """The condition of one item for one side, which reads `kinds`; None where nothing is given and it can do without.

    side: "encoder" or "decoder", for messages. Raises ValueError for what is needed and not given, and for what that
    side does not read.
    """
    text, file, who = beside.text, beside.file, f"the {side} of {tokenizer.config.family}"
    if text is None and file is None:
        needed = _describe_needed(tokenizer, kinds)
        if needed:
            raise ValueError(f"{who} reads {needed}")
        return None
    if not kinds:
        raise ValueError(f"{who} reads nothing beside; leave --text and --condition out")
    both = text is not None and file is not None
    if both and not {"text", "medium"} <= set(kinds):
        raise ValueError("--text and --condition are both given; use one of them")
    if file is not None and not file.is_file():
        raise ValueError(f"{quote_path(file)} is not a file; name the one that {who} reads")
    if file is not None and file.suffix.lower() == PLAIN:
        if both:
            raise ValueError(f"--text and {quote_path(file)} are both texts; use one of them")
        text = file.read_text("utf-8-sig", errors="replace")
    device = next(tokenizer.parameters()).device
    if text is not None:
        if not {"text", "features"} & set(kinds):
            raise ValueError(f"{who} reads no text; give --condition FILE")
        if not text.strip():
            raise ValueError("the text is empty; give a caption")
        if beside.text_network is not None:
            tokenizer.name_text_network(beside.text_network)
        maker = ConditionMaker(tokenizer)
        made = maker.choose(maker.make_of_texts([text.strip()], device), kinds)
        if not both or made is None:
            return made
        assert file is not None
        return replace(made, medium=_read_beside(tokenizer, file)[None].to(device))
    assert file is not None
    if file.suffix.lower() == ARRAY:
        if "features" not in kinds:
            raise ValueError(f"{who} reads no features, and {quote_path(file)} is an array")
        return Condition(features=_read_array(file)[None].to(device))
    if "medium" not in kinds:
        raise ValueError(f"{who} reads no medium; give --text, or the file as {PLAIN} or {ARRAY}")
    return Condition(medium=_read_beside(tokenizer, file)[None].to(device))


def _describe_needed(tokenizer: MediaTokenizer, kinds: Collection[str]) -> str:
    """What a side cannot do without and how it is given; "" for nothing."""
    kinds = set(kinds) - tokenizer.optional_conditions
    if "medium" in kinds:
        return "the frame before; give --condition FILE, a picture or a film"
    settings = tokenizer.text_settings
    if "features" in kinds and settings is None:
        return f"vectors of other networks; give --condition FILE{ARRAY}"
    if "features" in kinds and settings is not None and not settings.dropout:
        return f"a caption; give --text, or --condition FILE{ARRAY} with the vectors of its text model"
    return ""


def _read_array(file: Path) -> Tensor:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{quote_path(file)} is no array of numpy ({error}); save it with numpy.save") from None
    if found.ndim != 2 or found.dtype.kind != "f":
        raise ValueError(f"{quote_path(file)} holds {found.dtype} {list(found.shape)}; give floats [M, D]")
    return torch.from_numpy(found.astype(np.float32))


def _read_beside(tokenizer: MediaTokenizer, file: Path) -> Tensor:
    """A sound as the tokenizer reads sounds, [1, T]; or a picture, or the first frame of a film, as it reads frames,
    [3, H, W] in [0, 1]."""
    if tokenizer.modality == "audio":
        return read_medium(file, tokenizer)[None]
    if detect_kind(file) != "image":
        return read_medium(file, tokenizer)[0]
    picture, size = load_image(file), tokenizer.picture_size
    return picture.float() / 255 if size is None else fit_image(picture, size[0], "crop")
