"""A loaded model as a distribution over bytes: `unimodal.text.byte_distribution` over an engine and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimodal.generation.engine import Engine
from unimodal.text.byte_distribution import ByteDistribution
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.tokenizer import TextTokenizer


def make_byte_distribution(
    engine: Engine, text: TextTokenizer, before: Sequence[int], canonical: bool = True
) -> ByteDistribution:
    """What the engine's model says of the bytes of a text that begins behind the ids `before`.

    Controls and media are no bytes: together they are the end of the text. Every cover is one forward of the model.
    Raises ValueError for `before` without ids, and for a tokenizer whose decoder is not known.
    """
    if not before:
        raise ValueError("there are no ids before the text; give at least <|bos|>")
    reserved = set(text.reserved_ids)
    spelled = {row: piece for row, piece in OpenedTokenizer(text.data, "text").spelled.items() if row not in reserved}

    def read_next(ids: Sequence[int]) -> NDArray[np.float64]:
        return engine.compute_next([*before, *ids]).double().cpu().numpy()

    return ByteDistribution(read_next, spelled, text.encode_batch, canonical)
