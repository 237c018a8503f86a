"""Documents whose media are the vectors of a latent tokenizer: rendered, each with its vectors at its tokens.

Every medium is encoded once and its vectors stay in memory: N · K numbers of 4 bytes each, 2 KB for 32 vectors of
width 16.

Shapes: N vectors of a medium, K their width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.media.image import load_image
from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers import LatentTokenizer
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

BATCH = 64  # pictures that are encoded together


def make_latent_template(text: TextTokenizer, num_rows: int, tokenizer: LatentTokenizer) -> Template:
    """The template over `num_rows` rows of a base and, behind them, the controls and the one row of the medium.

    Raises ValueError for a tokenizer whose media are no pictures, or have any number of vectors.
    """
    if tokenizer.modality != "image" or tokenizer.tokens_per_item is None:
        raise ValueError(
            f"a {tokenizer.config.family} gives any number of vectors of {tokenizer.modality}s; name a latent "
            "tokenizer of pictures of one size"
        )
    medium = tokenizer.modality
    reserved = {*text.reserved_ids, *range(text.size, num_rows)}
    blocks = [Block(name=medium, modality=medium, size=1, sha256=tokenizer.sha256)]
    layouts = [SpanLayout(medium, [Segment(medium, tokenizer.tokens_per_item)])]
    return Template(Vocabulary.build(num_rows, blocks, layouts, reserved, text.sha256), text)


class LatentDocuments:
    """Documents by number, rendered with the vectors of their media. Raises ValueError for media that cannot be used.

    limit: tokens of the longest document that is taken.
    """

    def __init__(
        self, documents: Sequence[Document], template: Template, tokenizer: LatentTokenizer, limit: int | None = None
    ) -> None:
        self.template, self.tokenizer = template, tokenizer
        self._documents = list(documents)
        self._count, self._row = tokenizer.tokens_per_item or 0, template.vocabulary.blocks[0].start
        self._vectors: dict[bytes, np.ndarray] = {}
        for number, document in enumerate(self._documents):
            length = len(self._render(document))
            if limit is not None and length > limit:
                raise ValueError(f"document {number} has {length} tokens, and {limit} fit; shorten it")
        self._encode()

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Rendered:
        document = self._documents[index]
        rendered = self._render(document)
        values = np.zeros((len(rendered), self.tokenizer.width), dtype=np.float32)
        vectors = [self._vectors[_identify(part)] for part in _list_media(document)]
        if vectors:
            values[rendered.ids == self._row] = np.concatenate(vectors)
        return replace(rendered, values=values)

    def hash(self) -> str:
        """A hash of all documents: their tokens and their vectors."""
        found = hashlib.sha256()
        for number in range(len(self)):
            rendered = self[number]
            assert rendered.values is not None
            for array in (rendered.ids, rendered.labels, rendered.values):
                found.update(array.tobytes())
        return found.hexdigest()

    def collect_vectors(self) -> Tensor:
        """The vectors of all media, float32 [P, K]. Raises ValueError if no document has one."""
        if not self._vectors:
            raise ValueError(f"no document has a medium of the {self.tokenizer.config.family} tokenizer to learn")
        return torch.from_numpy(np.concatenate(list(self._vectors.values())))

    def _render(self, document: Document) -> Rendered:
        nothing = np.zeros(self._count, dtype=np.int64)
        turns = [
            replace(turn, parts=tuple(_give_codes(part, nothing) for part in turn.parts)) for turn in document.turns
        ]
        return self.template.render(Document(turns))

    @torch.inference_mode()
    def _encode(self) -> None:
        media = {_identify(part): part for document in self._documents for part in _list_media(document)}
        keys = list(media)
        device = next(self.tokenizer.parameters()).device
        for begin in range(0, len(keys), BATCH):
            some = keys[begin : begin + BATCH]
            pictures = torch.stack([self.tokenizer.fit(load_image(media[key].source)) for key in some])
            latents = self.tokenizer.encode(pictures.to(device))
            if latents.counts != [self._count] * len(some):
                raise ValueError(f"the latent tokenizer gave {latents.counts} vectors where it says {self._count}")
            self._vectors |= zip(some, latents.values.float().cpu().numpy(), strict=True)


def _list_media(document: Document) -> Iterator[Media]:
    for turn in document.turns:
        yield from (part for part in turn.parts if isinstance(part, Media))


def _give_codes(part: Part, codes: np.ndarray) -> Part:
    """A medium with the code 0 at each place, where its vectors are to stand."""
    if not isinstance(part, Media):
        return part
    if part.modality != "image" or part.codes is not None:
        raise ValueError(f"the {part.modality} {part.name!r} is no picture of a file; continuous media are pictures")
    return MEDIA_PARTS[part.modality](codes=codes)


def _identify(part: Media) -> bytes:
    return hashlib.sha256(MediaCoder.read_content(part)).digest()
