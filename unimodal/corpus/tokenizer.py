"""Documents → rendered documents, with the tokenizers of a model folder. The media of a batch are encoded together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.data.token_shards import Skipped
from unimodal.data.tokenized import collect_hashes
from unimodal.model_folder.find import find_model
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import read_processor
from unimodal.sequence.document import Document, Media, Part, Text
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import Rendered
from unimodal.vocabulary import read_vocabulary


class CorpusTokenizer:
    """Documents → `Rendered`, or `Skipped` with the reason: a medium that cannot be used, or too many tokens.

    The folder needs `vocabulary.json`, `tokenizer.json` and the media tokenizers; the decoder's weights are not read.
    `hashes` holds the sha256 of each tokenizer and of the vocabulary, as token shards record them.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None = None, device: str = "cpu", max_tokens: int | None = None
    ) -> None:
        self.folder = find_tokenizer_folder(model)
        self.vocabulary = read_vocabulary(self.folder / VOCABULARY_FILE)
        if not self.vocabulary.text_sha256 and len(self.vocabulary.text_reserved) == self.vocabulary.text_size:
            raise ValueError(
                f"{self.folder} has media tokenizers but no text rows; make it anew with --text of "
                "`tools/convert_checkpoint.py tokenizers`, or name a model's folder"
            )
        processor = read_processor(self.folder)
        self.template = open_template(processor.template, self.vocabulary, self.folder)
        self.coder = MediaCoder(self.folder, self.vocabulary, processor, device)
        self.hashes = collect_hashes(self.vocabulary)
        self.max_tokens = max_tokens

    def __call__(self, documents: Sequence[Document]) -> list[Rendered | Skipped]:
        """Renders documents, one result for each, in order; a bad document does not touch the others.

        Raises ValueError for a tokenizer that cannot be loaded, which is no document's fault.
        """
        lacking = {part.modality for document in documents for part in document.parts if _has_no_codes(part)}
        for modality in sorted(lacking & set(self.vocabulary.media)):
            self.coder.get_tokenizer(modality)
        problems: dict[int, str] = {}
        media: dict[str, dict[tuple[int, int], Tensor]] = {}  # modality → (document, number of its medium) → tensor
        for number, document in enumerate(documents):
            try:
                for place, part in enumerate(filter(_has_no_codes, document.parts)):
                    media.setdefault(part.modality, {})[number, place] = self.coder.read_part(part)
            except ValueError as error:
                problems[number] = str(error)
        encoded: dict[tuple[int, int], Part] = {}
        for modality, found in media.items():
            usable = {place: medium for place, medium in found.items() if place[0] not in problems}
            if usable:
                encoded.update(zip(usable, self.coder.encode_parts(modality, list(usable.values())), strict=True))
        return [
            Skipped(problems[number]) if number in problems else self._render(document, number, encoded)
            for number, document in enumerate(documents)
        ]

    def _render(self, document: Document, number: int, encoded: dict[tuple[int, int], Part]) -> Rendered | Skipped:
        own = iter([encoded[place] for place in sorted(place for place in encoded if place[0] == number)])
        try:
            whole = self.template.begin_chat(_fill_codes(document, own), self.coder.processor.system)
            rendered = self.template.render(whole)
        except ValueError as error:  # codes that came with the row and do not fit the vocabulary
            return Skipped(str(error))
        if rendered.read:
            return Skipped("it holds media that this model reads through features, which are no tokens: train on files")
        length = self.vocabulary.positions.count(rendered.ids)
        if self.max_tokens is not None and length > self.max_tokens:
            return Skipped(f"the document has {length:,} tokens, over max_tokens {self.max_tokens:,}")
        return rendered


def find_tokenizer_folder(model: str | os.PathLike[str] | None) -> Path:
    """The folder whose tokenizers and vocabulary are used; the decoder's weights may be missing there."""
    folder = Path(model).expanduser() if model is not None else None
    if folder is not None and (folder / VOCABULARY_FILE).is_file():
        return folder
    return find_model(model)


def _has_no_codes(part: Part) -> TypeGuard[Media]:
    return not isinstance(part, Text) and part.codes is None


def _fill_codes(document: Document, encoded: Iterator[Part]) -> Document:
    """The document with the next part of `encoded` in place of each medium without codes."""
    return Document(
        turn.replace_parts([next(encoded) if _has_no_codes(part) else part for part in turn.parts])
        for turn in document.turns
    )
