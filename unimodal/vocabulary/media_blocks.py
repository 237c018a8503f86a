"""The blocks and span layouts of a vocabulary, from the declarations of its tokenizers.

Each block that a tokenizer names becomes a `Block` for each of its groups, and its segments become a `SpanLayout`. A
tokenizer that continues another (clips that begin with the codes of a picture) shares the other's blocks and begins
with its segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from unimodal.vocabulary.layout import Block, Segment, SpanLayout
from unimodal.vocabulary.patterns import make_pattern
from unimodal.vocabulary.vocabulary import Vocabulary


class MediaCoding(Protocol):
    """A tokenizer's declarations about its codes; `unimodal.tokenizers.MediaTokenizer` has them all."""

    @property
    def modality(self) -> str: ...
    @property
    def continues(self) -> str | None:
        """The medium whose segments come first in its own spans, with that medium's blocks; None for most."""

    @property
    def segments(self) -> tuple[tuple[str, int | None], ...]:
        """(block name, code steps or None for any number), in order."""

    @property
    def frame_marks(self) -> bool:
        """Whether `<|frame|>` stands before each of its own segments, except at the start of a span."""

    @property
    def sha256(self) -> str: ...
    def group_sizes(self, block: str) -> tuple[int, ...]:
        """The number of values of each group of a block."""


def lay_out_media(tokenizers: Sequence[MediaCoding]) -> tuple[list[Block], list[SpanLayout]]:
    """The blocks, in the order of tokenizers and segments, and the span layout of each medium.

    Raises ValueError for two tokenizers of one medium, for a tokenizer that continues one that is missing or has other
    segments, and for a block name that two of them use.
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


def order_layouts(
    layouts: Iterable[SpanLayout], blocks: Sequence[Block], orders: Mapping[str, str]
) -> list[SpanLayout]:
    """The layouts, those of the media in `orders` with the pattern that is named there (`patterns.make_pattern`).

    Raises ValueError for a medium without a span or with a single code a step, and for a pattern that does not fit.
    """
    found = list(layouts)
    known = [layout.modality for layout in found]
    for medium, text in orders.items():
        if medium not in known:
            raise ValueError(
                f"code_order names {medium!r}, but there are spans of {', '.join(known) or 'no media'} only"
            )
        layout = found[known.index(medium)]
        groups = sum(block.name == layout.segments[0].block for block in blocks)
        if groups == 1:
            raise ValueError(f"code_order names {medium!r}, which has one code a step; leave it out")
        found[known.index(medium)] = replace(layout, pattern=make_pattern(text, groups))
    return found


def make_media_vocabulary(
    tokenizers: Iterable[MediaCoding],
    text_size: int = 1,
    text_reserved: Iterable[int] = (0,),
    text_sha256: str = "",
) -> Vocabulary:
    """The vocabulary of these media behind `text_size` text rows; by default a single reserved row in place of text.

    Raises ValueError as `lay_out_media` does.
    """
    blocks, layouts = lay_out_media(list(tokenizers))
    return Vocabulary.build(text_size, blocks, layouts, text_reserved, text_sha256)


def _list_segments(tokenizer: MediaCoding, by_medium: dict[str, MediaCoding]) -> tuple[list[Segment], list[Segment]]:
    """The segments of the tokenizer that this one continues, and its own segments."""
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
