"""Pictures of concepts that were never trained on → codes → pictures, beside JPEG and WebP at the same bytes.

PSNR (dB) and SSIM over the whole 64×64 picture on white, range [0, 1], averaged over pictures. `feature_distance` is
1 − cosine of the features of a frozen EfficientNet-lite0: how far the content of the picture has changed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unimodal.evaluation.asking import count_span_bytes
from unimodal.evaluation.codecs import CODECS, encode_within
from unimodal.evaluation.judges import compute_picture_features, compute_psnr, compute_ssim
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal

BUDGET_BYTES = 96  # 64 codes of 12 bits
BATCH = 32


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    pictures = Pictures.load(data_folder)
    rows = sample(pictures.find_rows(TRAINING_STYLES, "heldout"), limit, seed)
    originals = pictures.take(rows)  # [B, 3, 64, 64]
    rebuilt_parts = []
    for start in range(0, len(rows), BATCH):
        report("coding pictures", start, len(rows))
        codes = model.coder.encode("image", list(originals[start : start + BATCH]))
        rebuilt_parts += model.coder.decode("image", codes)
    rebuilt = torch.stack(rebuilt_parts)
    features = compute_picture_features(model, originals, report)
    figures: dict[str, object] = {
        "pictures": len(rows),
        "concepts": len(set(pictures.concept[rows].tolist())),
        "bytes": count_span_bytes(model, "image"),
        **_compare(model, originals, rebuilt, features),
        "psnr_db_by_style": {
            style: round(float(compute_psnr(originals[mask], rebuilt[mask]).mean()), 2)
            for style in TRAINING_STYLES
            if (mask := torch.from_numpy(pictures.style[rows] == style)).any()
        },
    }
    for codec in CODECS:
        tried = []
        for index, picture in enumerate(originals):
            report(f"coding with {codec}", index, len(originals))
            tried.append(encode_within(codec, picture, BUDGET_BYTES))
        figures[codec] = {
            "bytes": round(sum(item.num_bytes for item in tried) / len(tried), 1),
            **_compare(model, originals, torch.stack([item.picture for item in tried]), features),
        }
    return figures


def _compare(model: Unimodal, originals: Tensor, others: Tensor, features: Tensor) -> dict[str, float]:
    """PSNR, SSIM and feature distance of pictures against their originals, all [B, 3, 64, 64].

    features: [B, D], of the originals.
    """
    distance = 1 - (features * compute_picture_features(model, others)).sum(1)
    return {
        "psnr_db": round(float(compute_psnr(originals, others).mean()), 2),
        "ssim": round(float(compute_ssim(originals, others).mean()), 4),
        "feature_distance": round(float(distance.mean()), 4),
    }


SUITE = Suite(run)
