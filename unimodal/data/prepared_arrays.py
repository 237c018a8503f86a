"""Prepared arrays, checked when they are opened: what is missing or of another shape is said in one line.

arrays = open_arrays(folder / "clips.npz", "python tools/prepare_clips.py", {
    "frames": ("u", ("C", 9, 64, 64, 3)),       # uint8; C is the same number wherever it stands
    "concept": ("iu", ("C",)),
})
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimodal.data.encoded_media import EVALUATION_STYLES, TRAINING_STYLES, Concept
from unimodal.files import describe_error, quote_path

Shape = tuple[int | str, ...]  # a letter stands for any number, the same wherever the letter stands


def open_arrays(
    path: Path, command: str, expected: Mapping[str, tuple[str, Shape]], sizes: dict[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Opens the arrays of an `.npz` file. expected: name → (letters of numpy for the kinds of numbers, shape).

    sizes: letters of shapes that are known already → their sizes; those of this file are added. Raises ValueError, in
    one line, for a file that is missing or damaged, and for an array that is missing, of another kind or of another
    shape.
    """
    known = {} if sizes is None else sizes
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in expected if name not in stored.files]
            if missing:
                raise ValueError(f"{quote_path(path)} has no array {missing[0]!r}; it has {', '.join(stored.files)}")
            found = {name: stored[name] for name in expected}
    except FileNotFoundError:
        raise ValueError(f"{quote_path(path)} is missing; make it with `{command}`") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{quote_path(path)} is damaged ({describe_error(error)}); make it with `{command}`") from None
    for name, (kinds, shape) in expected.items():
        _check_array(path, name, found[name], kinds, shape, known)
    return found


def _check_array(path: Path, name: str, array: np.ndarray, kinds: str, shape: Shape, known: dict[str, int]) -> None:
    if array.dtype.kind not in kinds:
        wanted = {"u": "uint8", "i": "integers", "f": "floats", "U": "texts"}[kinds[0]]
        raise ValueError(f"{quote_path(path)}: {name} holds {array.dtype}, not {wanted}")
    fits = array.ndim == len(shape)
    for size, given in zip(array.shape, shape, strict=False):
        wanted_size = known.setdefault(given, size) if isinstance(given, str) else given
        fits = fits and size == wanted_size
    if not fits:
        wanted = ", ".join(
            f"{one}={known[one]}" if isinstance(one, str) and one in known else str(one) for one in shape
        )
        raise ValueError(f"{quote_path(path)}: {name} has the shape {list(array.shape)}, not [{wanted}]")


def check_concepts(
    path: Path, numbers: np.ndarray, concepts: Sequence[Concept], used: np.ndarray | None = None
) -> None:
    """Raises ValueError for concept numbers out of range, and if there is no concept to train on or none to hold out.

    numbers: int [M]. used: bool [M], which of them may be trained on; None: all.
    """
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(concepts)):
        wrong = numbers[(numbers < 0) | (numbers >= len(concepts))][0]
        raise ValueError(f"{quote_path(path)}: concept {wrong} is not in concepts.json, which has {len(concepts)}")
    for split in ("train", "heldout"):
        if not any(concepts[number].split == split for number in (numbers if used is None else numbers[used])):
            raise ValueError(f"{quote_path(path)} shows no concept whose split is {split!r}; concepts.json gives them")


def check_styles(path: Path, styles: np.ndarray) -> None:
    """Raises ValueError for a style that the recipes do not know."""
    unknown = sorted({str(style) for style in styles} - {*TRAINING_STYLES, *EVALUATION_STYLES})
    if unknown:
        raise ValueError(
            f"{quote_path(path)}: style {unknown[0]!r} is unknown; call your own pictures {', '.join(TRAINING_STYLES)} "
            f"({', '.join(EVALUATION_STYLES)} is never trained on)"
        )
