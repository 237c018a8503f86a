"""What tokens spell, as rows of another tokenizer and as text."""

from __future__ import annotations

from unimodal.text.reports.opened import OpenedTokenizer


def decompose(tokenizer: OpenedTokenizer, piece: bytes) -> list[int]:
    """Bytes as rows of a tokenizer: as it cuts them, or where it would add something, such as a space before every
    text, the longest first. Bytes without a row are left out."""
    spelled = tokenizer.spelled
    try:
        ids = tokenizer.encode(piece.decode())
    except UnicodeDecodeError:
        ids = []
    if ids and b"".join(spelled.get(row, b"") for row in ids) == piece:
        return ids
    by_bytes: dict[bytes, int] = {}
    for row in sorted(spelled):
        by_bytes.setdefault(spelled[row], row)
    found, start = [], 0
    while start < len(piece):
        end = next((end for end in range(len(piece), start, -1) if piece[start:end] in by_bytes), None)
        if end is not None:
            found.append(by_bytes[piece[start:end]])
        start = start + 1 if end is None else end
    return found


def spell_text(piece: bytes) -> str:
    """The bytes of a token as text; those that are no UTF-8 are U+FFFD."""
    return piece.decode("utf-8", "replace")
