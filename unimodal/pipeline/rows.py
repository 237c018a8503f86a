"""The pipeline for many requests at once: what a server asks of a model, row by row, in a batch that never ends.

`request_for` makes a row of a document, `fitting` drops what the model cannot see, `ContinuousBatch` runs the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from unimodal.coder.partial import STEPS
from unimodal.generation.continuous import ContinuousBatch, Finished, Request
from unimodal.generation.request import TokenEvent
from unimodal.pipeline.speech_reading import own_way
from unimodal.pipeline.unimodal import Unimodal
from unimodal.sequence.document import Document, Turn

__all__ = [
    "STEPS", "ContinuousBatch", "Finished", "Request", "TokenEvent", "coded", "fitting", "request_for", "segments",
]  # fmt: skip


def request_for(
    model: Unimodal,
    document: Document,
    to: str | None = None,
    allow: Sequence[str] | None = None,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    tokens: int | None = None,
    negative: str | None = None,
    on_token: Callable[[TokenEvent], bool | None] | None = None,
) -> Request:
    """The row that `Unimodal.answers` would run for a document.

    to: the medium that the answer must hold, "text" for words only; without it `allow` lists what the answer may hold
    (by default all). temperature and top_p are of all that the answer may hold, words included. tokens: at most so many
    new ones, not counting the end of an answer of words; what does not fit behind the prompt is taken off. Raises
    ValueError for what does not fit the model.
    """
    for name in (*([] if to in (None, "text") else [to]), *(n for n in allow or () if n != "text")):
        model.vocabulary.layout(str(name))
    prompt = model._prompt(document, to)
    room = model.max_positions - len(prompt)
    if tokens is not None:
        tokens = min(tokens, room - 1 if to in (None, "text") else room)
    settings = model._settings(to, guidance, temperature)
    config = model._config(document, len(prompt), to, seed, settings, tokens, negative)
    writable = (to,) if to is not None else tuple(allow or ("text", *model.vocabulary.media))
    changes = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    sampling = {n: s.model_copy(update=changes) if n in writable else s for n, s in config.sampling.items()}
    update: dict[str, Any] = {"sampling": sampling}
    if to is None and allow is not None:
        update["allow"] = tuple(allow)
    if tokens is not None and to in (None, "text"):
        update |= {"max_text_tokens": tokens, "max_new_tokens": tokens + 1}
    config = config.model_copy(update=update)
    return Request(prompt, config, on_token, own_way(model, document, prompt, config))


def fitting(model: Unimodal, turns: Sequence[Turn], to: str | None = None) -> Document:
    """The last turn, the system's words, and as many of the latest exchanges as the model is meant to see and has room
    for."""
    first = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    head, rest = list(turns[:first]), list(turns[first:])
    begins = [n for n, turn in enumerate(rest) if turn.role == "user" and (n == 0 or rest[n - 1].role != "user")]
    limit = model.processor.history_turns
    begins = sorted({0, *begins}) if limit is None else begins[-(limit + 1) :]
    needed = model.answer_length(to)
    document = Document([*head, *rest[begins[0] :]])
    for begin in begins[1:]:
        if model.room(document) >= needed:
            break
        document = Document([*head, *rest[begin:]])
    return document


def coded(model: Unimodal, modality: str, medium: Tensor) -> dict[str, Any]:
    """A medium as `MediaCoder.read` gives it → its codes, flat, and how they lie: see `segments`."""
    coder = model.coder
    tokenizer = coder.tokenizer(modality)
    codes = tokenizer.encode(*coder._batch(modality, [medium]))
    row = codes.row(0)  # [N, G]
    grid = None if codes.grid is None else [int(side) for side in codes.grid]
    return {
        "modality": modality,
        "codes": row.flatten().tolist(),
        "groups": row.shape[1],
        "ordered": bool(tokenizer.ordered),
        "order": codes.order,
        "grid": grid,
        "segments": segments(model, modality, len(row), grid, codes.order),
    }


def segments(
    model: Unimodal, modality: str, num_steps: int, grid: Sequence[int] | None, order: str
) -> list[dict[str, Any]]:
    """The runs of a span's code steps: name of the block, first step, count, and (t, h, w) where they are a raster."""
    found, start = [], 0
    layout = model.vocabulary.layout(modality)
    for segment in layout.segments:
        count = num_steps - layout.fixed_steps if segment.count is None else segment.count
        own = model.vocabulary.group_blocks(segment.block)[0].modality == modality
        area = grid[1] * grid[2] if grid is not None and own and "raster" in order else 0
        raster = [count // area, grid[1], grid[2]] if grid is not None and area and count % area == 0 else None
        found.append({"name": segment.block, "start": start, "count": count, "grid": raster})
        start += count
    return found
