"""LLaMA-Factory: `messages` (or `conversations`, or Alpaca's columns) with `images`, `videos`, `audios`.

{"messages": [{"role": "user", "content": "<image>what is this?"}, {"role": "assistant", "content": "an apple"}],
 "images": ["apple.png"]}
{"instruction": "what is this?", "input": "<image>", "output": "an apple", "images": ["apple.png"],
 "system": "be brief", "history": [["hello", "hi"]]}
"""

from __future__ import annotations

from typing import Any

from unimodal.data.importers.columns import text_of
from unimodal.data.importers.sharegpt import conversation_turns
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import Row


def import_llama_factory(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for a row that is not of this format or whose placeholders and media differ in number."""
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            return conversation_turns(row, folder, row[column], column)
    if row.get("instruction") is None or row.get("output") is None:
        raise ValueError(f"there is no messages or instruction + output among {', '.join(row) or 'no columns'}")
    return conversation_turns(row, folder, alpaca_turns(row), "history")


def alpaca_turns(row: Row) -> list[dict[str, Any]]:
    """`instruction`, `input`, `output` and `history` as turns."""
    asked = [row["instruction"], row["input"]] if row.get("input") else [row["instruction"]]
    question = "\n".join(text_of(text, "instruction and input") for text in asked)
    return [*history_turns(row), *exchange(question, text_of(row["output"], "output"))]


def history_turns(row: Row) -> list[dict[str, Any]]:
    """`history`: pairs of a question and its answer."""
    turns: list[dict[str, Any]] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"history holds {str(pair)[:60]!r}; it is a list of pairs of question and answer")
        turns += exchange(*pair)
    return turns


def exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
