"""A conversation about a picture, of three questions that lean on each other: what is it, in which colour, how many.

The model answers each with its own earlier answers before it. `all_right` is the share of conversations of which every
answer is right. Things are painted, one to five of a kind; `combination` has colours or counts that the thing never had
in training. The judge is what the scene was drawn from. Shares are in per cent with Wilson's 95% interval.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.prepared_scenes import TESTED, PreparedScenes, is_same_answer, is_thing_named
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Text, Turn

DEFAULT_LIMIT = 200
TURNS = ("what", "colour", "many")
NUM_EXAMPLES = 4


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    prepared = PreparedScenes.load(data_folder)
    figures: dict[str, object] = {"judge": "the scene that was drawn"}
    for split in TESTED:
        rows = [
            row for row in prepared.find_rows(split, ("count",), None, seed).tolist()
            if prepared.scenes[row].things[0].colour
        ][: limit or DEFAULT_LIMIT]  # fmt: skip
        if rows:
            figures[split] = talk(model, prepared, np.array(rows), seed, report)
    return figures


def talk(
    model: Unimodal, prepared: PreparedScenes, rows: np.ndarray, seed: int, report: ReportProgress
) -> dict[str, object]:
    """The shares of right answers of rows int [B], turn by turn and of whole conversations."""
    asked = [prepared.find_words(row).talk() for row in rows.tolist()]
    documents = [Document() for _ in rows]
    media = prepared.encode(model, rows, report)
    right: dict[str, list[bool]] = {}
    said: list[list[str]] = [[] for _ in rows]
    for turn, about in enumerate(TURNS):
        for index, questions in enumerate(asked):
            text = Text(questions[turn].text)
            parts = [media[index], text] if turn == 0 else [text]
            documents[index] = Document([*documents[index].turns, Turn("user", parts)])
        answers = answer_texts(model, documents, seed, report)
        right[about] = [
            is_thing_named(answer, prepared.things[prepared.scenes[row].things[0].thing], prepared.things) if turn == 0
            else is_same_answer(answer, questions[turn].answer)
            for row, answer, questions in zip(rows.tolist(), answers, asked, strict=True)
        ]  # fmt: skip
        for index, answer in enumerate(answers):
            documents[index] = Document([*documents[index].turns, Turn("assistant", answer)])
            said[index].append(answer)
    whole = [all(answers) for answers in zip(*right.values(), strict=True)]
    examples = [
        {"right": [question.answer for question in questions], "answers": answers}
        for questions, answers in list(zip(asked, said, strict=True))[:NUM_EXAMPLES]
    ]
    shares = {about: measure_share(found) for about, found in right.items()}
    return {"all_right": measure_share(whole), **shares, "examples": examples}


SUITE = Suite(run)
