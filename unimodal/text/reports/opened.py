"""Any text tokenizer, opened to be measured: what each row spells, and where in a text each token stands.

A folder or file with a `tokenizer.json` is read by `TextTokenizer`, so that of a model of ours only the text rows are
measured; any other folder is opened by `AutoTokenizer` and must be a fast tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unimodal.files import describe_error, is_hub_id, quote_path, suggest_path
from unimodal.text.tokenizer import TOKENIZER_FILE, TextTokenizer, TokenizerData
from unimodal.text.trainers.plain import list_byte_letters

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class Encoded:
    """A text as tokens: ids, and the characters [start, end) of the text that each stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]


class OpenedTokenizer:
    """A tokenizer with a name. Special tokens are never written: all text is plain text."""

    def __init__(self, data: TokenizerData, name: str) -> None:
        self.name = name
        self.text = TextTokenizer(data)
        self.data = self.text.data

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Row → the piece as `tokenizer.json` writes it; rows of the model and of added white space, no specials."""
        vocab = self.data["model"]["vocab"]
        rows = vocab.items() if isinstance(vocab, dict) else ((piece, row) for row, (piece, _) in enumerate(vocab))
        specials = {token["id"] for token in self.data["added_tokens"]}
        found = {row: piece for piece, row in rows if row not in specials}
        spaces = [token for token in self.data["added_tokens"] if not token["special"] and token["content"].isspace()]
        return found | {token["id"]: token["content"] for token in spaces}

    @cached_property
    def unknown_id(self) -> int | None:
        """The row of text that the tokenizer has no row for; None where it has none."""
        model = self.data["model"]
        if model["type"] == "Unigram":
            return model.get("unk_id")
        unknown = model.get("unk_token")
        vocab = model["vocab"]
        assert isinstance(vocab, dict)
        return None if unknown is None else vocab.get(unknown)

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        """Row → the bytes that it stands for. Raises ValueError for a decoder that is not known here."""
        spell = _Speller(self.data)
        return {row: spell(piece) for row, piece in self.pieces.items() if row != self.unknown_id}

    @cached_property
    def written(self) -> dict[int, bytes]:
        """Of `spelled`, the rows that plain text is written with: none that is reserved."""
        reserved = set(self.text.reserved_ids)
        return {row: piece for row, piece in self.spelled.items() if row not in reserved}

    @cached_property
    def byte_rows(self) -> frozenset[int]:
        """The rows that spell characters without a row byte by byte; none where bytes are letters of the pieces."""
        if not self.data["model"].get("byte_fallback"):
            return frozenset()
        return frozenset(row for row, piece in self.pieces.items() if _BYTE_PIECE.fullmatch(piece))

    @property
    def num_rows(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        return self.text.encode(text)

    def locate(self, text: str) -> Encoded:
        return Encoded(*self.text.locate(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.text.decode(ids)


def open_tokenizer(place: str | Path) -> OpenedTokenizer:
    """Opens a folder, a `tokenizer.json` or a name of the Hub. Raises ValueError, in one line, for what is none."""
    path = Path(place).expanduser()
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if file.is_file():
        try:
            data: TokenizerData = json.loads(file.read_text(encoding="utf-8"))
            return OpenedTokenizer(data, str(place))
        except Exception as error:  # of the tokenizers library too, which raises bare Exceptions
            raise ValueError(f"{quote_path(file)} is no readable tokenizer.json ({describe_error(error)})") from None
    if not path.exists() and not is_hub_id(str(place)):
        raise ValueError(f"{quote_path(path)}: no such tokenizer{suggest_path(str(place))}")
    try:
        from transformers import AutoTokenizer

        backend = getattr(AutoTokenizer.from_pretrained(str(place)), "backend_tokenizer", None)
    except Exception as error:  # of any tokenizer's own class
        raise ValueError(f"AutoTokenizer cannot open {quote_path(path)} ({describe_error(error)})") from None
    if backend is None:
        raise ValueError(f"{quote_path(path)} has no fast tokenizer; save it as a tokenizer.json first")
    return OpenedTokenizer(json.loads(backend.to_str()), str(place))


def list_steps(step: object) -> list[Mapping[str, object]]:
    """The steps of a normalizer, pre-tokenizer or decoder, those inside sequences one by one."""
    if not isinstance(step, Mapping):
        return []
    if step.get("type") != "Sequence":
        return [step]
    inner = [part for key in ("normalizers", "pretokenizers", "decoders") for part in _as_list(step.get(key))]
    return [found for part in inner for found in list_steps(part)]


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


class _Speller:
    """Piece → bytes, by the steps of a decoder."""

    def __init__(self, data: TokenizerData) -> None:
        steps = list_steps(data.get("decoder"))
        kinds = {str(step["type"]) for step in steps}
        known = {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Metaspace", "Strip", "WordPiece", "BPEDecoder"}
        if kinds - known:
            raise ValueError(f"the decoder {sorted(kinds - known)[0]} of this tokenizer is not known here")
        self.model = data["model"]
        self.letters: dict[str, int] | None = None
        if "ByteLevel" in kinds:
            self.letters = {letter: value for value, letter in enumerate(list_byte_letters())}
        self.falls_back = "ByteFallback" in kinds
        self.replaced: list[tuple[str, str]] = []
        for step in steps:
            pattern = step.get("pattern")
            if step["type"] == "Replace" and isinstance(pattern, Mapping) and "String" in pattern:
                self.replaced.append((str(pattern["String"]), str(step["content"])))
            elif step["type"] == "Metaspace":
                self.replaced.append((str(step.get("replacement", _SPACE)), " "))
            elif step["type"] == "BPEDecoder":
                self.replaced.append((str(step.get("suffix", "</w>")), " "))
        self.word_mark = next((str(step.get("prefix", "##")) for step in steps if step["type"] == "WordPiece"), None)

    def __call__(self, piece: str) -> bytes:
        if self.falls_back and (found := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        if self.word_mark is not None:  # the decoder of BERT writes a space before every word
            marked = piece.startswith(self.word_mark)
            return (piece.removeprefix(self.word_mark) if marked else " " + piece).encode()
        for old, new in self.replaced:
            piece = piece.replace(old, new)
        if self.letters is not None and all(letter in self.letters for letter in piece):
            return bytes(self.letters[letter] for letter in piece)
        return piece.encode("utf-8", "surrogatepass")
