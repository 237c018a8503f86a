"""Which rows of two vocabularies mean the same: what a model begins from another with."""

from __future__ import annotations

from unimodal.vocabulary.vocabulary import Vocabulary


def match_rows(ours: Vocabulary, theirs: Vocabulary) -> list[tuple[range, range]]:
    """Pairs of rows, ours and theirs, that mean the same: of the text, of each control, and of each block of one hash.

    Raises ValueError for another text tokenizer.
    """
    if ours.text_sha256 != theirs.text_sha256:
        raise ValueError("the model to begin from has another text tokenizer; drop `initial`")
    pairs = [(range(theirs.text_size), range(theirs.text_size))]
    for control in ours.controls:
        if theirs.has_control(control.name):
            row = theirs.get_control_id(control.name)
            pairs.append((range(control.id, control.id + 1), range(row, row + 1)))
    known = {(block.label, block.sha256): block for block in theirs.blocks}
    for block in ours.blocks:
        same = known.get((block.label, block.sha256))
        if same is not None and same.size == block.size:
            starts = block.start, same.start
            pairs.append((range(starts[0], starts[0] + block.size), range(starts[1], starts[1] + block.size)))
    return pairs
