"""How well a tokenizer does on media that it was not trained on: its error, its codebooks, a sheet of pictures.

Shapes: B batch, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unimodal.media.image import save_image
from unimodal.media.sheet import draw_sheet
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.usage import CodebookUsage

MOST_DRAWN = 16  # pictures of a sheet


@dataclass(frozen=True)
class MediaBatch:
    """media: [B, C, …]. lengths: int64 [B] of padded ones. captions: of media that have texts."""

    media: Tensor
    lengths: Tensor | None = None
    captions: tuple[str, ...] | None = None

    def move(self, device: torch.device) -> MediaBatch:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return MediaBatch(self.media.to(device), lengths, self.captions)


def decode_batches(
    tokenizer: MediaTokenizer | LatentTokenizer,
    batches: Sequence[MediaBatch],
    conditions: ConditionMaker,
    usage: CodebookUsage | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Real and decoded items [C, …], where they are real. usage: counts the codes."""
    device = next(tokenizer.parameters()).device
    for batch in batches:
        batch = batch.move(device)
        condition = conditions.make(batch.media, batch.captions)
        coded = tokenizer.encode(batch.media, batch.lengths, conditions.choose(condition, conditions.encode_kinds))
        if usage is not None and isinstance(coded, Codes):
            usage.add(coded)
        if not tokenizer.can_decode:
            continue
        read = conditions.choose(condition, conditions.decode_kinds)
        decoded = tokenizer.decode(coded, read)  # type: ignore[arg-type]
        for row, real in enumerate(batch.media):
            end = real.shape[1] if batch.lengths is None else int(batch.lengths[row])
            begin = int("medium" in conditions.decode_kinds)  # the first frame is given
            yield real[:, begin:end].cpu(), decoded[row, :, begin:end].cpu()


def measure_tokenizer(
    tokenizer: MediaTokenizer | LatentTokenizer,
    batches: Sequence[MediaBatch],
    conditions: ConditionMaker,
    sheet: Path | None = None,
) -> dict[str, float]:
    """Mean squared error and PSNR of what is decoded (of masks also the mean overlap with the real ones, `iou`), and of
    each codebook the share of its values that is used and the perplexity. sheet: where a picture of the first of them
    is saved."""
    usage = CodebookUsage(tokenizer) if isinstance(tokenizer, MediaTokenizer) else None
    errors: list[Tensor] = []
    overlaps: list[float] = []
    drawn: list[tuple[Tensor, Tensor]] = []
    for real, made in decode_batches(tokenizer, batches, conditions, usage):
        errors.append((made - real[:, : made.shape[1]]).square().mean())
        if tokenizer.modality == "mask":
            overlaps.append(measure_overlap(real, made))
        if len(drawn) < MOST_DRAWN and sheet is not None:
            drawn.append((_swap_frames(real), _swap_frames(made)))
    report: dict[str, float] = {}
    if errors:
        report["mean_squared_error"] = float(torch.stack(errors).mean())
        peak = 4.0 if tokenizer.modality == "audio" else 1.0  # of [-1, 1] and [0, 1], squared
        report["psnr"] = float((10 * (peak / torch.stack(errors).clamp_min(1e-10)).log10()).mean())
    if overlaps:
        report["iou"] = sum(overlaps) / len(overlaps)
    if drawn and sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        save_image(draw_sheet(drawn), sheet)
    return report | ({} if usage is None else usage.report())


def measure_overlap(real: Tensor, made: Tensor) -> float:
    """Intersection over union of two masks [1, H, W], of what is above a half; 1 of two empty ones."""
    one, other = real > 0.5, made > 0.5
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def _swap_frames(item: Tensor) -> Tensor:
    """[C, T, H, W] → [T, C, H, W]; other items as they are."""
    return item.transpose(0, 1) if item.dim() == 4 else item
