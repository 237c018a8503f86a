"""The special tokens of a base under another text tokenizer: kept by name, so that its chat format stays what it was.

A token that both tokenizers have under one name is one. Those that the new tokenizer lacks get the rows behind its own.
What the base's tokenizer does to every text (a start token before it) is done on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from tokenizers import Tokenizer

from unimodal.text.tokenizer import AddedToken, TokenizerData

#: what a folder's tokenizer_config.json keeps under another tokenizer: names of tokens and the format, no rows
KEPT_SETTINGS = (
    "bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "padding_side", "truncation_side",
    "chat_template", "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class SpecialTokens:
    """The `tokenizer.json` with the base's special tokens, and where each of the base's is now."""

    data: TokenizerData
    rows: dict[int, int]  # row of the base → row here
    added: list[int]  # rows of the base that stand behind the new tokenizer's own, in order


def keep_special_tokens(
    base: TokenizerData, new: TokenizerData, size: int, needed: Collection[int] = ()
) -> SpecialTokens:
    """Put the special tokens of a base's tokenizer into another of `size` rows.

    needed: further rows of the base that its config names. Raises ValueError for a base whose tokenizer does to a text
    what is not known here.
    """
    tokens = {token["id"]: token for token in base["added_tokens"] if token["special"]}
    vocab = base["model"]["vocab"]
    rows = vocab.items() if isinstance(vocab, dict) else ((piece, row) for row, (piece, _) in enumerate(vocab))
    pieces = {row: piece for piece, row in rows}
    for row in needed:
        if row not in tokens and row in pieces:
            tokens[row] = _make_token(row, pieces[row])
    own = {token["content"]: token["id"] for token in new["added_tokens"]}
    theirs = new["model"]["vocab"]
    named = theirs if isinstance(theirs, dict) else {piece: row for row, (piece, _) in enumerate(theirs)}
    listed = list(new["added_tokens"])
    found: dict[int, int] = {}
    added: list[int] = []
    for row, token in sorted(tokens.items()):
        content = token["content"]
        if content in own:
            found[row] = own[content]
            continue
        at = named.get(content, size + len(added))
        if content not in named:
            added.append(row)
        found[row] = at
        listed.append({**token, "id": at})
    by_content = {tokens[row]["content"]: at for row, at in found.items()}
    data: TokenizerData = {
        **new,
        "added_tokens": sorted(listed, key=lambda token: token["id"]),
        "post_processor": move_post_processor(base.get("post_processor"), by_content),
    }
    loaded = Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    for token in data["added_tokens"]:
        if loaded.token_to_id(token["content"]) != token["id"]:
            raise ValueError(
                f"{token['content']} would get row {loaded.token_to_id(token['content'])} instead of {token['id']}: "
                "the new tokenizer has gaps between its rows"
            )
    return SpecialTokens(data, found, added)


def move_post_processor(step: object, rows: Mapping[str, int]) -> object:
    """What a tokenizer puts around every text, with the rows of its tokens by name here."""
    if not isinstance(step, Mapping):
        return None
    kind = step.get("type")
    if kind == "Sequence":
        return {**step, "processors": [move_post_processor(part, rows) for part in step["processors"]]}
    if kind == "ByteLevel":
        return step
    if kind == "TemplateProcessing":
        tokens: Mapping[str, Mapping[str, object]] = step["special_tokens"]
        moved = {
            name: {**token, "ids": [_find_row(rows, content) for content in cast(list[str], token["tokens"])]}
            for name, token in tokens.items()
        }
        return {**step, "special_tokens": moved}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return {**step, **{side: [step[side][0], _find_row(rows, step[side][0])] for side in ("sep", "cls")}}
    raise ValueError(f"the base's tokenizer ends every text by {kind!r}, which is not known here")


def _find_row(rows: Mapping[str, int], content: str) -> int:
    if content not in rows:
        raise ValueError(f"the base's tokenizer puts {content!r} around a text, but it is no special token of its own")
    return rows[content]


def _make_token(row: int, content: str) -> AddedToken:
    return {
        "id": row, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip
