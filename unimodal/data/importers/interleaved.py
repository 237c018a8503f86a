"""OBELICS: a web page as `texts` and `images` of the same length, one of the two at every place.

{"images": [null, {"bytes": …}, null], "texts": ["An apple:", null, "It is red."], "metadata": "…"}

The page is learnt whole, its words and its pictures. Other media have columns of their own, `audios` and `videos`.
"""

from __future__ import annotations

from unimodal.data.importers.columns import MessagePart, list_media_columns, read_json_list, read_text
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row


def import_interleaved(row: Row, folder: MediaFolder) -> Conversation:
    """Raises ValueError for lists of different lengths, and for a place with no part or with several."""
    texts = _read_list(row, "texts")
    media = {modality: _read_list(row, many) for modality, (many, _) in list_media_columns().items() if row.get(many)}
    for modality, values in media.items():
        if len(values) != len(texts):
            raise ValueError(f"there are {len(texts)} texts but {len(values)} places of {modality}; give as many")
    parts: list[MessagePart] = []
    for place, text in enumerate(texts):
        here = [(modality, values[place]) for modality, values in media.items() if values[place] is not None]
        if len(here) + (text is not None) != 1:
            raise ValueError(
                f"place {place + 1} of texts and media has {len(here) + (text is not None)} parts; give one and null "
                "for the others"
            )
        if text is not None:
            parts.append(TextPart(text=read_text(text, "a text")))
        else:
            modality, value = here[0]
            parts.append(folder.make_part(value, modality))
    return parse_conversation([{"role": "assistant", "content": parts}])


def _read_list(row: Row, column: str) -> list[object]:
    value = read_json_list(row.get(column), column)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{column} must be a list, this one is {type(value).__name__}")
    return list(value)
