"""Clips of concepts that were never trained on → codes → clips.

PSNR in dB over all frames of a clip, range [0, 1], averaged over clips. `still_psnr_db` is that of the original first
frame, repeated: the difference is the gain of the motion codes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from unimodal.evaluation.asking import count_span_bytes
from unimodal.evaluation.judges import compute_psnr
from unimodal.evaluation.prepared import Clips, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal

BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    clips = Clips.load(data_folder)
    rows = sample(clips.find_rows("heldout"), limit, seed)
    whole, first, later, still = [], [], [], []
    for start in range(0, len(rows), BATCH):
        report("coding clips", start, len(rows))
        original = clips.take(rows[start : start + BATCH])  # [B, T, 3, 64, 64]
        rebuilt = torch.stack(model.coder.decode("video", model.coder.encode("video", list(original))))
        whole.append(compute_psnr(original, rebuilt))
        first.append(compute_psnr(original[:, 0], rebuilt[:, 0]))
        later.append(compute_psnr(original[:, 1:], rebuilt[:, 1:]))
        still.append(compute_psnr(original, original[:, :1].expand_as(original)))
    return {
        "clips": len(rows),
        "bytes": count_span_bytes(model, "video"),
        "psnr_db": _average(whole),
        "first_frame_psnr_db": _average(first),
        "later_frames_psnr_db": _average(later),
        "still_psnr_db": _average(still),
    }


def _average(parts: list[torch.Tensor]) -> float:
    """The mean of figures that come in batches [B], rounded."""
    return round(float(torch.cat(parts).mean()), 2)


SUITE = Suite(run)
