"""What the suites share: putting many requests to the model, and the features of prepared pictures.

Shapes: B pictures, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation import Report
from unimodal.evaluation.judges import picture_features
from unimodal.evaluation.prepared import Pictures
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document


def answer_texts(
    model: Unimodal, documents: Sequence[Document], seed: int, report: Report, decoder: str | None = None
) -> list[str]:
    """The words of the model's answers, text only."""
    seeds, told = range(seed, seed + len(documents)), counted(report, "answering")
    answers = model.answers(documents, to="text", seeds=seeds, decoder=decoder, on_progress=told)
    return [" ".join(output.text for output in answer if output.text).strip() for answer in answers]


def answer_media(
    model: Unimodal,
    documents: Sequence[Document],
    to: str,
    seed: int,
    report: Report,
    text: str,
    decoder: str | None = None,
) -> list[Tensor]:
    """The medium in each of the model's answers; every document has its own seed."""
    seeds, told = range(seed, seed + len(documents)), counted(report, text)
    answers = model.answers(documents, to=to, seeds=seeds, decoder=decoder, on_progress=told)
    media = [next(output.media for output in answer if output.modality == to) for answer in answers]
    assert all(medium is not None for medium in media)
    return media  # type: ignore[return-value]


def counted(report: Report, text: str) -> Callable[[int, int], None]:
    return lambda done, total: report(text, done, total)


def features_of(model: Unimodal, pictures: Pictures, rows: np.ndarray, report: Report) -> Tensor:
    """Unit features [B, D] of pictures: those prepared with the data, or computed here."""
    if pictures.features is not None:
        return torch.nn.functional.normalize(torch.from_numpy(pictures.features[rows]), dim=-1)
    return picture_features(model, pictures.tensors(rows), report)


def span_bytes(model: Unimodal, modality: str) -> int:
    """Bytes of the codes of one picture or clip: every code takes the bits that tell its block's values apart."""
    bits = 0.0
    for segment in model.vocabulary.layout(modality).segments:
        assert segment.count is not None
        bits += segment.count * sum(math.log2(block.size) for block in model.vocabulary.group_blocks(segment.block))
    return math.ceil(bits / 8)


def percent(values: Sequence[bool]) -> float:
    return round(100 * sum(values) / max(len(values), 1), 1)
