"""TRL: `messages`, `prompt` + `completion` or `text`, with `images`.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}, …],
     "images": ["apple.png"]}
    {"messages": [{"role": "user", "content": [{"index": 0, "type": "image", "text": null}, …]}, …], "images": […]}
    {"prompt": "what is this?", "completion": "an apple", "images": ["apple.png"]}

Typed `{"type": "image"}` parts take the pictures in order, or the one that their `index` names; where all contents are
plain strings, the pictures go before the first message of the user, as TRL does it. A part that has its own `path`,
`data` or `codes` takes none: this is also our own way to write a dataset down. A plain `text` is learnt whole. Every
turn of the assistant is learnt, those in a conversational `prompt` too, but those with `"weight": 0`. A `system`
text goes before the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unimodal.data.importers.columns import (
    MediaLists,
    MediaQueues,
    MessagePart,
    find_placeholders,
    read_media,
    read_objects,
    read_text,
    read_typed_parts,
    refuse,
)
from unimodal.data.importers.turns import TurnRow, add_system, read_turn
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row


def import_trl(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose media do not match its parts."""
    refuse(row, ("tools",), "describes tools, which documents do not have")
    turns = _read_messages(row)
    media = read_media(row, folder)
    if all(isinstance(turn.content, str) for turn in turns):
        contents = _put_in_front(turns, media)
    else:
        queues = MediaQueues(media)
        contents = [
            [TextPart(text=turn.content)]
            if isinstance(turn.content, str)
            else read_typed_parts(turn.content, queues, folder)
            for turn in turns
        ]
        queues.check()
    return parse_conversation(
        [
            {"role": turn.role, "content": content, "learn": turn.learn}
            for turn, content in zip(turns, contents, strict=True)
        ]
    )


def _read_messages(row: Row) -> list[TurnRow]:
    """The turns of `messages` or of the other shapes; their contents are texts or lists."""
    given: list[Mapping[str, object]]
    if row.get("messages") is not None:
        given = read_objects(row["messages"], "messages")
    elif row.get("prompt") is not None and row.get("completion") is not None:
        given = [*_read_side(row, "prompt", "user"), *_read_side(row, "completion", "assistant")]
    elif row.get("text") is not None:
        given = [{"role": "assistant", "content": read_text(row["text"], "text")}]
    else:
        raise ValueError(f"there is no messages, prompt + completion or text among {', '.join(row) or 'no columns'}")
    turns = add_system(row, [read_turn(message) for message in given])
    for turn in turns:
        if not isinstance(turn.content, (str, list, tuple)):
            raise ValueError(f"a message's content must be a text or a list, this one is {type(turn.content).__name__}")
    return turns


def _read_side(row: Row, column: str, role: str) -> Sequence[Mapping[str, object]]:
    """The messages of `prompt` or `completion`, which may be the text of one."""
    value = row[column]
    return [{"role": role, "content": value}] if isinstance(value, str) else read_objects(value, column)


def _put_in_front(turns: Sequence[TurnRow], media: MediaLists) -> list[list[MessagePart]]:
    """The parts of turns that are plain texts, with all media before the first text of the user's."""
    contents: list[list[MessagePart]] = [[TextPart(text=str(turn.content))] for turn in turns]
    leading = [part for parts in media.values() for part in parts]
    if not leading:
        return contents
    marked = next((name for turn in turns for name in find_placeholders(str(turn.content))), None)
    if marked:
        raise ValueError(
            f"a text holds <{marked}>, which TRL takes as plain text; choose format llama_factory to fill it"
        )
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise ValueError(f"there are {len(leading)} media but no message of the user to put them in")
    contents[first] = [*leading, *contents[first]]
    return contents
