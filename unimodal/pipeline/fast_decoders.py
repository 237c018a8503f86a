"""Fast decoders of a loaded model: by name, with what each needs of the model's tokenizers and drafts."""

from __future__ import annotations

from unimodal.generation import make_decoder
from unimodal.generation.fast.speculation import FastDecoder
from unimodal.model_folder.drafts import read_drafts
from unimodal.pipeline.parts import LoadedModel

REMEMBERING = ("retrieval", "sjd", "coupled-sjd", "gsd")  # decoders that guess from a memory


def make_fast_decoder(model: LoadedModel, name: str) -> FastDecoder:
    """Makes the fast decoder of that name. Raises ValueError for an unknown name and for a broken file of drafts."""
    if name == "zipar":  # the tokenizers know the columns
        columns = [model.coder.get_tokenizer(medium).columns for medium in model.vocabulary.media]
        decoder = make_decoder(name, columns={block: count for part in columns for block, count in part.items()})
    elif name == "gsd":
        decoder = make_decoder(name, code_vectors=model.coder.get_code_vectors())
    else:
        decoder = make_decoder(name)
    for ids in read_drafts(model.folder) if name in REMEMBERING else ():
        decoder.learn(ids)
    return decoder
