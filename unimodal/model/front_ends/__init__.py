"""Ways for one decoder to read plain text, beside tokens: one a file, all scored in bits a byte (`interface.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.boundaries import BoundaryFrontEnd
from unimodal.model.front_ends.equal_information import EqualInformationFrontEnd, WindowCoder
from unimodal.model.front_ends.glyphs import GlyphFrontEnd
from unimodal.model.front_ends.ids import ByteFrontEnd, TokenFrontEnd
from unimodal.model.front_ends.interface import FrontEnd, UnitScores
from unimodal.model.front_ends.lexinvariant import LexinvariantFrontEnd
from unimodal.model.front_ends.words import WordFrontEnd
from unimodal.text.reports.opened import OpenedTokenizer

__all__ = ["FRONT_ENDS", "FrontEnd", "FrontEndRequest", "UnitScores", "make_front_end"]


@dataclass(frozen=True, eq=False)
class FrontEndRequest:
    """What a front end is made of: the decoder's sizes, a tokenizer, the texts of training, and a font for glyphs."""

    sizes: NanoConfig
    tokenizer: OpenedTokenizer
    texts: Sequence[bytes]
    font: str | None = None
    seed: int = 0


def make_front_end(name: str, request: FrontEndRequest) -> FrontEnd:
    """The front end of this name, its weights by the seed. Raises ValueError for an unknown name."""
    if name not in FRONT_ENDS:
        raise ValueError(f"front end {name!r} is unknown; use {', '.join(FRONT_ENDS)}")
    return FRONT_ENDS[name](request)


FRONT_ENDS: dict[str, Callable[[FrontEndRequest], FrontEnd]] = {
    "tokens": lambda given: TokenFrontEnd(given.tokenizer, given.sizes, given.seed),
    "bytes": lambda given: ByteFrontEnd(given.sizes, given.seed),
    "pooled": lambda given: WordFrontEnd(given.sizes, num_pooled=4, seed=given.seed),
    "hierarchical": lambda given: WordFrontEnd(given.sizes, num_pooled=1, seed=given.seed),
    "magnet": lambda given: BoundaryFrontEnd(given.sizes, seed=given.seed),
    "equal-information": lambda given: EqualInformationFrontEnd(
        WindowCoder.learn(given.texts), given.sizes, given.seed
    ),
    "glyphs": lambda given: GlyphFrontEnd(given.tokenizer, given.sizes, given.font, given.seed),
    "lexinvariant": lambda given: LexinvariantFrontEnd(given.sizes, given.seed),
}
