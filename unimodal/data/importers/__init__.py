"""Importers: rows of other projects' dataset formats → conversations. `detect_format` names a dataset's format.

An importer is a function `(row, folder) → Conversation` that raises ValueError for a row it cannot use. To add a
format, write its file and a line in `IMPORTERS`, and say in `detect_format` what its columns look like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import ValidationError

from unimodal.data.importers.cauldron import import_cauldron
from unimodal.data.importers.columns import find_placeholders, has_own_media, list_media_columns, read_json_list
from unimodal.data.importers.interleaved import import_interleaved
from unimodal.data.importers.llama_factory import import_llama_factory
from unimodal.data.importers.llava import import_llava
from unimodal.data.importers.ms_swift import import_ms_swift
from unimodal.data.importers.pairs import ANSWER_COLUMNS, LABEL_COLUMN, TEXT_COLUMNS, PairsConfig, import_pairs
from unimodal.data.importers.sharegpt import import_sharegpt
from unimodal.data.importers.trl import import_trl
from unimodal.data.importers.unused import ReadRow, check_unused, check_wanted, find_media_column, list_unread
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, describe_message_error
from unimodal.data.rows import Row

__all__ = ["IMPORTERS", "Importer", "PairsConfig", "detect_format", "import_row"]

Importer = Callable[[Row, MediaFolder], Conversation]


def detect_format(rows: Sequence[Row], folder: MediaFolder) -> str:
    """Detects the format of a dataset by the columns of its first rows.

    Raises ValueError, naming the columns, if they fit no format.
    """
    columns = {column for row in rows for column, value in row.items() if value is not None}
    media = {column for names in list_media_columns().values() for column in names} & columns
    if "conversations" in columns:
        return "llava" if media & {"image", "video"} else "sharegpt"
    if "messages" in columns:
        contents = [message.get("content") for row in rows for message in _list_objects(row.get("messages"))]
        if any(has_own_media(content) for content in contents):
            return "trl"
        if any(isinstance(content, str) and find_placeholders(content) for content in contents) and media:
            return "llama_factory"
        if not media:
            _check_unmarked(contents)
        return "ms_swift" if media & {"videos", "audios"} and _are_all_texts(contents) else "trl"
    if {"prompt", "completion"} <= columns:
        if not media:
            _check_unmarked(row.get("prompt") for row in rows)
        return "trl"
    if {"instruction", "output"} <= columns:
        return "llama_factory"
    if {"query", "response"} <= columns or "conversation" in columns:
        return "ms_swift"
    if "texts" in columns:
        return "cauldron" if any(_list_objects(row.get("texts")) for row in rows) else "interleaved"
    has_answer = "question" in columns and bool(columns & set(ANSWER_COLUMNS))
    if media and (columns & {*TEXT_COLUMNS, LABEL_COLUMN} or has_answer):
        return "pairs"
    if "text" in columns:
        return "trl"
    for row in rows:
        check_wanted(row)
    found = next((found for row in rows if (found := find_media_column(row, folder)) is not None), None)
    advice = f": columns={{{found[1]}: {found[0]}}} for the {found[1]}" if found else ""
    if found and found[0] in media:
        advice = f": columns={{text: …}} for what is said of the {found[1]}"
    raise ValueError(
        f"no format is known for the columns {', '.join(sorted(columns)) or 'none'}; "
        f"rename them with columns{advice}, or choose format {', '.join(IMPORTERS)}"
    )


def import_row(
    name: str, columns: Row, folder: MediaFolder, pairs: PairsConfig, unread: set[str] | None = None
) -> Conversation:
    """Imports one row of the named format; with `webdataset` the format of each row is detected by itself.

    unread: gets the names of columns, and of keys of messages, that hold something and are not used.

    Raises ValueError for a bad row, and for one with a column that would be lost.
    """
    check_wanted(columns)
    name = detect_format([columns], folder) if name == "webdataset" else name
    row = ReadRow(columns)
    try:
        made = import_pairs(row, folder, pairs) if name == "pairs" else IMPORTERS[name](row, folder)
    except ValidationError as error:
        raise ValueError(describe_message_error(error)) from None
    check_unused(row, made, folder)
    if unread is not None:
        unread |= list_unread(row)
    return made


def _list_objects(value: object) -> list[Mapping[str, object]]:
    """The objects of a list, which may be written as JSON; [] if the value is no list."""
    try:
        found = read_json_list(value, "")
    except ValueError:
        return []  # reported when the row is read
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, (list, tuple)) else []


def _check_unmarked(contents: Iterable[object]) -> None:
    """Raises ValueError for a text with a placeholder, such as <image>, in a dataset that has no media."""
    texts = (content for content in contents if isinstance(content, str))
    medium = next((name for text in texts for name in find_placeholders(text)), None)
    if medium is not None:
        column = list_media_columns()[medium][0]
        raise ValueError(
            f"a text holds <{medium}> and no column holds {column}; give them in the column {column}, or choose format "
            f"trl, where <{medium}> is a text like any other"
        )


def _are_all_texts(contents: Sequence[object]) -> bool:
    return all(isinstance(content, str) for content in contents)


#: format → importer; `auto` chooses among them, and `webdataset` reads tars and chooses for each sample
IMPORTERS: dict[str, Importer] = {
    "trl": import_trl,
    "llava": import_llava,
    "sharegpt": import_sharegpt,
    "llama_factory": import_llama_factory,
    "ms_swift": import_ms_swift,
    "cauldron": import_cauldron,
    "interleaved": import_interleaved,
    "pairs": import_pairs,
}
