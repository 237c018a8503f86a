"""Tokenizers without learned pieces: every byte or every character is a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from unimodal.text.tokenizer import TokenizerData
from unimodal.text.trainers.settings import NUM_BYTES, TrainingSettings, check_num_rows, spell_byte
from unimodal.text.trainers.subwords import BYTE_LEVEL, UNKNOWN, make_byte_decoder, make_data


def list_byte_letters() -> list[str]:
    """The character that byte-level tokenizers write each byte as, by the byte's value (GPT-2's table).

    Bytes that print stand for themselves; the others get the characters from U+0100 on, in their order.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(value if value in printed else next(others)) for value in range(NUM_BYTES)]


def train_bytes(words: Iterable[str], settings: TrainingSettings) -> TokenizerData:
    """Row n is the byte n. Nothing is learned from the words."""
    why = "bytes are all there is"
    settings.refuse(digits=why, segmenter=why, max_length=why, byte_fallback=why)
    if settings.size not in (None, NUM_BYTES):
        raise ValueError(f"there are {NUM_BYTES} bytes, not {settings.size}; leave the size out")
    vocab = {letter: value for value, letter in enumerate(list_byte_letters())}
    return make_data(
        {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": None, "byte_fallback": False},
        dict(BYTE_LEVEL),
        dict(BYTE_LEVEL),
    )


def train_characters(words: Iterable[str], settings: TrainingSettings) -> TokenizerData:
    """The most frequent characters, after 256 bytes that spell the others, or after one unknown row.

    Equally frequent characters stand in the order of their code points. Without a size, all characters get a row.
    """
    why = "every character is a piece of its own"
    settings.refuse(digits=why, segmenter=why, max_length=why)
    counts = Counter(character for word in words for character in word)
    spare = [spell_byte(value) for value in range(NUM_BYTES)] if settings.byte_fallback else [UNKNOWN]
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    if settings.size is not None:
        check_num_rows(len(spare) + len(characters), settings)
        if settings.size <= len(spare):
            raise ValueError(f"{len(spare)} rows are taken before a character; give more than {settings.size}")
        characters = characters[: settings.size - len(spare)]
    vocab = {piece: row for row, piece in enumerate([*spare, *characters])}
    unknown = None if settings.byte_fallback else UNKNOWN
    return make_data(
        {
            "type": "BPE",
            "vocab": vocab,
            "merges": [],
            "unk_token": unknown,
            "fuse_unk": False,
            "byte_fallback": settings.byte_fallback,
        },
        None,
        make_byte_decoder(),
    )
