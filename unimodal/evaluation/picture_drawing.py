"""Text → picture: is the asked concept among the training pictures that look most like what was drawn?

Concepts that were trained on are asked for by their label, each with its own seed. Likeness is the cosine of features
of a frozen EfficientNet-lite0. `among_5` is the share of drawings with a picture of the asked concept among the 5
nearest training pictures of all styles, `nearest` that of the very nearest. `rebuilt` is the same for training
pictures sent through the tokenizer, which a perfect decoder would reach; `chance` is what a random drawing would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unimodal.evaluation import Report
from unimodal.evaluation.asking import answer_media, features_of, percent
from unimodal.evaluation.judges import nearest, picture_features
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 300
NUM_NEIGHBOURS = 5


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    pictures = Pictures.load(data_folder)
    gallery = pictures.rows(TRAINING_STYLES, "train")
    gallery_features = features_of(model, pictures, gallery, report)
    gallery_concepts = pictures.concept[gallery]
    asked = sample(np.unique(gallery_concepts), limit or DEFAULT_LIMIT, seed)
    documents = [
        Document([Turn("user", model.wording.request(pictures.concepts.label(concept), "image"))]) for concept in asked
    ]
    drawn = torch.stack(answer_media(model, documents, "image", seed, report, "drawing"))  # [B, 3, H, W]
    shown = np.array([gallery[np.flatnonzero(gallery_concepts == concept)[0]] for concept in asked])
    rebuilt = torch.stack(model.coder.decode("image", model.coder.encode("image", list(pictures.tensors(shown)))))
    figures: dict[str, Any] = {"drawings": len(asked), "gallery": len(gallery)}
    for name, images in (("", drawn), ("rebuilt_", rebuilt)):
        found = nearest(picture_features(model, images, report), gallery_features, NUM_NEIGHBOURS).numpy()
        hits = gallery_concepts[found] == asked[:, None]  # [B, 5]
        figures[f"{name}among_5_percent"] = percent(hits.any(1).tolist())
        figures[f"{name}nearest_percent"] = percent(hits[:, 0].tolist())
    of_each = np.unique(gallery_concepts, return_counts=True)[1].mean()
    figures["chance_among_5_percent"] = round(100 * NUM_NEIGHBOURS * float(of_each) / len(gallery), 2)
    return figures
