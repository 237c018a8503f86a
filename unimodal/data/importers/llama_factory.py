"""LLaMA-Factory: `messages` (or `conversations`, or Alpaca's columns) with `images`, `videos`, `audios`.

{"messages": [{"role": "user", "content": "<image>what is this?"}, {"role": "assistant", "content": "an apple"}],
 "images": ["apple.png"]}
{"instruction": "what is this?", "input": "<image>", "output": "an apple", "images": ["apple.png"],
 "system": "be brief", "history": [["hello", "hi"]]}
"""

from __future__ import annotations

from unimodal.data.importers.columns import read_json_list, read_text
from unimodal.data.importers.sharegpt import import_turns
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import Row

Turns = list[dict[str, object]]


def import_llama_factory(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            return import_turns(row, folder, row[column], column)
    if row.get("instruction") is None or row.get("output") is None:
        raise ValueError(f"there is no messages or instruction + output among {', '.join(row) or 'no columns'}")
    return import_turns(row, folder, read_alpaca(row), "history")


def read_alpaca(row: Row) -> Turns:
    """`instruction`, `input`, `output` and `history` as turns."""
    asked = [row["instruction"], row["input"]] if row.get("input") else [row["instruction"]]
    question = "\n".join(read_text(text, "instruction and input") for text in asked)
    return [*read_history(row), *make_exchange(question, read_text(row["output"], "output"))]


def read_history(row: Row) -> Turns:
    """`history`: pairs of a question and its answer."""
    turns: Turns = []
    pairs = read_json_list(row.get("history"), "history") or []
    if not isinstance(pairs, (list, tuple)):
        raise ValueError(f"history is {str(pairs)[:60]!r}; it is a list of pairs of question and answer")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"history holds {str(pair)[:60]!r}; it is a list of pairs of question and answer")
        turns += make_exchange(*pair)
    return turns


def make_exchange(question: object, answer: object) -> Turns:
    """A question of the user and its answer as turns."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
