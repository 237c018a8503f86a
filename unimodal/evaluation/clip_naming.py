"""Clip → name. There is one animation style, so `seen` concepts are asked about with clips from the training set.

That figure shows what was learnt by heart, the one of the `heldout` concepts what carries over. An answer is right if
it contains a word of the concept's label or tags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimodal.data.words import is_right_answer
from unimodal.evaluation import Report
from unimodal.evaluation.asking import answer_texts, percent
from unimodal.evaluation.prepared import Clips, sample
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Text, Turn, Video

DEFAULT_LIMIT = 200
NUM_EXAMPLES = 8
BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    clips = Clips.load(data_folder)
    figures: dict[str, Any] = {}
    for name, split in (("seen", "train"), ("heldout", "heldout")):
        rows = sample(clips.rows(split), limit or DEFAULT_LIMIT, seed)
        documents = []
        for start in range(0, len(rows), BATCH):
            report("coding clips", start, len(rows))
            for codes in model.coder.encode("video", list(clips.tensors(rows[start : start + BATCH]))):
                documents.append(Document([Turn("user", [Video(codes=codes), Text(model.wording.ask("video"))])]))
        answers = answer_texts(model, documents, seed, report)
        concepts = [clips.concepts.entries[concept] for concept in clips.concept[rows]]
        figures[name] = {
            "clips": len(rows),
            "right_percent": percent([is_right_answer(a, c) for a, c in zip(answers, concepts, strict=True)]),
            "examples": [
                {"shown": concept["label"], "answer": answer}
                for concept, answer in list(zip(concepts, answers, strict=True))[:NUM_EXAMPLES]
            ],
        }
    return figures
