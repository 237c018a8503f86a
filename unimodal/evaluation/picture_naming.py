"""Picture → name, in a drawing style that was never trained on (Twemoji).

An answer is right if it contains a word of the concept's label or tags. Concepts that were trained on in other styles
are `seen`; concepts that were never trained on are `heldout`. The baseline looks up the nearest training picture by
features of a frozen EfficientNet-lite0 and answers with its label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data.words import is_right_answer
from unimodal.evaluation import Report
from unimodal.evaluation.asking import answer_texts, features_of, percent
from unimodal.evaluation.judges import nearest
from unimodal.evaluation.prepared import EVALUATION_STYLES, TRAINING_STYLES, Pictures, sample
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Image, Text, Turn

NUM_EXAMPLES = 8
BATCH = 32


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    pictures = Pictures.load(data_folder)
    gallery = pictures.rows(TRAINING_STYLES, "train")
    gallery_features = features_of(model, pictures, gallery, report)
    figures: dict[str, Any] = {"style": ", ".join(EVALUATION_STYLES), "gallery": len(gallery)}
    for name, split in (("seen", "train"), ("heldout", "heldout")):
        rows = sample(pictures.rows(EVALUATION_STYLES, split), limit, seed)
        answers = name_pictures(model, pictures, rows, seed, report)
        neighbours = gallery[nearest(features_of(model, pictures, rows, report), gallery_features, 1)[:, 0].numpy()]
        concepts = [pictures.concepts.entries[concept] for concept in pictures.concept[rows]]
        right = [is_right_answer(answer, concept) for answer, concept in zip(answers, concepts, strict=True)]
        looked_up = [
            is_right_answer(pictures.concepts.label(pictures.concept[row]), concept)
            for row, concept in zip(neighbours, concepts, strict=True)
        ]
        exact = [answer.lower() == concept["label"].lower() for answer, concept in zip(answers, concepts, strict=True)]
        figures[name] = {
            "pictures": len(rows),
            "right_percent": percent(right),
            "exact_label_percent": percent(exact),
            "nearest_neighbour_percent": percent(looked_up),
            "examples": [
                {"shown": concept["label"], "answer": answer}
                for concept, answer in list(zip(concepts, answers, strict=True))[:NUM_EXAMPLES]
            ],
        }
    return figures


def name_pictures(model: Unimodal, pictures: Pictures, rows: np.ndarray, seed: int, report: Report) -> list[str]:
    """What the model says each picture is."""
    documents = []
    for start in range(0, len(rows), BATCH):
        report("coding pictures", start, len(rows))
        for codes in model.coder.encode("image", list(pictures.tensors(rows[start : start + BATCH]))):
            documents.append(Document([Turn("user", [Image(codes=codes), Text(model.wording.ask("image"))])]))
    return answer_texts(model, documents, seed, report)
