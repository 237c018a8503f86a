"""Pictures that are shown by their first codes alone.

Where codes are ordered, the first of them say what a picture shows and the last how it looks. A question about what
there is can be learnt from the first alone, and more pictures are seen at the same cost.
"""

from __future__ import annotations

from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.vocabulary import Vocabulary


def find_last_rows(vocabulary: Vocabulary) -> range:
    """The rows of the last segment of a picture. Raises ValueError where no other has codes of another book."""
    *first, last = [segment.block for segment in vocabulary.get_layout("image").segments]
    if not first or last in first:
        raise ValueError("short_pictures needs pictures whose last codes have a codebook of their own; drop it")
    return vocabulary.get_block_range(last)


def leave_out(document: Rendered, rows: range) -> Rendered:
    """The document without the tokens of these rows that nothing is learnt of."""
    kept = (document.labels != IGNORE) | (document.ids < rows.start) | (document.ids >= rows.stop)
    return Rendered(document.ids[kept], document.labels[kept], document.modality[kept])
