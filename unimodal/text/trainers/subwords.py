"""Subwords by the tokenizers library: byte-level BPE, Unigram and WordPiece.

`bpe` is byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as Radford et al. 2019): every byte has a row, so
nothing is unknown. With `max_length` it is what KL3M calls character-level tokenizers: pieces of a few
characters, whose cuts stay the same when a letter is wrong. With `superwords` a second stage goes on over spaces
(`superwords.py`).

`unigram` (Kudo 2018, arXiv:1804.10959) holds characters, and spells those without a row by their bytes. `wordpiece`
(Schuster and Nakajima 2012; Devlin et al. 2018, arXiv:1810.04805) takes the longest piece that fits, again and again.
Two things differ from BERT's, so that every string survives: a space stays with the word behind it, and the mark of a
piece inside a word is U+2581 twice, which no byte is written as, instead of "##", which a text may hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from unimodal.text.pretokens import make_splitter, make_word_pattern
from unimodal.text.tokenizer import TokenizerData, TokenizerModel
from unimodal.text.trainers.settings import NUM_BYTES, TrainingSettings, check_num_rows, spell_byte

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
UNKNOWN = "<unk>"
CONTINUATION = "\u2581\u2581"  # begins the pieces of WordPiece that do not begin a word
_ASCII = [chr(code) for code in range(32, 127)]
#: the letters of `<0x0A>`: each has a row, so that a text that spells a byte is not read as that byte
SPELLING_LETTERS = frozenset("<>x0123456789ABCDEF")
_NEVER = -1e6  # the score of pieces that no text is to be cut into


def make_data(
    model: TokenizerModel, pre_tokenizer: dict[str, object] | None, decoder: dict[str, object]
) -> TokenizerData:
    """A whole `tokenizer.json` without added tokens and without a normalizer."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def make_sequence(*steps: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def make_byte_decoder() -> dict[str, object]:
    """Joins pieces, and bytes that are spelled as `<0x0A>`."""
    return {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}


def read_model(tokenizer: Tokenizer) -> TokenizerModel:
    data: TokenizerData = json.loads(tokenizer.to_str())
    return data["model"]


def learn_bpe(
    pieces: Iterable[str],
    steps: pre_tokenizers.PreTokenizer,
    size: int,
    alphabet: list[str],
    max_length: int | None = None,
) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of byte-pair encoding over what `steps` cut the pieces into."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = steps
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=None if max_length is None else max_length + 1,  # the library's pieces stay below it
    )
    tokenizer.train_from_iterator(pieces, trainer)
    model = read_model(tokenizer)
    vocab = model["vocab"]
    assert isinstance(vocab, dict)
    return vocab, [list(pair) for pair in model["merges"]]


def make_byte_bpe(vocab: dict[str, int], merges: list[list[str]], pattern: str) -> TokenizerData:
    """The `tokenizer.json` of a byte-level BPE."""
    return make_data(
        {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None, "byte_fallback": False},
        make_sequence(make_splitter(pattern), dict(BYTE_LEVEL)),
        dict(BYTE_LEVEL),
    )


def train_bpe(words: Iterable[str], settings: TrainingSettings) -> TokenizerData:
    """words: the text, cut where no piece may cross, as `cut` gives it."""
    settings.refuse(byte_fallback="every byte has a row of its own, so there is nothing to fall back from")
    _check_room(settings, NUM_BYTES)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    steps = _split_to_bytes(make_word_pattern(settings.digits))
    vocab, merges = learn_bpe(words, steps, settings.num_rows, alphabet, settings.max_length)
    check_num_rows(len(vocab), settings)
    return make_byte_bpe(vocab, merges, make_word_pattern(settings.digits))


