"""Text ⇄ ids: a wrapper of any Hugging Face fast tokenizer, and a trainer of our own.

`TextTokenizer` reads the `tokenizer.json` of a folder and keeps its model, without the added tokens. So no text, not
even one that spells `<|image_0003|>` or `<|user|>`, ever becomes a control, media or special row: what a person types
is encoded as plain text, and only `Template` places control rows, as integers.

`train_text_tokenizer` trains a SentencePiece BPE with byte fallback (Kudo and Richardson 2018, arXiv:1808.06226;
Sennrich et al. 2016, arXiv:1508.07909) and writes it as a Hugging Face fast tokenizer. Nothing is normalised, and the
pieces hold real spaces instead of SentencePiece's `▁`, so that `decode(encode(x)) == x` for every string.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tokenizers import Tokenizer

from unimodal.files import write_text_atomically
from unimodal.vocabulary import CONTROLS

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_SPACE = "\u2581"  # SentencePiece's stand-in for a space


class AddedToken(TypedDict):
    """A token of `tokenizer.json` beside its model's pieces."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class TokenizerModel(TypedDict, total=False):
    """The model of `tokenizer.json`; here only what is read of it or written."""

    type: str
    dropout: float | None
    unk_token: str | None
    unk_id: int  # of Unigram
    continuing_subword_prefix: str | None
    max_input_chars_per_word: int  # of WordPiece
    end_of_word_suffix: str | None
    fuse_unk: bool
    byte_fallback: bool
    ignore_merges: bool
    vocab: dict[str, int] | list[tuple[str, float]]  # a list of (piece, score) for Unigram
    merges: list[list[str]]


class TokenizerData(TypedDict, total=False):
    """The content of a `tokenizer.json`. Steps other than the model are only passed on."""

    version: str
    truncation: object
    padding: object
    added_tokens: list[AddedToken]
    normalizer: object
    pre_tokenizer: object
    post_processor: object
    decoder: object
    model: TokenizerModel


