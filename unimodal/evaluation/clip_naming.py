"""Clip → name. There is only one animation style, so `seen` concepts are asked about with clips of the training set.

Their figure shows memorisation, that of the `heldout` concepts generalisation. An answer is right if it contains a word
of the concept's label or tags.
"""

from __future__ import annotations

from pathlib import Path

from unimodal.data.words import is_right_answer
from unimodal.evaluation.asking import answer_texts, compute_percent
from unimodal.evaluation.prepared import Clips, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Text, Turn, Video

DEFAULT_LIMIT = 200
NUM_EXAMPLES = 8
BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    clips = Clips.load(data_folder)
    figures: dict[str, object] = {}
    for name, split in (("seen", "train"), ("heldout", "heldout")):
        rows = sample(clips.find_rows(split), limit or DEFAULT_LIMIT, seed)
        documents = []
        for start in range(0, len(rows), BATCH):
            report("coding clips", start, len(rows))
            for codes in model.coder.encode("video", list(clips.take(rows[start : start + BATCH]))):
                documents.append(Document([Turn("user", [Video(codes=codes), Text(model.wording.ask("video"))])]))
        answers = answer_texts(model, documents, seed, report)
        concepts = clips.take_concepts(rows)
        figures[name] = {
            "clips": len(rows),
            "right_percent": compute_percent([is_right_answer(a, c) for a, c in zip(answers, concepts, strict=True)]),
            "examples": [
                {"shown": concept.label, "answer": answer}
                for concept, answer in list(zip(concepts, answers, strict=True))[:NUM_EXAMPLES]
            ],
        }
    return figures


SUITE = Suite(run)
