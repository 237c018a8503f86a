"""What lies in an adapter's folder besides weights: the names of its files, and `base.json`. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from unimodal.files import read_json_as, write_json

BASE_FILE = "base.json"
ROWS_FILE = "new_rows.safetensors"
LORA_FILE = "adapter_model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class AdapterRecord:
    """`base.json`: which base an adapter belongs on, and what was trained.

    base: folder or hub id. base_rows: rows of its embedding table, padded ones included. base_sha256: `hash_base` of
    that table. lora, new_rows: whether the folder holds LoRA, and new rows. soft_prompt: the length of its prompt.
    """

    format: int
    base: str
    base_rows: int
    base_sha256: str
    max_positions: int
    architecture: str
    lora: bool
    new_rows: bool
    soft_prompt: int = 0


def is_adapter(folder: str | Path) -> bool:
    """Whether this folder holds an adapter rather than a whole model."""
    return (Path(folder) / BASE_FILE).is_file()


def read_adapter_record(folder: str | Path) -> AdapterRecord:
    """Read `base.json`. Raises ValueError, in one line, for a folder without it and for a file of another format."""
    path = Path(folder) / BASE_FILE
    if not path.exists():
        raise ValueError(f"{folder} is not an adapter folder: {BASE_FILE} is missing")
    record = read_json_as(AdapterRecord, path, "copy or download the folder again")
    if record.format != FORMAT:
        raise ValueError(f"{path} has an unknown format; use the unimodal that wrote it")
    return record


def write_adapter_record(folder: str | Path, record: AdapterRecord) -> None:
    """Write `base.json` whole or not at all."""
    write_json(Path(folder) / BASE_FILE, asdict(record))
