"""Text → picture: is the requested concept among the training pictures nearest to the drawing?

Concepts that were trained on are requested by their label, each with its own seed. Likeness is the cosine of features
of a frozen EfficientNet-lite0. `among_5` is the share of drawings with a picture of the requested concept among the 5
nearest training pictures of all styles, `nearest` the share for which the nearest picture is one. `rebuilt` is the same
share for training pictures sent through the tokenizer, which a perfect decoder would reach; `chance` is that of a
random drawing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unimodal.evaluation.asking import answer_media, compute_percent, find_features
from unimodal.evaluation.judges import compute_picture_features, find_nearest
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 300
NUM_NEIGHBOURS = 5


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    pictures = Pictures.load(data_folder)
    gallery = pictures.find_rows(TRAINING_STYLES, "train")
    gallery_features = find_features(model, pictures, gallery, report)
    gallery_concepts = pictures.concept[gallery]
    asked = sample(np.unique(gallery_concepts), limit or DEFAULT_LIMIT, seed)
    documents = [
        Document([Turn("user", model.wording.phrase_request(pictures.concepts[concept].label, "image"))])
        for concept in asked
    ]
    drawn = torch.stack(answer_media(model, documents, "image", seed, report, "drawing"))  # [B, 3, H, W]
    shown = np.array([gallery[np.flatnonzero(gallery_concepts == concept)[0]] for concept in asked])
    rebuilt = torch.stack(model.coder.decode("image", model.coder.encode("image", list(pictures.take(shown)))))
    figures: dict[str, object] = {"drawings": len(asked), "gallery": len(gallery)}
    for name, images in (("", drawn), ("rebuilt_", rebuilt)):
        found = find_nearest(compute_picture_features(model, images, report), gallery_features, NUM_NEIGHBOURS).numpy()
        hits = gallery_concepts[found] == asked[:, None]  # [B, 5]
        figures[f"{name}among_5_percent"] = compute_percent(hits.any(1).tolist())
        figures[f"{name}nearest_percent"] = compute_percent(hits[:, 0].tolist())
    of_each = np.unique(gallery_concepts, return_counts=True)[1].mean()
    figures["chance_among_5_percent"] = round(100 * NUM_NEIGHBOURS * float(of_each) / len(gallery), 2)
    return figures


SUITE = Suite(run)
