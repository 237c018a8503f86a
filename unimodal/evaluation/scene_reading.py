"""Scenes → words: what is there, how many, in which colour and where, asked one by one.

For scenes of what was trained on (`seen`), put together as never in training (`combination`), of concepts that were
never seen (`concept`) and in the style that was never seen (`style`). An answer is right if it has the words of the
scene's own (`three`, `red`, `on the left`); a name, if it holds that of the thing and no longer one (`hot dog` is no
`dog`). The judge is what the scene was drawn from. Shares are in per cent with Wilson's 95% interval.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unimodal.data.order import make_generator
from unimodal.data.scenes.scene import Kind, Split
from unimodal.data.scenes.words import Question
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.prepared_scenes import TESTED, PreparedScenes, ask, is_same_answer, is_thing_named
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document

DEFAULT_LIMIT = 200
#: what is asked → the kinds of scenes that answer it
KINDS: dict[str, tuple[Kind, ...]] = {
    "what": ("one", "count", "place"), "many": ("count",), "colour": ("one", "count", "place"), "where": ("place",),
    "relation": ("pair",),
}  # fmt: skip
NUM_EXAMPLES = 4


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    prepared = PreparedScenes.load(data_folder)
    figures: dict[str, object] = {"judge": "the scene that was drawn"}
    for split in TESTED:
        found = {about: read(model, prepared, split, about, limit, seed, report) for about in KINDS}
        figures[split] = {about: shares for about, shares in found.items() if shares}
    return figures


def read(
    model: Unimodal, prepared: PreparedScenes, split: Split, about: str, limit: int | None, seed: int,
    report: ReportProgress,
) -> dict[str, object]:  # fmt: skip
    """The share of right answers to one kind of question in one split."""
    rows, asked = [], []
    for row in prepared.find_rows(split, KINDS[about], None, seed).tolist():
        question = _choose_question(prepared, row, about, seed)
        if question is not None:
            rows.append(row)
            asked.append(question)
        if len(rows) == (limit or DEFAULT_LIMIT):
            break
    if not rows:
        return {}
    media = prepared.encode(model, np.array(rows, np.int64), report)
    documents: list[Document] = [ask(medium, question.text) for medium, question in zip(media, asked, strict=True)]
    answers = answer_texts(model, documents, seed, report)
    right = [
        is_thing_named(answer, prepared.things[prepared.scenes[row].things[0].thing], prepared.things)
        if about == "what"
        else is_same_answer(answer, question.answer)
        for row, answer, question in zip(rows, answers, asked, strict=True)
    ]
    examples = [
        {"asked": question.text, "right": question.answer, "answer": answer}
        for question, answer in list(zip(asked, answers, strict=True))[:NUM_EXAMPLES]
    ]
    return {**measure_share(right), "examples": examples}


def _choose_question(prepared: PreparedScenes, row: int, about: str, seed: int) -> Question | None:
    words, draws = prepared.find_words(row), make_generator("ask", seed, about, row)
    kind = "where" if about == "relation" else about
    return next((question for question in words.ask_all(draws) if question.about == kind), None)


SUITE = Suite(run)
