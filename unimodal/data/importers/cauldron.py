"""The Cauldron: `texts`, questions and answers about the same `images`.

{"images": [{"bytes": …}], "texts": [{"user": "what is this?", "assistant": "an apple", "source": "VQAv2"},
                                     {"user": "its colour?", "assistant": "red", "source": "VQAv2"}]}

The pictures stand before the first question.
"""

from __future__ import annotations

from unimodal.data.importers.columns import MessagePart, read_media, read_objects, read_text
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row


def import_cauldron(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row whose texts are no exchanges."""
    messages: list[dict[str, object]] = []
    leading: list[MessagePart] = [part for parts in read_media(row, folder).values() for part in parts]
    for exchange in read_objects(row.get("texts"), "texts"):
        asked = [*leading, TextPart(text=read_text(exchange.get("user"), "user of texts"))]
        leading = []
        answer = TextPart(text=read_text(exchange.get("assistant"), "assistant of texts"))
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": [answer]}]
    return parse_conversation(messages)
