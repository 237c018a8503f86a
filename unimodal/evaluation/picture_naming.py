"""Picture → name, in a drawing style that was never trained on (Twemoji).

An answer is right if it contains a word of the concept's label or tags. `seen` concepts were trained on in other
styles, `heldout` concepts never. The baseline looks up the nearest training picture by features of a frozen
EfficientNet-lite0 and answers with its label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unimodal.data.words import is_right_answer
from unimodal.evaluation.asking import answer_texts, compute_percent, find_features
from unimodal.evaluation.judges import find_nearest
from unimodal.evaluation.prepared import EVALUATION_STYLES, TRAINING_STYLES, Pictures, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Image, Text, Turn

NUM_EXAMPLES = 8
BATCH = 32


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    pictures = Pictures.load(data_folder)
    gallery = pictures.find_rows(TRAINING_STYLES, "train")
    gallery_features = find_features(model, pictures, gallery, report)
    figures: dict[str, object] = {"style": ", ".join(EVALUATION_STYLES), "gallery": len(gallery)}
    for name, split in (("seen", "train"), ("heldout", "heldout")):
        rows = sample(pictures.find_rows(EVALUATION_STYLES, split), limit, seed)
        answers = name_pictures(model, pictures, rows, seed, report)
        nearest = find_nearest(find_features(model, pictures, rows, report), gallery_features, 1)[:, 0]  # [B]
        concepts = pictures.take_concepts(rows)
        right = [is_right_answer(answer, concept) for answer, concept in zip(answers, concepts, strict=True)]
        looked_up = [
            is_right_answer(neighbour.label, concept)
            for neighbour, concept in zip(pictures.take_concepts(gallery[nearest.numpy()]), concepts, strict=True)
        ]
        exact = [answer.lower() == concept.label.lower() for answer, concept in zip(answers, concepts, strict=True)]
        figures[name] = {
            "pictures": len(rows),
            "right_percent": compute_percent(right),
            "exact_label_percent": compute_percent(exact),
            "nearest_neighbour_percent": compute_percent(looked_up),
            "examples": [
                {"shown": concept.label, "answer": answer}
                for concept, answer in list(zip(concepts, answers, strict=True))[:NUM_EXAMPLES]
            ],
        }
    return figures


def name_pictures(
    model: Unimodal, pictures: Pictures, rows: np.ndarray, seed: int, report: ReportProgress
) -> list[str]:
    """The model's answer to the question what each picture is."""
    documents = []
    for start in range(0, len(rows), BATCH):
        report("coding pictures", start, len(rows))
        for codes in model.coder.encode("image", list(pictures.take(rows[start : start + BATCH]))):
            documents.append(Document([Turn("user", [Image(codes=codes), Text(model.wording.ask("image"))])]))
    return answer_texts(model, documents, seed, report)


SUITE = Suite(run)
