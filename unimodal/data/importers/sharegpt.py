"""ShareGPT: `conversations` of `from` and `value` (or `role` and `content`), a `system` text, and media columns.

{"system": "be brief", "conversations": [{"from": "human", "value": "<image> what is this?"},
                                         {"from": "gpt", "value": "an apple"}], "images": ["apple.png"]}
"""

from __future__ import annotations

from typing import Any

from unimodal.data.importers.columns import fill_placeholders, list_of, media_of, refuse, role_of, text_of
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, parse_conversation
from unimodal.data.rows import Row


def import_sharegpt(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    return conversation_turns(row, folder, row.get("conversations"), "conversations")


def conversation_turns(
    row: Row, folder: MediaFolder, turns: Any, column: str, insert_missing: bool = False
) -> Conversation:
    """A conversation whose texts hold placeholders.

    insert_missing: media of a modality without any placeholder go before the first message of the user.
    """
    refuse(row, ("tools",), "describes tools, which documents do not have")
    refuse(row, ("chosen", "rejected", "rejected_response"), "is of a preference dataset, not of supervised training")
    refuse(row, ("objects",), "marks boxes, which documents do not have")
    roles: list[str] = []
    texts: list[str] = []
    if row.get("system"):
        roles.append("system")
        texts.append(text_of(row["system"], "system"))
    for turn in list_of(turns, column):
        roles.append(role_of(turn["from"] if turn.get("from") is not None else turn.get("role")))
        texts.append(text_of(turn["value"] if turn.get("value") is not None else turn.get("content"), "a turn"))
    front = roles.index("user") if insert_missing and "user" in roles else None
    filled = fill_placeholders(texts, media_of(row, folder), front)
    return parse_conversation([{"role": role, "content": parts} for role, parts in zip(roles, filled, strict=True)])
