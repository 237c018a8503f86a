"""ms-swift: `messages`, `query` + `response`, or `conversation` pairs, with `images`, `videos`, `audios`.

    {"messages": [{"role": "user", "content": "<image>what is this?"}, {"role": "assistant", "content": "an apple"}],
     "images": ["apple.png"]}
    {"query": "what is this?", "response": "an apple", "images": ["apple.png"], "history": [["hello", "hi"]]}
    {"conversation": [{"human": "hello", "assistant": "hi"}]}

As there, media that no text has a placeholder for go before the first message of the user; but a text with some
placeholders has to have all of them. A message of the assistant with `"loss": false` is not learnt.
"""

from __future__ import annotations

from unimodal.data.importers.columns import has_own_media, read_objects, read_text
from unimodal.data.importers.llama_factory import Turns, make_exchange, read_alpaca, read_history
from unimodal.data.importers.sharegpt import import_turns
from unimodal.data.importers.trl import import_trl
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import Row


def import_ms_swift(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    if row.get("messages") is not None:
        messages = read_objects(row["messages"], "messages")
        if any(has_own_media(message.get("content")) for message in messages):
            return import_trl(row, folder)  # typed parts, each with its file
        return import_turns(row, folder, messages, "messages", insert_missing=True)
    return import_turns(row, folder, _read_turns(row), "conversation", insert_missing=True)


def _read_turns(row: Row) -> Turns:
    if row.get("conversation") is not None:
        pairs = read_objects(row["conversation"], "conversation")
        return [turn for pair in pairs for turn in make_exchange(pair.get("human"), pair.get("assistant"))]
    if row.get("query") is not None and row.get("response") is not None:
        question, answer = read_text(row["query"], "query"), read_text(row["response"], "response")
        return [*read_history(row), *make_exchange(question, answer)]
    if row.get("instruction") is not None and row.get("output") is not None:
        return read_alpaca(row)
    raise ValueError(f"there is no messages, query + response or conversation among {', '.join(row) or 'no columns'}")
