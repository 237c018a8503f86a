"""Coarse pictures while their codes are still being written, for image tokenizers with ordered codes.

Shapes: H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unimodal.coder.media_coder import MediaCoder
from unimodal.coder.outputs import Output
from unimodal.generation.request import TokenEvent
from unimodal.sequence.document import Image

SHOWN_AFTER = (4, 8, 16, 32)  # numbers of codes after which a coarse picture is worth a look


class PartialPictures:
    """Takes the tokens of answers, and calls ``on_partial(row, output)`` each time a row's picture has one of ``steps``
    codes.

    The output's part holds the codes so far, its media what they decode to, [3, H, W]. Raises ValueError for a
    tokenizer whose codes are not ordered.
    """

    def __init__(
        self,
        coder: MediaCoder,
        on_partial: Callable[[int, Output], None],
        steps: Sequence[int] = SHOWN_AFTER,
    ) -> None:
        if not coder.get_tokenizer("image").ordered:
            raise ValueError("partial pictures need an image tokenizer whose codes run from coarse to fine")
        self.coder, self.on_partial, self.steps = coder, on_partial, frozenset(steps)
        self.codes: dict[int, list[int]] = {}

    def __call__(self, event: TokenEvent) -> None:
        vocabulary = self.coder.vocabulary
        if event.modality != "image":
            return
        block = vocabulary.find_block(event.id)
        if block is None:  # the start or the end of a span
            self.codes[event.row] = []
            return
        codes = self.codes.setdefault(event.row, [])
        codes.append(event.id - block.start)
        if len(codes) in self.steps:
            self.on_partial(event.row, decode_prefix(self.coder, codes))


def decode_prefix(coder: MediaCoder, codes: Sequence[int]) -> Output:
    """The picture that the first codes decode to."""
    part = Image(codes=np.array(codes, dtype=np.int64))
    return Output(part, coder.decode("image", [part.require_codes()])[0])
