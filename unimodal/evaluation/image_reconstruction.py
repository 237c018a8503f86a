"""Pictures of concepts that were never trained on → codes → pictures, beside JPEG and WebP at the same bytes.

PSNR and SSIM over the whole 64×64 picture on white, range [0, 1], averaged over pictures. `feature_distance` is
1 - cosine of the features of a frozen EfficientNet-lite0, that is how much of what the picture shows has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimodal.evaluation import Report
from unimodal.evaluation.asking import span_bytes
from unimodal.evaluation.codecs import CODECS, best_within
from unimodal.evaluation.judges import picture_features, psnr, ssim
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.pipeline import Unimodal

BUDGET_BYTES = 96  # 64 codes of 12 bits
BATCH = 32


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    pictures = Pictures.load(data_folder)
    rows = sample(pictures.rows(TRAINING_STYLES, "heldout"), limit, seed)
    originals = pictures.tensors(rows)  # [B, 3, 64, 64]
    rebuilt_parts = []
    for start in range(0, len(rows), BATCH):
        report("coding pictures", start, len(rows))
        codes = model.coder.encode("image", list(originals[start : start + BATCH]))
        rebuilt_parts += model.coder.decode("image", codes)
    rebuilt = torch.stack(rebuilt_parts)
    features = picture_features(model, originals, report)
    figures: dict[str, Any] = {
        "pictures": len(rows),
        "concepts": len(set(pictures.concept[rows].tolist())),
        "bytes": span_bytes(model, "image"),
        **_compare(model, originals, rebuilt, features),
        "psnr_db_by_style": {
            style: round(float(psnr(originals[mask], rebuilt[mask]).mean()), 2)
            for style in TRAINING_STYLES
            if (mask := torch.from_numpy(pictures.style[rows] == style)).any()
        },
    }
    for codec in CODECS:
        coded = []
        for index, picture in enumerate(originals):
            report(f"coding with {codec}", index, len(originals))
            coded.append(best_within(codec, picture, BUDGET_BYTES))
        figures[codec] = {
            "bytes": round(sum(item.num_bytes for item in coded) / len(coded), 1),
            **_compare(model, originals, torch.stack([item.picture for item in coded]), features),
        }
    return figures


def _compare(model: Unimodal, originals: Tensor, others: Tensor, features: Tensor) -> dict[str, float]:
    distance = 1 - (features * picture_features(model, others)).sum(1)
    return {
        "psnr_db": round(float(psnr(originals, others).mean()), 2),
        "ssim": round(float(ssim(originals, others).mean()), 4),
        "feature_distance": round(float(distance.mean()), 4),
    }
