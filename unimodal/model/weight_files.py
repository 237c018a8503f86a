"""Weights are opened from safetensors and nothing else. Imports no torch.

A pickle runs its author's code as soon as it is opened, whatever its suffix. So a folder that holds one is refused
before anything is loaded from it. A `.safetensors` file must begin as the format does: eight bytes with the length of a
JSON header, then the header (huggingface/safetensors, README).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PROMPT_FOLDER = "soft_prompt"  # folder in a model folder: its soft prompt, in peft's format
ORIGINAL = "original"  # folder in a converted folder: the files of its checkpoint that have no other place
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def list_weight_files(folder: Path) -> Iterable[Path]:
    """The files of a model folder and of the folders of its media tokenizers and readers that look like weights."""
    beside = [*sorted(folder.glob("*_tokenizer")), *sorted(folder.glob("*_reader"))]
    places = [folder, *beside, folder / ORIGINAL, folder / PROMPT_FOLDER]
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix.lower() in (*PICKLED, ".safetensors"):
                yield path


def check_weight_files(paths: Iterable[Path]) -> None:
    """Raises ValueError, in one line, for a pickle among these files, whatever its suffix, and for a damaged file."""
    for path in paths:
        if path.suffix.lower() == ".safetensors":
            _check_safetensors(path)
        else:
            raise ValueError(f"{path} {_PICKLE}")


_PICKLE = (
    "is a pickle, which can run any program when it is opened; only safetensors are loaded: take it out of the folder"
)


def _check_safetensors(path: Path) -> None:
    """ValueError for a file that does not begin with a safetensors header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; copy or download it again") from None
    length = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and length <= min(size - 8, MAX_HEADER_BYTES):
        return
    if start[:1] == b"\x80" or start[:4] == b"PK\x03\x04":  # pickle's protocol mark; the zip that torch.save writes
        raise ValueError(f"{path} {_PICKLE}")
    raise ValueError(f"{path} is damaged: it does not begin as safetensors do; copy or download it again")