def train_unigram(words: Iterable[str], settings: TrainingSettings) -> TokenizerData:
    """words: the text, cut where no piece may cross."""
    spent = NUM_BYTES if settings.byte_fallback else 0
    _check_room(settings, spent + len(_ASCII))
    pattern = make_word_pattern(settings.digits)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    trainer = trainers.UnigramTrainer(
        vocab_size=settings.num_rows - spent,
        show_progress=False,
        special_tokens=[UNKNOWN],
        unk_token=UNKNOWN,
        initial_alphabet=_ASCII,
        max_piece_length=settings.max_length or 16,
    )
    tokenizer.train_from_iterator(words, trainer)
    scores = [(piece, score) for piece, score in _read_scores(read_model(tokenizer)) if piece != UNKNOWN]
    check_num_rows(len(scores) + 1 + spent, settings)
    return make_unigram(scores[: settings.num_rows - 1 - spent], settings.byte_fallback, make_splitter(pattern))


def make_unigram(
    scores: list[tuple[str, float]], byte_fallback: bool, pre_tokenizer: dict[str, object] | None
) -> TokenizerData:
    """The `tokenizer.json` of pieces with scores: the unknown row, 256 bytes if asked for, then the pieces.

    A text that spells `<0x41>` is cut into characters, because the row of that byte has no score to win by.
    """
    assert not byte_fallback or {piece for piece, _ in scores} >= SPELLING_LETTERS
    spare = [UNKNOWN, *(spell_byte(value) for value in range(NUM_BYTES if byte_fallback else 0))]
    vocab = [(piece, _NEVER) for piece in spare] + [pair for pair in scores if pair[0] not in set(spare)]
    return make_data(
        {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": byte_fallback},
        pre_tokenizer,
        make_byte_decoder(),
    )


def train_wordpiece(words: Iterable[str], settings: TrainingSettings) -> TokenizerData:
    """words: the text, cut where no piece may cross. Without byte fallback, unseen characters are unknown."""
    pattern = make_word_pattern(settings.digits)
    if settings.byte_fallback:
        steps = _split_to_bytes(pattern)
        base = sorted(pre_tokenizers.ByteLevel.alphabet())
        kept = [*base, *(CONTINUATION + letter for letter in base)]
    else:
        steps = pre_tokenizers.Split(Regex(pattern), "isolated")
        kept = [UNKNOWN]
    _check_room(settings, len(kept))
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = steps
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.num_rows, show_progress=False, continuing_subword_prefix=CONTINUATION
    )
    tokenizer.train_from_iterator(words, trainer)
    vocab = read_model(tokenizer)["vocab"]
    assert isinstance(vocab, dict)
    known = set(kept)
    learned = [piece for piece in sorted(vocab, key=lambda piece: vocab[piece]) if piece not in known]
    if settings.max_length is not None:
        learned = [piece for piece in learned if len(piece.removeprefix(CONTINUATION)) <= settings.max_length]
    pieces = [*kept, *learned][: settings.num_rows]
    check_num_rows(len(pieces), settings)
    clean: dict[str, object] = {"type": "Replace", "pattern": {"String": CONTINUATION}, "content": ""}
    last: dict[str, object] = dict(BYTE_LEVEL) if settings.byte_fallback else {"type": "Fuse"}
    splitter = make_splitter(pattern)
    return make_data(
        {
            "type": "WordPiece",
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": CONTINUATION,
            "max_input_chars_per_word": 1_000_000,
            "vocab": {piece: row for row, piece in enumerate(pieces)},
        },
        make_sequence(splitter, dict(BYTE_LEVEL)) if settings.byte_fallback else splitter,
        {"type": "Sequence", "decoders": [clean, last]},
    )


def _split_to_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cuts by a pattern and writes every byte of the parts as the character that GPT-2 writes it as."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )


def _read_scores(model: TokenizerModel) -> list[tuple[str, float]]:
    vocab = model["vocab"]
    assert isinstance(vocab, list)
    return [(piece, float(score)) for piece, score in vocab]


def _check_room(settings: TrainingSettings, spent: int) -> None:
    if settings.num_rows <= spent:
        raise ValueError(f"{spent} of the rows are taken before a piece is learned; give more than {settings.num_rows}")
