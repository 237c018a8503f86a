"""Importers: rows of other projects' dataset formats → conversations, one file a format, and which format a row is.

An importer is a function `(row, folder) → Conversation` that raises ValueError for a row it cannot use. To add a
format, write its file and a line in `IMPORTERS`, and say in `detect` what its columns look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from unimodal.data.importers.columns import find_placeholders, has_own_media, media_columns
from unimodal.data.importers.llama_factory import import_llama_factory
from unimodal.data.importers.llava import import_llava
from unimodal.data.importers.ms_swift import import_ms_swift
from unimodal.data.importers.pairs import TEXT_COLUMNS, PairsConfig, import_pairs
from unimodal.data.importers.sharegpt import import_sharegpt
from unimodal.data.importers.trl import import_trl
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import Row

__all__ = ["IMPORTERS", "Importer", "PairsConfig", "detect", "import_row"]

Importer = Callable[[Row, MediaFolder], Conversation]


def detect(rows: Sequence[Row]) -> str:
    """The name of the format that some first rows of a dataset have, by their columns.

    Raises ValueError, naming the columns, where they fit none.
    """
    columns = {column for row in rows for column, value in row.items() if value is not None}
    media = {column for names in media_columns().values() for column in names} & columns
    if "conversations" in columns:
        return "llava" if media & {"image", "video"} else "sharegpt"
    if "messages" in columns:
        contents = [message.get("content") for row in rows for message in _messages(row)]
        if any(has_own_media(content) for content in contents):
            return "trl"
        if any(isinstance(content, str) and find_placeholders(content) for content in contents) and media:
            return "llama_factory"
        return "ms_swift" if media & {"videos", "audios"} and _all_text(contents) else "trl"
    if {"prompt", "completion"} <= columns:
        return "trl"
    if {"instruction", "output"} <= columns:
        return "llama_factory"
    if {"query", "response"} <= columns or "conversation" in columns:
        return "ms_swift"
    if media and (columns & set(TEXT_COLUMNS) or {"question", "answer"} <= columns):
        return "pairs"
    if "text" in columns:
        return "trl"
    raise ValueError(
        f"no format is known for the columns {', '.join(sorted(columns)) or 'none'}; "
        f"rename them with columns, or choose format {', '.join(IMPORTERS)}"
    )


def import_row(name: str, row: Row, folder: MediaFolder, pairs: PairsConfig) -> Conversation:
    """One row by the format of this name; `webdataset` looks at each row by itself. Raises ValueError for a bad row."""
    name = detect([row]) if name == "webdataset" else name
    return import_pairs(row, folder, pairs) if name == "pairs" else IMPORTERS[name](row, folder)


def _messages(row: Row) -> list[Mapping[str, object]]:
    found = row.get("messages")
    return [message for message in found if isinstance(message, Mapping)] if isinstance(found, (list, tuple)) else []


def _all_text(contents: Sequence[object]) -> bool:
    return all(isinstance(content, str) for content in contents)


#: format → importer; `auto` chooses among them, and `webdataset` reads tars and chooses for each sample
IMPORTERS: dict[str, Importer] = {
    "trl": import_trl,
    "llava": import_llava,
    "sharegpt": import_sharegpt,
    "llama_factory": import_llama_factory,
    "ms_swift": import_ms_swift,
    "pairs": import_pairs,
}
