"""Fast decoders of a loaded model: by name, with what each needs of the model's tokenizers and drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from unimodal.generation import make_decoder
from unimodal.generation.fast.protocol import FastDecoder
from unimodal.model_folder.draft_heads import DRAFT_HEADS, load_draft_heads
from unimodal.model_folder.drafts import read_drafts
from unimodal.model_folder.layout import PROCESSOR_FILE
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.requests import Prepared
from unimodal.pipeline.settings import PLAIN

REMEMBERING = ("retrieval", "sjd", "coupled-sjd", "gsd")  # decoders that guess from a memory


def _read_rows(model: LoadedModel) -> dict[str, Tensor]:
    """The embedding rows of every block that is a single codebook, [size, D], as the model reads them."""
    blocks, table = model.vocabulary.blocks, model.decoder.get_input_embeddings()
    names = Counter(block.name for block in blocks)
    with torch.inference_mode():
        return {
            block.name: table(torch.arange(block.start, block.start + block.size, device=model.engine.device))
            for block in blocks
            if names[block.name] == 1
        }


def name_decoder(model: LoadedModel, prepared: Prepared, in_shared_batch: bool = False) -> str | None:
    """The name of the decoder that writes an answer; None for token by token, as all are in a batch that is shared.

    A model that learnt its codes under a mask of its own (`ProcessorConfig.writing`) has one that is used unless the
    request names another. Raises ValueError, in one line, for a request that would have such codes written token by
    token where the model never learnt to.
    """
    settings, writing = prepared.settings, model.processor.writing
    asked = None if settings.decoder == PLAIN else settings.decoder
    written = [name for name in _list_written(model, prepared) if _has_learnt_span(model, name)]
    if writing is None or not written:
        return asked
    ways = {
        "a batch that is shared": in_shared_batch, "compress": bool(prepared.methods),
        "search": settings.search is not None, f"decoder {settings.decoder}": settings.decoder is not None,
    }  # fmt: skip
    way = next((way for way, given in ways.items() if given), None)
    if way is None:
        return writing.decoder
    if writing.token_by_token or asked in writing.decoders:
        return asked
    raise ValueError(
        f"{way} has {' and '.join(written)} codes written one after the other, and this model learnt them with "
        f"{writing.objective} alone; ask without, with decoder {' or '.join(writing.decoders)}, or {writing.remedy}"
    )


def _list_written(model: LoadedModel, prepared: Prepared) -> list[str]:
    """The media that an answer may hold."""
    config = prepared.config
    if config.force is not None:
        return [config.force] if config.force in model.writable else []
    return [name for name in model.writable if config.allow is None or name in config.allow]


def _has_learnt_span(model: LoadedModel, modality: str) -> bool:
    """Whether a medium has codes of a number that is known before: only those are learnt in spans."""
    layout = model.vocabulary.get_layout(modality)
    return any(segment.count is not None for segment in layout.segments)


def make_fast_decoder(model: LoadedModel, name: str) -> FastDecoder:
    """Makes the fast decoder of that name, with the settings of the model's training if it was trained for it. Raises
    ValueError for an unknown name, for a broken file of drafts, and for draft heads that are missing or of another
    model.
    """
    writing = model.processor.writing
    own = None if writing is None else writing.decoders.get(name)
    if name in ("zipar", "next-x"):  # the tokenizers know the columns
        columns = [model.coder.get_tokenizer(medium).columns for medium in model.vocabulary.media]
        found: dict[str, object] = {block: count for part in columns for block, count in part.items()}
        settings = dict(own or {})
        given = settings.pop("columns", None)
        found |= given if isinstance(given, dict) else {}
        decoder = _make_learnt(model, name, {"columns": found, **settings})
    elif own is not None:
        decoder = _make_learnt(model, name, own)
    elif name == "gsd":
        decoder = make_decoder(name, rows=_read_rows(model), code_vectors=model.coder.get_code_vectors())
    elif name == "draft-heads":
        folder = model.folder / DRAFT_HEADS if model.draft_heads is None else model.draft_heads
        heads = load_draft_heads(folder, model.decoder, model.vocabulary.size)
        decoder = make_decoder(name, heads=heads, embed=model.decoder.get_input_embeddings())
    else:
        decoder = make_decoder(name)
    for ids in read_drafts(model.folder) if name in REMEMBERING else ():
        decoder.learn(ids)
    return decoder


def _make_learnt(model: LoadedModel, name: str, settings: Mapping[str, object]) -> FastDecoder:
    """Raises ValueError for settings in the model's folder that the decoder does not take."""
    try:
        return make_decoder(name, **settings)
    except ValueError as error:
        raise ValueError(f"{model.folder / PROCESSOR_FILE}: writing.decoders.{error}") from None
