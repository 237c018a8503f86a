"""Compressors with learned parts in folders: what `recipes/train_compressor.py` writes, and what opens it.

    compressor.json          the method, its settings, and the sizes of the decoder that it was trained for
    compressor.safetensors   the weights of its module

A folder names a method of this package, never code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

from unimodal.compression import METHODS
from unimodal.compression.learned import DecoderShape, LearnedMethod
from unimodal.files import open_atomic_path, quote_path, read_json_as, write_json

SETTINGS_FILE, WEIGHTS_FILE = "compressor.json", "compressor.safetensors"
FORMAT = 1
FIX = "write it again with recipes/train_compressor.py"
#: the settings of a method that a file can hold
Value: TypeAlias = bool | int | float | str | None | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class SavedCompressor:
    """The content of `compressor.json`; the numbers are those of the decoder's `DecoderShape`."""

    format: int
    method: str
    settings: dict[str, Value]
    width: int
    num_layers: int
    num_heads: int = 1
    head_width: int = 1


def find_learned(name: str) -> type[LearnedMethod]:
    """The class of a method with learned parts. Raises ValueError for any other name."""
    kind = METHODS.get(name)
    if kind is None or not issubclass(kind, LearnedMethod):
        learned = [each for each, one in METHODS.items() if one.is_learned]
        raise ValueError(f"{name!r} is no compressor with learned parts; choose from {', '.join(learned)}")
    return kind


def save_compressor(folder: Path, method: LearnedMethod, shape: DecoderShape) -> None:
    """Write a trained method, its settings last. shape: the sizes of the decoder that it was trained for."""
    from safetensors.torch import save_file

    module = method.module
    assert module is not None
    names = {kind: name for name, kind in METHODS.items()}
    settings = {spec.name: vars(method)[spec.name] for spec in fields(method) if spec.name != method.part}
    weights = {name: weight.detach().contiguous().cpu() for name, weight in module.state_dict().items()}
    with open_atomic_path(folder / WEIGHTS_FILE) as place:
        save_file(weights, place)
    saved = SavedCompressor(FORMAT, names[type(method)], settings, *shape)
    write_json(folder / SETTINGS_FILE, asdict(saved))


def load_compressor(folder: str | Path, keep: float | None = None) -> LearnedMethod:
    """The method of a folder with its weights; keep: another share than it was trained at.

    Raises ValueError, in one line, for a folder that holds none, and for one of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    saved = read_json_as(SavedCompressor, folder / SETTINGS_FILE, FIX)
    if saved.format != FORMAT:
        raise ValueError(f"{quote_path(folder)} has format {saved.format}, not {FORMAT}; {FIX}")
    kind = find_learned(saved.method)
    module = kind.make_part(DecoderShape(saved.width, saved.num_layers, saved.num_heads, saved.head_width))
    try:
        module.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError):
        raise ValueError(
            f"{quote_path(folder / WEIGHTS_FILE)} does not hold the weights of {saved.method}; {FIX}"
        ) from None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.settings.items()}
    try:
        method = kind(**values, **{kind.part: module.eval()})  # type: ignore[arg-type]  # the class checks its fields
    except TypeError:
        raise ValueError(
            f"{quote_path(folder / SETTINGS_FILE)} has settings that {saved.method} lacks; {FIX}"
        ) from None
    return method if keep is None else replace(method, keep=keep)
