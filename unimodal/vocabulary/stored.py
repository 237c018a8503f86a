"""The content of `vocabulary.json`, checked entry by entry before a vocabulary is built from it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from unimodal.config import Config
from unimodal.vocabulary.grid import GridMarks
from unimodal.vocabulary.layout import Block, Control, FeatureSpan, Segment, SpanLayout
from unimodal.vocabulary.patterns import CodePattern

FORMAT_VERSION = 1


class StoredText(Config):
    """The text rows: their number, the hash of their tokenizer, and the rows that plain text never uses."""

    size: int
    sha256: str
    reserved: tuple[int, ...]


class StoredLayout(Config):
    """One span layout."""

    modality: str
    segments: tuple[Segment, ...]
    grid: GridMarks | None = None
    features: FeatureSpan | None = None
    pattern: CodePattern | None = None

    def build(self) -> SpanLayout:
        return SpanLayout(self.modality, self.segments, self.grid, self.features, self.pattern)


class StoredVocabulary(Config):
    """The whole file. adopted: whether the rows have the order of a converted checkpoint."""

    format: int
    size: int
    text: StoredText
    controls: tuple[Control, ...]
    blocks: tuple[Block, ...]
    layouts: tuple[StoredLayout, ...]
    adopted: bool = False

    @classmethod
    def parse(cls, data: object) -> StoredVocabulary:
        """Check a file's data. Raises ValueError, in one line that names the entry, for another shape or format."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT_VERSION:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"vocabulary format {found!r} is not {FORMAT_VERSION}; use the unimodal that wrote it")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"the vocabulary is incomplete or has an unknown entry ({where}: {first['msg']})"
            ) from None
