"""Rows of preference training: two answers of which one is preferred, or one answer that is called good or bad.

    {"prompt": "which fruit?", "chosen": "an apple", "rejected": "a pear"}                              TRL
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}   TRL, no prompt
    {"query": "which fruit?", "response": "an apple", "rejected_response": "a pear"}                    ms-swift
    {"messages": […], "rejected_response": "a pear"}, {"messages": […], "rejected_messages": […]}       ms-swift
    {"instruction": "which fruit?", "chosen": "an apple", "rejected": "a pear"}                         LLaMA-Factory
    {"conversations": […], "chosen": {"from": "gpt", "value": "an apple"}, "rejected": {…}}             LLaMA-Factory
    {"prompt": "which fruit?", "completion": "a pear", "label": false}                                  TRL's KTO
    {"messages": […], "kto_tag": false}                                                                 LLaMA-Factory

Such a row is two rows of the supervised format, or one with a label: answers may hold media wherever that format's
answers may. `rejected_images` and the like take the place of the media of a rejected row. What both answers begin
with is the question, of which nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from unimodal.data.importers.columns import list_media_columns, read_objects
from unimodal.data.importers.turns import find_role
from unimodal.data.messages import Conversation, Message
from unimodal.data.rows import Row

LABELS = ("label", "kto_tag")


class Pair(NamedTuple):
    """A row with two answers, as rows of supervised training; and the columns about the answers that nothing reads."""

    chosen: Row
    rejected: Row
    unused: tuple[str, ...] = ()


def split_pair(row: Row) -> Pair:
    """Raises ValueError for a row without two answers."""
    about = [name for name in row if name.startswith(("chosen", "rejected")) and row[name] not in (None, "", [])]
    chosen = {name: value for name, value in row.items() if not name.startswith(("chosen", "rejected"))}
    rejected = dict(chosen)
    if row.get("rejected_response") is not None or row.get("rejected_messages") is not None:
        used = _split_ms_swift(row, rejected)
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        used = {"chosen", "rejected"}
        for made, name in ((chosen, "chosen"), (rejected, "rejected")):
            _put_answer(made, row[name], name)
    else:
        raise ValueError(
            "the row has no pair of answers; give chosen and rejected, or rejected_response beside the answer, or "
            "train without objective.preference"
        )
    media = {f"rejected_{column}": column for columns in list_media_columns().values() for column in columns}
    for name in set(about) & set(media):
        rejected[media[name]] = row[name]
    return Pair(chosen, rejected, tuple(name for name in about if name not in used and name not in media))


def _split_ms_swift(row: Row, rejected: dict[str, object]) -> set[str]:
    """Put `rejected_messages` or `rejected_response` in the place of the answer; the columns that were used."""
    if row.get("rejected_messages") is not None:
        rejected["messages"] = row["rejected_messages"]
        return {"rejected_messages"}
    answer = row["rejected_response"]
    if row.get("messages") is not None:
        messages = read_objects(row["messages"], "messages")
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("rejected_response needs messages that end with the assistant's answer")
        rejected["messages"] = [*messages[:-1], {**messages[-1], "content": answer}]
    elif row.get("response") is not None:
        rejected["response"] = answer
    else:
        raise ValueError("there is rejected_response, and no response or messages with the preferred answer")
    return {"rejected_response"}


def _put_answer(row: dict[str, object], answer: object, name: str) -> None:
    """Put one of TRL's or LLaMA-Factory's answers into the row of its format, in place."""
    if isinstance(answer, str) and answer.lstrip().startswith("[{"):
        answer = read_objects(answer, name)
    if _is_list(answer) and _begins_with_question(answer, name):  # a whole conversation
        for column in ("prompt", "messages", "conversations"):
            row.pop(column, None)
        row["messages"] = answer
    elif row.get("conversations") is not None or row.get("messages") is not None:
        column = "conversations" if row.get("conversations") is not None else "messages"
        last = answer if isinstance(answer, Mapping) else {"role": "assistant", "content": answer}
        row[column] = [
            *read_objects(row[column], column),
            *(read_objects(answer, name) if _is_list(answer) else [last]),
        ]
    elif row.get("instruction") is not None:
        row["output"] = answer
    elif row.get("prompt") is not None:
        row["completion"] = [answer] if isinstance(answer, Mapping) else answer
    else:
        row["text"] = answer


def _is_list(answer: object) -> bool:
    return isinstance(answer, (list, tuple))


def _begins_with_question(answer: object, name: str) -> bool:
    messages = read_objects(answer, name)
    first = messages[0] if messages else {}
    return find_role(first.get("from") if first.get("from") is not None else first.get("role")) != "assistant"


def split_label(row: Row) -> tuple[Row, bool]:
    """A row with a label → (the row as for supervised training, whether its answer is good).

    Raises ValueError for a row without a label, with one that is neither true nor false, or with two that differ.
    """
    found = [name for name in LABELS if row.get(name) is not None]
    if not found:
        raise ValueError(
            "the row has no label; give label (or kto_tag) true or false, or choose an objective that needs none"
        )
    wanted = {_read_label(name, row[name]) for name in found}
    if len(wanted) > 1:
        raise ValueError(" and ".join(f"{name!r} is {row[name]!r}" for name in found) + "; name one of them in ignore")
    return {name: value for name, value in row.items() if name not in found}, wanted.pop()


def _read_label(name: str, value: object) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}  # a CSV file has texts alone
    value = words.get(value.strip().lower(), value) if isinstance(value, str) else value
    if value not in (0, 1):
        raise ValueError(f"{name!r} is {value!r}; an answer is good (true) or bad (false)")
    return bool(value)


def import_question(row: Row, import_one: Callable[[Row], Conversation]) -> Conversation:
    """The conversation of a row: with its answer, or, of a row with a prompt alone, without one."""
    if row.get("prompt") is None or row.get("completion") is not None:
        return import_one(row)
    return Conversation(messages=import_one({**row, "completion": "-"}).messages[:-1])


def import_pair(row: Row, import_one: Callable[[Row], Conversation]) -> tuple[Conversation, Conversation]:
    """The conversations of the chosen and of the rejected answer; their common beginning is not learnt.

    import_one: imports a supervised row. Raises ValueError for answers that are equal or to different questions.
    """
    pair = split_pair(row)
    return _mask_question(import_one(pair.chosen), import_one(pair.rejected))


def _mask_question(chosen: Conversation, rejected: Conversation) -> tuple[Conversation, Conversation]:
    num = 0
    for one, other in zip(chosen.messages, rejected.messages, strict=False):
        if (one.role, one.content) != (other.role, other.content):
            break
        num += 1
    rests = chosen.messages[num:], rejected.messages[num:]
    if not all(rests):
        shorter = "chosen" if not rests[0] else "rejected"
        if not any(rests):
            raise ValueError("the chosen and the rejected answer are equal, so there is nothing to prefer")
        raise ValueError(f"the {shorter} answer ends where the other one goes on; give both the same number of turns")
    for name, rest in zip(("chosen", "rejected"), rests, strict=True):
        if rest[0].role != "assistant":
            raise ValueError(
                f"the {name} answer belongs to another question: its turn {num + 1} is the {rest[0].role}'s"
            )
        if not any(message.role == "assistant" and message.learn for message in rest):
            raise ValueError(f"the {name} answer is masked, so there is nothing to compare")
    question = tuple(_mask(message) for message in chosen.messages[:num])
    return Conversation(messages=question + rests[0]), Conversation(messages=question + rests[1])


def _mask(message: Message) -> Message:
    return message.model_copy(update={"learn": False}) if message.role == "assistant" else message
