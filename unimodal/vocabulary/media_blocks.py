"""The blocks and spans of a vocabulary, from what tokenizers say of their codes.

One rule serves every model that is made: each block that a tokenizer names becomes a `Block` for each of its groups,
each tokenizer's segments become a `SpanLayout`. A tokenizer that continues another (clips that begin with the codes of
a picture) shares the other's blocks and begins with its segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from unimodal.vocabulary.layout import Block, Segment, SpanLayout
from unimodal.vocabulary.vocabulary import Vocabulary


class MediaCoding(Protocol):
    """What a tokenizer says of its codes; `unimodal.tokenizers.MediaTokenizer` has it all."""

    @property
    def modality(self) -> str: ...
    @property
    def continues(self) -> str | None:
        """The medium whose segments its own begin with, and whose blocks they use."""

    @property
    def segments(self) -> tuple[tuple[str, int | None], ...]:
        """(block name, count or None for any length), in order."""

    @property
    def frame_marks(self) -> bool:
        """Whether `<|frame|>` stands before each of its own segments but the first of a span."""

    @property
    def sha256(self) -> str: ...
    def group_sizes(self, block: str) -> tuple[int, ...]:
        """Values of each group of a block."""


def lay_out_media(tokenizers: Sequence[MediaCoding]) -> tuple[list[Block], list[SpanLayout]]:
    """The blocks, in the order of the tokenizers and of their segments, and the span of each medium.

    Raises ValueError for two tokenizers of one medium, for one that continues a tokenizer which is not given or other
    segments than that one's, and for a block that two of them call their own.
    """
    by_medium: dict[str, MediaCoding] = {}
    for tokenizer in tokenizers:
        if tokenizer.modality in by_medium:
            raise ValueError(f"there are two tokenizers of {tokenizer.modality}; give one")
        by_medium[tokenizer.modality] = tokenizer
    blocks: dict[str, list[Block]] = {}
    layouts = []
    for tokenizer in tokenizers:
        first, own = _list_segments(tokenizer, by_medium)
        for name in dict.fromkeys(segment.block for segment in own):
            if name in blocks:
                raise ValueError(f"two tokenizers have a block {name!r}; each block belongs to one")
            blocks[name] = [
                Block(name=name, modality=tokenizer.modality, group=group, size=size, sha256=tokenizer.sha256)
                for group, size in enumerate(tokenizer.group_sizes(name))
            ]
        layouts.append(SpanLayout(tokenizer.modality, [*first, *own]))
    return [block for group in blocks.values() for block in group], layouts


def make_media_vocabulary(
    tokenizers: Iterable[MediaCoding],
    text_size: int = 1,
    text_reserved: Iterable[int] = (0,),
    text_sha256: str = "",
) -> Vocabulary:
    """The vocabulary of these media behind `text_size` text rows; by default one reserved row stands for the text.

    Raises ValueError as `lay_out_media` does.
    """
    blocks, layouts = lay_out_media(list(tokenizers))
    return Vocabulary.build(text_size, blocks, layouts, text_reserved, text_sha256)


def _list_segments(tokenizer: MediaCoding, by_medium: dict[str, MediaCoding]) -> tuple[list[Segment], list[Segment]]:
    """The segments of the tokenizer that this one continues, and its own."""
    first: list[Segment] = []
    count = 0
    if tokenizer.continues is not None:
        begun = by_medium.get(tokenizer.continues)
        if begun is None:
            raise ValueError(
                f"the {tokenizer.modality} tokenizer continues that of {tokenizer.continues}, which is not given; give "
                "both"
            )
        count = len(begun.segments)
        if tokenizer.segments[:count] != begun.segments:
            raise ValueError(f"the segments of {tokenizer.modality} do not begin with those of {tokenizer.continues}")
        first = [segment for part in _list_segments(begun, by_medium) for segment in part]
    marked = tokenizer.frame_marks or len(tokenizer.segments) == 1  # no mark stands before a span's first segment
    return first, [Segment(name, number, mark=marked) for name, number in tokenizer.segments[count:]]
