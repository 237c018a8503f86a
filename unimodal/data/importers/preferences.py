"""Rows of preference training: two answers of which one is preferred, or one answer that is called good or bad.

    {"prompt": "which fruit?", "chosen": "an apple", "rejected": "a pear"}                              TRL
    {"question": "which fruit?", "chosen": "an apple", "rejected": "a pear"}                            Axolotl (Intel)
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}   TRL, no prompt
    {"query": "which fruit?", "response": "an apple", "rejected_response": "a pear"}                    ms-swift
    {"messages": […], "rejected_response": "a pear"}, {"messages": […], "rejected_messages": […]}       ms-swift
    {"messages": […], "images": ["apple.png"], "rejected_images": ["pear.png"]}                         ms-swift
    {"instruction": "which fruit?", "chosen": "an apple", "rejected": "a pear"}                         LLaMA-Factory
    {"conversations": […], "chosen": {"from": "gpt", "value": "an apple"}, "rejected": {…}}             LLaMA-Factory
    {"prompt": "which fruit?", "completion": "a pear", "label": false}                                  TRL's KTO
    {"messages": […], "kto_tag": false}                                                                 LLaMA-Factory

Such a row is two rows of the supervised format, or one with a label: answers may hold media wherever that format's
answers may. What both answers begin with is the question, of which nothing is learnt.

Media of the rejected answer are `rejected_images` and the like, as in ms-swift: a list takes the place of the row's
media, an empty one says that there are none, and without a list they are those of the row; but beside
`rejected_messages` a list has to be given. They may be media of the question, too: then the pair compares answers to
the same words about different media, also where the answers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from unimodal.data.importers.columns import list_media_columns, read_json_list, read_objects
from unimodal.data.importers.turns import find_role
from unimodal.data.messages import Conversation, Message, TextPart
from unimodal.data.rows import Row

LABELS = ("label", "kto_tag")
STAND_IN = "-"  # for the answer of a row that only asks


class Pair(NamedTuple):
    """A row with two answers, as rows of supervised training.

    unused: the columns about the answers that nothing reads. own_media: whether an answer has media of its own.
    """

    chosen: Row
    rejected: Row
    unused: tuple[str, ...] = ()
    own_media: bool = False


def split_pair(row: Row) -> Pair:
    """Raises ValueError for a row without two answers, and for whole messages of which the media are not said."""
    about = [name for name in row if name.startswith(("chosen", "rejected")) and row[name] not in (None, "", [])]
    chosen = {name: value for name, value in row.items() if not name.startswith(("chosen", "rejected"))}
    rejected = dict(chosen)
    media = [name for name in _list_own_media("chosen", "rejected") if row.get(name) is not None]
    if row.get("rejected_response") is not None or row.get("rejected_messages") is not None:
        used = _split_ms_swift(row, rejected)
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        used = {"chosen", "rejected"}
        for made, name in ((chosen, "chosen"), (rejected, "rejected")):
            _put_answer(made, row[name], name)
    elif row.get("chosen") is None and any(name.startswith("rejected") for name in media):
        used = set()  # the same words for other media
    else:
        raise ValueError(
            "the row has no pair of answers; give chosen and rejected, or rejected_response beside the answer, or "
            "train without objective.preference"
        )
    _put_media(row, chosen, "chosen")
    _put_media(row, rejected, "rejected", whole=row.get("rejected_messages") is not None)
    unused = tuple(name for name in about if name not in used and name not in media)
    return Pair(chosen, rejected, unused, bool(media))


def _list_own_media(*sides: str) -> list[str]:
    """`rejected_images` and the like: the columns for the media of one answer."""
    columns = [column for columns in list_media_columns().values() for column in columns]
    return [f"{side}_{column}" for side in sides for column in columns]


def _put_media(row: Row, made: dict[str, object], side: str, whole: bool = False) -> None:
    """Put the media of one answer in the place of the row's, in place. whole: it does not share those of the row."""
    for columns in list_media_columns().values():
        own = [column for column in columns if row.get(f"{side}_{column}") is not None]
        shared = [column for column in columns if row.get(column) not in (None, "", [])]
        if whole and shared and not own:
            raise ValueError(
                f"{side}_messages stand beside {shared[0]!r}, which are those of the other answer; give "
                f"'{side}_{shared[0]}' too, an empty list for none"
            )
        if own:
            for column in columns:
                made.pop(column, None)
            made.update((column, row[f"{side}_{column}"]) for column in own)


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
        if _is_list(answer) and all(isinstance(one, Mapping) and "role" in one for one in answer):
            if not all(find_role(one["role"]) == "assistant" for one in read_objects(answer, "rejected_response")):
                raise ValueError("rejected_response holds messages that are not the assistant's")
            rejected["messages"] = [*_cut_answers(messages), *answer]
        else:
            rejected["messages"] = [*messages[:-1], {**messages[-1], "content": answer}]
    elif row.get("response") is not None:
        rejected["response"] = answer
    else:
        raise ValueError("there is rejected_response, and no response or messages with the preferred answer")
    return {"rejected_response"}


