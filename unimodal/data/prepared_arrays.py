"""Prepared arrays, checked when they are opened: what is missing or of another shape is said in one line.

arrays = open_arrays(folder / "clips.npz", "python tools/prepare_clips.py", {
    "frames": ("u", ("C", 9, 64, 64, 3)),       # uint8; C is the same number wherever it stands
    "concept": ("iu", ("C",)),
})
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimodal.data.encoded_media import EVALUATION_STYLES, TRAINING_STYLES, Concept
from unimodal.files import describe_error, quote_path

SOURCE = "source_sha256"  # in views.npz: the hash of the images.npz that they were made of
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


def open_views(folder: Path, size: int, sizes: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """`views.npz`: pixels uint8 [M, V, size, size, 3] and trunk features float [M, V, 1280] of the M pictures.

    Raises ValueError as `open_arrays` does, and for views of other pictures than those of `images.npz`.
    """
    path, command = folder / "views.npz", "python tools/prepare_views.py"
    expected = {"pixels": ("u", ("M", "V", size, size, 3)), "features": ("f", ("M", "V", 1280))}
    sizes = {} if sizes is None else sizes
    if "M" not in sizes:
        open_arrays(folder / "images.npz", "python tools/prepare_images.py", {"concept": ("iu", ("M",))}, sizes)
    views = open_arrays(path, command, expected, sizes)
    with np.load(path) as stored:  # files of older versions do not name their source
        source = str(stored[SOURCE]) if SOURCE in stored.files else None
    if source not in (None, hash_file(folder / "images.npz")):
        raise ValueError(f"{quote_path(path)} holds views of other pictures than images.npz; run `{command}` again")
    return views


def hash_file(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
