"""What the messages of several formats have in common: roles, which answers are learnt, and what no document can hold.

{"role": "assistant", "content": "an apple", "loss": false}     read and not learnt (ms-swift)
{"role": "assistant", "content": "an apple", "weight": 0}       the same (OpenAI)
{"from": "gpt", "value": "an apple", "train": false}            the same (Axolotl)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unimodal.data.importers.columns import read_text
from unimodal.data.rows import Row

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}

#: keys that say whether a message is learnt: of ms-swift, OpenAI, Axolotl, and ours; `_ONLY_ANSWERS` stand at answers
_LEARN_KEYS = ("loss", "loss_scale", "weight", "train", "training", "learn")
_TOOLS = "is about tools, which documents do not have; write it into its text, or leave the row out"
_ONLY_ANSWERS = ("loss", "loss_scale", "train", "training")
_PIECES = "masks pieces of the answer, and an answer is learnt whole or not at all; write the message as several"
_APART = "is a text apart from the answer; write it into its text"
#: keys of a message whose content would be lost → why, and what to do
_LOST_KEYS = dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), _TOOLS) | dict.fromkeys(
    ("reasoning_content", "reasoning", "thinking", "refusal"), _APART
)
_LOST_KEYS |= dict.fromkeys(("train_detail", "training_detail"), _PIECES)


#: all keys of a message that are read, or refused where they hold something
MESSAGE_KEYS = {"role", "content", "from", "value", "human", "assistant", *_LEARN_KEYS, *_LOST_KEYS}


class TurnRow(NamedTuple):
    """A message of a row: its role, its content, and whether it is learnt."""

    role: str
    content: object
    learn: bool = True


def find_role(name: object) -> str:
    """`human` → `user`, `gpt` → `assistant`. Raises ValueError for a role that no document has."""
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"role {name!r} is unknown; use system, user (human) or assistant (gpt)")
    return role


def read_turn(message: Mapping[str, object]) -> TurnRow:
    """Reads a message of `role` and `content`, or of `from` and `value`.

    Raises ValueError for an unknown role, for keys whose content no document can hold, and for a mask that cannot be
    kept: a fraction of the loss, or a mask on a message that is no answer.
    """
    for one, other in (("from", "role"), ("value", "content")):
        said = [message.get(key) for key in (one, other) if message.get(key) not in (None, "")]
        if len(said) == 2 and said[0] != said[1] and (one == "value" or find_role(said[0]) != find_role(said[1])):
            raise ValueError(f"a message has {one!r} and {other!r}, which differ; keep one of them")
    first = message.get("from") if message.get("from") is not None else message.get("role")
    role = find_role(first)
    for key, reason in _LOST_KEYS.items():
        if message.get(key):
            raise ValueError(f"{key!r} of a message of the {role} {reason}")
    content = message.get("value") if message.get("value") is not None else message.get("content")
    return TurnRow(role, content, _is_learnt(message, role))


def add_system(row: Row, turns: Sequence[TurnRow]) -> list[TurnRow]:
    """Puts the text of the column `system`, if there is one, before the turns. ValueError if they begin with
    another.
    """
    system = row.get("system")
    if not system or (turns and turns[0][:2] == ("system", system)):
        return list(turns)
    if turns and turns[0].role == "system":
        raise ValueError("there are a column 'system' and a first message of the system; keep one of them")
    return [TurnRow("system", read_text(system, "system")), *turns]


def _is_learnt(message: Mapping[str, object], role: str) -> bool:
    learn = True
    for key in _LEARN_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise ValueError(f"{key!r} of a message is {value!r}; an answer is learnt (1, true) or not (0, false)")
        if value and role != "assistant":
            if key in _ONLY_ANSWERS:
                raise ValueError(f"{key!r} of a message of the {role} is {value!r}; only the assistant's are learnt")
            continue
        learn = learn and bool(value)
    return learn or role != "assistant"
