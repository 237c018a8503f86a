"""Clips of concepts that were never trained on → codes → clips.

PSNR over all frames of a clip, range [0, 1], averaged over clips. `still_psnr_db` is what repeating the original first
frame would reach: the difference is what the motion codes bring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unimodal.evaluation import Report
from unimodal.evaluation.asking import span_bytes
from unimodal.evaluation.judges import psnr
from unimodal.evaluation.prepared import Clips, sample
from unimodal.pipeline import Unimodal

BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    clips = Clips.load(data_folder)
    rows = sample(clips.rows("heldout"), limit, seed)
    whole, first, later, still = [], [], [], []
    for start in range(0, len(rows), BATCH):
        report("coding clips", start, len(rows))
        original = clips.tensors(rows[start : start + BATCH])  # [B, T, 3, 64, 64]
        rebuilt = torch.stack(model.coder.decode("video", model.coder.encode("video", list(original))))
        whole.append(psnr(original, rebuilt))
        first.append(psnr(original[:, 0], rebuilt[:, 0]))
        later.append(psnr(original[:, 1:], rebuilt[:, 1:]))
        still.append(psnr(original, original[:, :1].expand_as(original)))
    return {
        "clips": len(rows),
        "bytes": span_bytes(model, "video"),
        "psnr_db": _mean(whole),
        "first_frame_psnr_db": _mean(first),
        "later_frames_psnr_db": _mean(later),
        "still_psnr_db": _mean(still),
    }


def _mean(parts: list[torch.Tensor]) -> float:
    return round(float(torch.cat(parts).mean()), 2)
