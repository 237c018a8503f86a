"""ShareGPT: `conversations` of `from` and `value` (or `role` and `content`), a `system` text, and media columns.

{"system": "be brief", "conversations": [{"from": "human", "value": "<image> what is this?"},
                                         {"from": "gpt", "value": "an apple"}], "images": ["apple.png"]}
"""

from __future__ import annotations

from unimodal.data.importers.columns import fill_placeholders, read_media, read_objects, read_text, refuse
from unimodal.data.importers.turns import add_system, read_turn
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, parse_conversation
from unimodal.data.rows import Row


def import_sharegpt(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    return import_turns(row, folder, row.get("conversations"), "conversations")


def import_turns(
    row: Row, folder: MediaFolder, turns: object, column: str, insert_missing: bool = False
) -> Conversation:
    """A conversation whose texts hold placeholders.

    insert_missing: media of a modality without any placeholder go before the first message of the user.
    """
    refuse(row, ("tools",), "describes tools, which documents do not have")
    refuse(row, ("objects",), "marks boxes, which documents do not have")
    read = add_system(row, [read_turn(turn) for turn in read_objects(turns, column)])
    texts = [read_text(turn.content, "system" if turn.role == "system" else "a turn") for turn in read]
    roles = [turn.role for turn in read]
    front = roles.index("user") if insert_missing and "user" in roles else None
    filled = fill_placeholders(texts, read_media(row, folder), front)
    return parse_conversation(
        [{"role": turn.role, "content": parts, "learn": turn.learn} for turn, parts in zip(read, filled, strict=True)]
    )
