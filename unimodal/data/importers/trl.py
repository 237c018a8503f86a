"""TRL: `messages`, `prompt` + `completion` or `text`, with `images`.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}, …],
     "images": ["apple.png"]}
    {"prompt": "what is this?", "completion": "an apple", "images": ["apple.png"]}

Typed `{"type": "image"}` parts take the pictures in order; where all contents are plain strings, the pictures go before
the first message of the user, as TRL does it. A part that has its own `path`, `data` or `codes` takes none: this is
also our own way to write a dataset down. A plain `text` is learnt whole. Every turn of the assistant is learnt, those
in a conversational `prompt` too.
"""

from __future__ import annotations

from typing import Any

from unimodal.data.importers.columns import find_placeholders, list_of, media_of, refuse, role_of, text_of, typed_parts
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row


def import_trl(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose media do not match its parts."""
    refuse(row, ("chosen", "rejected"), "is of a preference dataset, which is not supervised training")
    refuse(row, ("tools",), "describes tools, which documents do not have")
    messages = list(_messages(row))
    media = media_of(row, folder)
    if all(isinstance(message["content"], str) for message in messages):
        return parse_conversation(_in_front(messages, media))
    queues = {modality: iter(parts) for modality, parts in media.items()}
    made = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            parts: list[Any] = [TextPart(text=content)]
        else:
            try:
                parts = typed_parts(content, queues, folder)
            except StopIteration:
                raise ValueError(_mismatch(messages, media)) from None
        made.append({"role": message["role"], "content": parts})
    if any(next(queue, None) is not None for queue in queues.values()):
        raise ValueError(_mismatch(messages, media))
    return parse_conversation(made)


def _messages(row: Row) -> list[dict[str, Any]]:
    """Role and content, of `messages` or of the other shapes."""
    if row.get("messages") is not None:
        given = list_of(row["messages"], "messages")
    elif row.get("prompt") is not None and row.get("completion") is not None:
        given = _side(row["prompt"], "prompt", "user") + _side(row["completion"], "completion", "assistant")
    elif row.get("text") is not None:
        given = [{"role": "assistant", "content": text_of(row["text"], "text")}]
    else:
        raise ValueError(f"there is no messages, prompt + completion or text among {', '.join(row) or 'no columns'}")
    made = []
    for message in given:
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(f"a message's content must be a text or a list, this one is {type(content).__name__}")
        made.append({"role": role_of(message.get("role")), "content": content})
    return made


def _side(value: Any, name: str, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list_of(value, name)


def _in_front(messages: list[dict[str, Any]], media: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Messages of plain strings, with all media before the first of the user's."""
    leading = [part for parts in media.values() for part in parts]
    if not leading:
        return messages
    marked = next((name for message in messages for name in find_placeholders(message["content"])), None)
    if marked:
        raise ValueError(
            f"a text holds <{marked}>, which TRL takes as plain text; choose format llama_factory to fill it"
        )
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise ValueError(f"there are {len(leading)} media but no message of the user to put them in")
    made = list(messages)
    made[first] = {"role": "user", "content": [*leading, TextPart(text=made[first]["content"])]}
    return made


def _mismatch(messages: list[dict[str, Any]], media: dict[str, list[Any]]) -> str:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    parts = [part for content in contents for part in content]
    for modality, given in media.items():
        bare = sum(part.get("type") == modality and not _has_source(part) for part in parts)
        if bare != len(given):
            return (
                f"the messages hold {bare} parts of type {modality} but the row brings {len(given)} of {modality}; "
                "the numbers must match"
            )
    raise AssertionError("the numbers match")


def _has_source(part: Any) -> bool:
    return any(value is not None for key, value in part.items() if key not in ("type", "text"))
