"""Text → clip: is the requested concept among the training clips nearest to the one made, and does the clip move?

As in `picture_drawing.py`, with the mean features of the first, middle and last frame. `motion` is the mean absolute
difference between neighbouring frames, of the clips made and of training clips of the same concepts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.asking import answer_media, compute_percent
from unimodal.evaluation.judges import compute_clip_features, find_nearest
from unimodal.evaluation.prepared import Clips, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 100
NUM_NEIGHBOURS = 5


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    clips = Clips.load(data_folder)
    gallery = clips.find_rows("train")
    gallery_concepts = clips.concept[gallery]
    asked = sample(np.unique(gallery_concepts), limit or DEFAULT_LIMIT, seed)
    documents = [
        Document([Turn("user", model.wording.phrase_request(clips.concepts[concept].label, "video"))])
        for concept in asked
    ]
    filmed = torch.stack(answer_media(model, documents, "video", seed, report, "filming"))  # [B, T, 3, H, W]
    originals = clips.take(gallery)
    gallery_features = compute_clip_features(model, originals, report)
    found = find_nearest(compute_clip_features(model, filmed, report), gallery_features, NUM_NEIGHBOURS).numpy()
    hits = gallery_concepts[found] == asked[:, None]  # [B, 5]
    of_asked = torch.from_numpy(np.isin(gallery_concepts, asked))
    return {
        "clips": len(asked),
        "gallery": len(gallery),
        "among_5_percent": compute_percent(hits.any(1).tolist()),
        "nearest_percent": compute_percent(hits[:, 0].tolist()),
        "motion": _measure_motion(filmed),
        "motion_of_training_clips": _measure_motion(originals[of_asked]),
    }


def _measure_motion(clips: Tensor) -> float:
    """The mean absolute difference of neighbouring frames of clips [B, T, 3, H, W] in [0, 1]."""
    return round(float((clips[:, 1:] - clips[:, :-1]).abs().mean()), 4)


SUITE = Suite(run)
