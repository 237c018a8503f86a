"""Documents whose pictures a reader is trained on: rendered with placeholders, each told the number of its picture.

What the frozen part of the reader sees of a picture is computed once and stays in memory, in half precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.media.image import load_image
from unimodal.objectives.reader import FindSeen
from unimodal.sequence.document import Document, Media, Text, Turn
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.tokenizers.readers.come_vl import CoMEVLReader
from unimodal.tokenizers.readers.limber import LimberReader
from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.layout import FeatureSpan
from unimodal.vocabulary.read import parse_vocabulary

AnyReader = LimberReader | CoMEVLReader
BATCH = 32  # pictures that are looked at together


def give_reader(vocabulary: Vocabulary, num_features: int, sha256: str) -> Vocabulary:
    """The vocabulary of a model of ours, whose pictures are read through so many features; they stand at `<|pad|>`.

    Raises ValueError for one without pictures.
    """
    vocabulary.get_layout("image")
    data = vocabulary.to_dict()
    layouts = data["layouts"]
    assert isinstance(layouts, list)
    span = FeatureSpan(vocabulary.get_control_id("<|pad|>"), num_features, sha256)
    for layout in layouts:
        if layout["modality"] == "image":
            layout["features"] = {"row": span.row, "count": span.count, "sha256": span.sha256}
    return parse_vocabulary(data)


class ReadDocuments:
    """Documents by number, rendered. template: of a vocabulary with features.

    limit: tokens of the longest document. Raises ValueError for a document that does not read exactly pictures of files
    and answer in words, and for pictures that cannot be used.
    """

    def __init__(
        self, documents: Sequence[Document], template: Template, reader: AnyReader, limit: int | None = None
    ) -> None:
        self._rendered: list[Rendered] = []
        self._numbers: dict[bytes, int] = {}
        pictures: list[Media] = []
        for index, document in enumerate(documents):
            _check(index, document)
            rendered = template.render(document)
            if limit is not None and len(rendered) > limit:
                raise ValueError(f"document {index} has {len(rendered)} tokens, and {limit} fit; shorten it")
            numbers = []
            for part in rendered.read:
                key = hashlib.sha256(MediaCoder.read_content(part)).digest()
                if key not in self._numbers:
                    self._numbers[key] = len(pictures)
                    pictures.append(part)
                numbers += [self._numbers[key] + 1] * reader.num_features
            values = np.zeros((len(rendered), 1), dtype=np.float32)
            span = template.vocabulary.get_layout("image").features
            assert span is not None
            values[rendered.ids == span.row, 0] = numbers
            self._rendered.append(replace(rendered, values=values, read=()))
        self._seen = self._look(pictures, reader)

    def __len__(self) -> int:
        return len(self._rendered)

    def __getitem__(self, index: int) -> Rendered:
        return self._rendered[index]

    @property
    def find_seen(self) -> FindSeen:
        """What the frozen part saw of some pictures, by their numbers from 0."""
        seen = self._seen

        def find(numbers: Sequence[int]) -> tuple[Tensor, ...]:
            return tuple(one[list(numbers)].float() for one in seen)

        return find

    def hash(self) -> str:
        """A hash of the documents and their pictures."""
        found = hashlib.sha256(b"".join(self._numbers))
        for one in self._rendered:
            for array in (one.ids, one.labels, one.values):
                assert array is not None
                found.update(array.tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def _look(self, pictures: Sequence[Media], reader: AnyReader) -> tuple[Tensor, ...]:
        if not pictures:
            raise ValueError("no document shows a picture in a question; there is nothing to read")
        device = next(reader.parameters()).device
        parts = []
        for begin in range(0, len(pictures), BATCH):
            batch = torch.stack([reader.fit(load_image(one.source)) for one in pictures[begin : begin + BATCH]])
            parts.append([one.half().cpu() for one in reader.look(batch.to(device))])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _check(index: int, document: Document) -> None:
    """Raises ValueError for a document whose pictures are no files, or whose answers are no words."""
    for turn in document.turns:
        media = [part for part in turn.parts if not isinstance(part, Text)]
        if any(part.modality != "image" or part.codes is not None for part in media):
            raise ValueError(
                f"document {index} shows {media[0].modality}s of codes; a reader learns from picture files"
            )
        if media and turn.role == "assistant":
            raise ValueError(f"document {index} answers with a picture; a reader learns from answers in words")


def keep_readable(documents: Sequence[Document]) -> list[Document]:
    """Those documents that show pictures and answer in words alone."""

    def shows(turns: Sequence[Turn], role: str) -> bool:
        return any(isinstance(part, Media) for turn in turns if turn.role == role for part in turn.parts)

    return [one for one in documents if shows(one.turns, "user") and not shows(one.turns, "assistant")]
