"""Copies a GGUF file with the rows that an exported model never writes in a text answer.

    python tools/suppress_in_gguf.py EXPORTED model.gguf out.gguf

llama.cpp reads them from `tokenizer.ggml.suppress_tokens` (from build b9495 on) and gives them the logit -inf, whatever
else samples. Its converter writes the key for a few families only, so it is added here from `suppress_tokens` in the
exported folder's generation_config.json. A file that is to write media as well stays without it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unimodal.files import read_json

KEY = "tokenizer.ggml.suppress_tokens"


def suppress(folder: Path, source: Path, out: Path) -> int:
    """Writes `out` and returns the number of rows. Raises ValueError, in one line, for a folder that names none, a file
    that is there already and a file of another model."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    rows = read_json(folder / "generation_config.json").get("suppress_tokens")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{folder}/generation_config.json names no suppress_tokens; export the model again")
    if out.exists():
        raise ValueError(f"{out} is there already; name another file")
    reader = gguf.GGUFReader(source)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    count = 0 if tokens is None else len(tokens.data)
    if max(rows) >= count:
        raise ValueError(f"{source} has {count} tokens, {folder} has a row {max(rows)}; they are not of one model")
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(out, arch=str(architecture.contents()), endianess=reader.endianess)
    details = MetadataDetails(gguf.GGUFValueType.ARRAY, [int(row) for row in rows])
    copy_with_new_metadata(reader, writer, {KEY: details}, [KEY])
    return len(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exported", type=Path, help="what `unimodal export` wrote")
    parser.add_argument("source", type=Path, help="the file that llama.cpp's converter made of it")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    try:
        count = suppress(given.exported, given.source, given.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {count:,} rows are never written", file=sys.stderr)


if __name__ == "__main__":
    main()
