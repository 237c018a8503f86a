"""JSON as rows hold it: a key that is given twice is an error, since one of its values would be lost."""

from __future__ import annotations

import json
from collections import Counter


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        [(twice, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is given {count} times in one object; keep one of them")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)


def parse_json(text: str | bytes) -> object:
    """The value of a JSON text. Raises ValueError for a key given twice, JSONDecodeError for what is no JSON."""
    return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