class TextTokenizer:
    """Plain text ⇄ text rows. It has `size` rows; plain text never uses those in `reserved_ids`."""

    def __init__(self, data: TokenizerData, never: Iterable[int] = ()) -> None:
        """data: the content of a `tokenizer.json`. never: rows of its model that are no text, such as codes."""
        added = data.get("added_tokens", [])
        ours = [token["id"] for token in added if token["content"] == CONTROLS[0]]
        base = [token for token in added if not ours or token["id"] < ours[0]]
        # Runs of spaces are ordinary text, even where a base tokenizer lists them as added tokens.
        plain = [token for token in base if not token["special"] and token["content"].isspace()]
        dropped = {token["id"]: token["content"] for token in base if token not in plain}
        if never:
            vocab = data["model"]["vocab"]
            rows = vocab.items() if isinstance(vocab, dict) else ((piece, row) for row, (piece, _) in enumerate(vocab))
            pieces = {row: piece for piece, row in rows}
            dropped |= {row: pieces[row] for row in never if row in pieces and row not in dropped}
        self._data: TokenizerData = {
            **data,
            "added_tokens": plain,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._tokenizer = Tokenizer.from_str(json.dumps(self._data))
        self._tokenizer.encode_special_tokens = True
        self.base_added_tokens = base
        model_ids = [*self._tokenizer.get_vocab().values(), *(token["id"] for token in base)]
        self.size = ours[0] if ours else max(model_ids) + 1
        used = set(self._tokenizer.get_vocab().values())
        unknown = data["model"].get("unk_token")
        unknown_row = None if unknown is None else self._tokenizer.token_to_id(unknown)
        reserved = {row for row in range(self.size) if row not in used} | set(dropped)
        if data["model"].get("byte_fallback") and unknown_row is not None:
            reserved.add(unknown_row)  # every byte has a piece: never reached
        self.reserved_ids = tuple(sorted(reserved))
        self._dropped = dropped
        self._forbidden = frozenset(dropped)

    @classmethod
    def load(cls, folder: str | Path, never: Iterable[int] = ()) -> TextTokenizer:
        """Reads the folder of a text tokenizer or of a model, without control and media tokens and without `never`."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a folder with the tokenizer.json of a fast tokenizer")
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")), never)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise ValueError(f"{path}: not a readable tokenizer.json ({error})") from None

    @property
    def sha256(self) -> str:
        """The hash of all that decides an encoding; the same from a text tokenizer's folder and from a model's."""
        keys = ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
        data: Mapping[str, object] = self._data
        text = json.dumps({key: data.get(key) for key in keys}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def data(self) -> TokenizerData:
        """The `tokenizer.json` of the text rows alone, with the base's own special tokens."""
        return {**self._data, "added_tokens": list(self.base_added_tokens)}

    def encode(self, text: str) -> list[int]:
        """The text rows of a text; whatever it spells, no other rows."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):
            ids = self._encode_around(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            encoding.ids if self._forbidden.isdisjoint(encoding.ids) else self._encode_around(text)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The text rows of a text, and the characters [start, end) that each of them stands for."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._forbidden.isdisjoint(encoding.ids):
            return encoding.ids, encoding.offsets
        # spelled letter by letter around a special string: letters are found again by what they decode to
        ids, spans, end, letters = self._encode_around(text), [], 0, self.stream()
        for row in ids:
            start, end = end, end + len(letters.push(row))
            spans.append((start, end))
        return ids, spans

    def decode(self, ids: Iterable[int]) -> str:
        """The text of text rows; ValueError on any other row. Broken UTF-8 gives U+FFFD."""
        ids = [int(row) for row in ids]
        outside = [row for row in ids if not 0 <= row < self.size]
        if outside:
            raise ValueError(
                f"row {outside[0]} is not one of the {self.size} text rows; split media and controls off first"
            )
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def stream(self) -> TextStream:
        """A decoder for rows that arrive one by one."""
        return TextStream(self)

    def _encode_around(self, text: str) -> list[int]:
        """Encodes a text with special strings, which some models hold as pieces, cut between their characters."""
        for content in sorted(self._dropped.values(), key=len, reverse=True):
            if content in text:
                left, right = text.split(content, 1)
                middle = [row for character in content for row in self._encode_piece(character)]
                return self.encode(left) + middle + self.encode(right)
        raise ValueError(f"the tokenizer writes a special token for plain text: {text[:40]!r}")

    def _encode_piece(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class TextStream:
    """Decodes rows that arrive one by one: `push` returns the text that is certain by now, without unfinished
    characters.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def push(self, row: int) -> str:
        self._ids.append(row)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new, self._given = text[self._given :], len(text)
        last = self._tokenizer.decode([row])
        if len(self._ids) >= 64 and "\ufffd" not in last:  # start again here: a long answer costs linear time
            self._ids, self._given = [row], len(last)
        return new

    def finish(self) -> str:
        text = self._tokenizer.decode(self._ids)
        new, self._given = text[self._given :], len(text)
        return new


def train_text_tokenizer(
    texts: Iterable[str],
    size: int,
    folder: str | Path,
    lowercase: bool = True,
    num_threads: int = 2,
) -> TextTokenizer:
    """Trains `size` pieces, writes `tokenizer.json` and `tokenizer_config.json` to `folder`, returns the tokenizer.

    With `lowercase` the training text is lower-cased, so that no pieces are spent on `The` beside `the`; capitals are
    then single letters. Encoding never changes the case of anything. The result depends on the texts alone.
    """
    import sentencepiece

    def read_lines() -> Iterator[str]:
        for text in texts:
            for line in (text.lower() if lowercase else text).splitlines():
                if line.strip():
                    yield " " + line.strip()  # as Template writes it: a space before the first word

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=read_lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=size + 1,  # one more: SentencePiece insists on <unk>, which byte fallback makes useless
            byte_fallback=True,
            character_coverage=0.9995,
            required_chars="".join(chr(code) for code in range(33, 127)),
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            max_sentence_length=1 << 16,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ValueError(
            f"cannot train {size} pieces on this text: {reason}; give more text or a smaller size"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    data = build_fast_tokenizer(processor)
    folder = Path(folder)
    write_text_atomically(folder / TOKENIZER_FILE, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_text_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    return TextTokenizer(data)


#: every space begins a new word: no piece of the model crosses one
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithNext", "invert": False}


def build_fast_tokenizer(
    processor: SentencePieceProcessor, pre_tokenizer: Mapping[str, object] = _SPLIT_AT_SPACES
) -> TokenizerData:
    """The `tokenizer.json` of a SentencePiece BPE model with byte fallback: its pieces in the same order, without
    `<unk>`. pre_tokenizer: the step that cuts text where no piece of the model crosses.
    """
    vocabulary: dict[str, int] = {}
    rank: dict[str, float] = {}
    for index in range(1, processor.get_piece_size()):
        piece = processor.id_to_piece(index)
        if not processor.is_byte(index):
            piece = piece.replace(_SPACE, " ")
            rank[piece] = -processor.get_score(index)
        vocabulary[piece] = index - 1
    # SentencePiece joins the pair whose joined piece has the best score; the tokenizers library joins the pair that
    # stands first in the list of merges. All pairs that make a piece, ordered by its score, give the same result.
    merges = [
        (order, len(piece[:cut]), [piece[:cut], piece[cut:]])
        for piece, order in rank.items()
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    merges.sort(key=lambda merge: (merge[0], merge[1]))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": dict(pre_tokenizer),
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [pair for _, _, pair in merges],
        },
    }
