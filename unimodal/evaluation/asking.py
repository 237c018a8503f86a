"""Many requests to the model, and features of prepared pictures, for all suites.

Shapes: B pictures, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.outputs import Output
from unimodal.evaluation.judges import compute_picture_features
from unimodal.evaluation.prepared import Pictures
from unimodal.evaluation.suite import ReportProgress
from unimodal.pipeline import Unimodal
from unimodal.pipeline.settings import SearchSettings
from unimodal.sequence.document import Audio, Document, Text, Turn

SPEECH_BATCH = 16  # utterances that are coded at once


def answer_texts(
    model: Unimodal,
    documents: Sequence[Document],
    seed: int,
    report: ReportProgress,
    decoder: str | None = None,
    tokens: int | None = None,
) -> list[str]:
    """The words of the model's answers, which hold text only. Document i is answered with seed + i.

    tokens: the most of an answer; None: as many as the model may write.
    """
    seeds, on_progress = range(seed, seed + len(documents)), _name_progress(report, "answering")
    answers = model.answers(documents, to="text", seeds=seeds, decoder=decoder, tokens=tokens, on_progress=on_progress)
    return [join_texts(answer).strip() for answer in answers]


def ask_what_is_said(model: Unimodal, sounds: Sequence[Tensor], report: ReportProgress, text: str) -> list[Document]:
    """The request for a transcript of each sound, float32 [T] at 16 kHz. text: what progress is reported as."""
    documents = []
    for start in range(0, len(sounds), SPEECH_BATCH):
        report(text, start, len(sounds))
        for codes in model.coder.encode("audio", list(sounds[start : start + SPEECH_BATCH])):
            documents.append(Document([Turn("user", [Audio(codes=codes), Text(model.wording.ask("audio"))])]))
    return documents


def join_texts(answer: Sequence[Output]) -> str:
    """The texts of an answer, joined."""
    return " ".join(output.text for output in answer if output.text)


def answer_media(
    model: Unimodal,
    documents: Sequence[Document],
    to: str,
    seed: int,
    report: ReportProgress,
    text: str,
    decoder: str | None = None,
    search: tuple[str, SearchSettings] | None = None,
) -> list[Tensor]:
    """The medium in each of the model's answers. Document i is answered with seed + i.

    to: the modality. text: what progress is reported as. search: its name and settings, where a search answers.
    """
    seeds, on_progress = range(seed, seed + len(documents)), _name_progress(report, text)
    name, settings = search or (None, None)
    answers = model.answers(
        documents, to=to, seeds=seeds, decoder=decoder, on_progress=on_progress, search=name, search_settings=settings
    )
    media = []
    for answer in answers:
        medium = next(output.media for output in answer if output.modality == to)
        assert medium is not None
        media.append(medium)
    return media


def _name_progress(report: ReportProgress, text: str) -> Callable[[int, int], None]:
    return lambda done, total: report(text, done, total)


def find_features(model: Unimodal, pictures: Pictures, rows: np.ndarray, report: ReportProgress) -> Tensor:
    """Features [B, D], of unit length, of the pictures `rows` int [B] by the model's own trunk.

    Those prepared with the data are taken where the trunk is the one that they were prepared by.
    """
    if pictures.features is not None and len(rows):
        own = model.extract_picture_features(pictures.take(rows[:1]))
        prepared = torch.from_numpy(pictures.features[rows])
        if own.shape[1] == prepared.shape[1]:
            return torch.nn.functional.normalize(prepared, dim=-1)
    return compute_picture_features(model, pictures.take(rows), report)


def count_span_bytes(model: Unimodal, modality: str) -> int:
    """The size of the codes of one picture or clip, in bytes: a code of a block of n values takes log2(n) bits."""
    bits = 0.0
    for segment in model.vocabulary.get_layout(modality).segments:
        assert segment.count is not None
        bits += segment.count * sum(math.log2(block.size) for block in model.vocabulary.group_blocks(segment.block))
    return math.ceil(bits / 8)


def compute_percent(values: Sequence[bool]) -> float:
    """The share of true values in per cent, rounded to one decimal."""
    return round(100 * sum(values) / max(len(values), 1), 1)
