"""Fast decoders of a loaded model: by name, with what each needs of the model's tokenizers and drafts."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from unimodal.generation import make_decoder
from unimodal.generation.fast.protocol import FastDecoder
from unimodal.model_folder.draft_heads import DRAFT_HEADS, load_draft_heads
from unimodal.model_folder.drafts import read_drafts
from unimodal.pipeline.parts import LoadedModel

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


def make_fast_decoder(model: LoadedModel, name: str) -> FastDecoder:
    """Makes the fast decoder of that name. Raises ValueError for an unknown name, for a broken file of drafts, and for
    draft heads that are missing or of another model.
    """
    if name == "zipar":  # the tokenizers know the columns
        columns = [model.coder.get_tokenizer(medium).columns for medium in model.vocabulary.media]
        decoder = make_decoder(name, columns={block: count for part in columns for block, count in part.items()})
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
