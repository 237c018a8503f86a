"""LLaVA: `conversations` of `from` and `value`, one `image` (or a list, or a `video`), `<image>` in the texts.

{"id": "0", "image": "apple.png", "conversations": [{"from": "human", "value": "<image>\\nwhat is this?"},
                                                   {"from": "gpt", "value": "an apple"}]}
"""

from __future__ import annotations

from unimodal.data.importers.sharegpt import import_turns
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import Row


def import_llava(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    return import_turns(row, folder, row.get("conversations"), "conversations")