def _cut_answers(messages: Sequence[Mapping[str, object]]) -> Sequence[Mapping[str, object]]:
    """The messages without those behind the last one of the user."""
    num = len(messages)
    while num and find_role(messages[num - 1].get("role")) == "assistant":
        num -= 1
    return messages[:num]


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
    elif row.get("prompt") is not None or row.get("question") is not None:
        if row.get("prompt") is None:
            row["prompt"] = row.pop("question")
        row["completion"] = [answer] if isinstance(answer, Mapping) else answer
    else:
        row["text"] = answer


def _is_list(answer: object) -> TypeGuard[Sequence[object]]:
    return isinstance(answer, (list, tuple))


def _begins_with_question(answer: object, name: str) -> bool:
    messages = read_objects(answer, name)
    if not messages:
        raise ValueError(f"{name} holds no message")
    first = messages[0]
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


def complete_question(row: Row) -> Row:
    """The row of a question as one of supervised training: where there is no answer, one stands in its place."""
    if row.get("prompt") is not None and row.get("completion") is None:
        return {**row, "completion": STAND_IN}
    if row.get("query") is not None and row.get("response") is None:
        return {**row, "response": STAND_IN}
    if row.get("instruction") is not None and row.get("output") is None:
        return {**row, "output": STAND_IN}
    for column, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        messages = read_json_list(row.get(column), column)
        if not isinstance(messages, (list, tuple)) or not messages:
            continue
        last = messages[-1]
        if isinstance(last, Mapping):
            key = role if last.get(role) is not None else "role"
            if find_role(last.get(key)) != "assistant":
                answer = {key: "assistant", content if key == role else "content": STAND_IN}
                return {**row, column: [*messages, answer]}
    return row


def import_question(row: Row, import_one: Callable[[Row], Conversation]) -> Conversation:
    """The conversation of a row: with its answer, or, of a row with a question alone, without one.

    Raises ValueError for a question that does not end with a message of the user.
    """
    completed = complete_question(row)
    messages = import_one(completed).messages
    asked = [message.role for message in messages[:-1]]
    if not asked or asked[-1] != "user":
        raise ValueError(
            "the row asks nothing: its question has to end with a message of the user"
            + (f", and its last one is the {asked[-1]}'s" if asked else "")
        )
    return Conversation(messages=messages if completed is row else messages[:-1])


def import_pair(row: Row, import_one: Callable[[Row], Conversation]) -> tuple[Conversation, Conversation]:
    """The conversations of the chosen and of the rejected answer; their common beginning is not learnt.

    import_one: imports a supervised row. Raises ValueError for answers that are equal or to different questions.
    """
    pair = split_pair(row)
    return _mask_question(import_one(pair.chosen), import_one(pair.rejected), pair.own_media)


def _mask_question(chosen: Conversation, rejected: Conversation, own_media: bool) -> tuple[Conversation, Conversation]:
    """own_media: the media of the two questions may differ, their words may not."""
    num = _count_common(chosen, rejected, own_media)
    if own_media and chosen != rejected and num == len(chosen.messages) == len(rejected.messages):
        roles = [message.role for message in chosen.messages]
        num -= 1 + roles[::-1].index("assistant")  # equal answers about different media
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
    questions = [tuple(_mask(message) for message in side.messages[:num]) for side in (chosen, rejected)]
    return Conversation(messages=questions[0] + rests[0]), Conversation(messages=questions[1] + rests[1])


def _count_common(chosen: Conversation, rejected: Conversation, own_media: bool) -> int:
    """The number of messages that both begin with. own_media: other than the assistant's may differ in their media."""
    num = 0
    for one, other in zip(chosen.messages, rejected.messages, strict=False):
        alike = one.content == other.content
        if own_media and not alike and one.role != "assistant":
            alike = _join_words(one) == _join_words(other)
        if one.role != other.role or not alike:
            break
        num += 1
    return num


def _join_words(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _mask(message: Message) -> Message:
    return message.model_copy(update={"learn": False}) if message.role == "assistant" else message
