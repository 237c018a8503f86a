"""Many requests at once: what a server asks of a model, row by row, in a batch that never ends.

`make_row` turns a document into a row for `ContinuousBatch`; `describe_codes` says how a medium's codes are laid out.

Legend: N code steps, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from unimodal.compression import estimate_kept
from unimodal.generation.request import GenerationRequest, OnCompressed, OnToken
from unimodal.pipeline.fast_decoders import name_decoder
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.search import make_search_answer, phrase_caption
from unimodal.pipeline.settings import AnswerSettings
from unimodal.pipeline.speech_reading import make_speech_answer
from unimodal.sequence.document import Document

JUDGED_AT_ONCE = 1  # drafts that are scored between two steps of the batch


class CodeRun(TypedDict):
    """A run of code steps: name of the block, first step, number, and (t, h, w) where they are a raster."""

    name: str
    start: int
    count: int
    grid: list[int] | None


class CodesOfMedium(TypedDict):
    """The codes of a medium, flat, with how they are laid out."""

    modality: str
    codes: list[int]  # N * G
    groups: int
    ordered: bool
    order: str
    grid: list[int] | None
    segments: list[CodeRun]


def make_row(
    model: LoadedModel,
    document: Document,
    settings: AnswerSettings,
    on_token: OnToken | None = None,
    on_compressed: OnCompressed | None = None,
) -> GenerationRequest:
    """Makes the row that `Unimodal.answers` would run for a document.

    Raises ValueError for a request that does not fit the model, and for a fast decoder, which rows of a batch cannot
    have; so for media that the model never learnt to write token by token.
    """
    if settings.decoder is not None:
        raise ValueError("decoder is not for a request that shares its batch; leave it out")
    prepared = prepare(model, document, settings)
    name_decoder(model, prepared, in_shared_batch=True)
    if settings.search is None:
        composed = make_speech_answer(model, prepared, JUDGED_AT_ONCE)
    else:
        composed = make_search_answer(model, prepared, phrase_caption(model, prepared), JUDGED_AT_ONCE)
    if composed is None:
        methods = prepared.methods
        num_read = estimate_kept(prepared.prompt, methods, model.vocabulary) if methods else None
        return GenerationRequest(prepared.prompt, prepared.config, on_token, None, 1, methods, on_compressed, num_read)
    return GenerationRequest(prepared.prompt, prepared.config, on_token, composed.compose, len(composed.parts))


def describe_codes(model: LoadedModel, modality: str, medium: Tensor) -> CodesOfMedium:
    """A medium as `MediaCoder.read` gives it → its codes, and how they are laid out."""
    tokenizer = model.coder.get_tokenizer(modality)
    codes = model.coder.encode_batch(modality, [medium])
    row = codes.row(0)  # [N, G]
    grid = None if codes.grid is None else [int(side) for side in codes.grid]
    return {
        "modality": modality,
        "codes": row.flatten().tolist(),
        "groups": row.shape[1],
        "ordered": bool(tokenizer.ordered),
        "order": codes.order,
        "grid": grid,
        "segments": list_runs(model, modality, len(row), grid, codes.order),
    }


def list_runs(
    model: LoadedModel, modality: str, num_steps: int, grid: Sequence[int] | None, order: str
) -> list[CodeRun]:
    """The runs of a span of `num_steps` code steps, whose grid is (t, h, w)."""
    runs: list[CodeRun] = []
    start = 0
    layout = model.vocabulary.get_layout(modality)
    for segment in layout.segments:
        count = num_steps - layout.fixed_steps if segment.count is None else segment.count
        own = model.vocabulary.group_blocks(segment.block)[0].modality == modality
        area = grid[1] * grid[2] if grid is not None and own and "raster" in order else 0
        raster = [count // area, grid[1], grid[2]] if grid is not None and area and count % area == 0 else None
        runs.append({"name": segment.block, "start": start, "count": count, "grid": raster})
        start += count
    return runs
