"""Subwords by the SentencePiece library (Kudo and Richardson 2018, arXiv:1808.06226): its BPE and its Unigram.

The text is cut as for all kinds (`pretokens.py`), and SentencePiece is told of the cuts, so that the segmentation of
the `tokenizer.json` is that of its model word by word. Nothing is normalised, and pieces hold real spaces.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unimodal.text.pretokens import make_splitter, make_word_pattern
from unimodal.text.tokenizer import TokenizerData, build_fast_tokenizer
from unimodal.text.trainers.settings import NUM_BYTES, TrainingSettings, check_num_rows
from unimodal.text.trainers.subwords import make_unigram

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_SPACE = "\u2581"  # SentencePiece's stand-in for a space
_CUT = "\x1f"  # between words; a unit separator is in no text that is read
_WORDS_A_LINE = 64


def train_sentencepiece_bpe(words: Sequence[str], settings: TrainingSettings) -> TokenizerData:
    """words: the text, cut where no piece may cross."""
    settings.refuse(byte_fallback="this conversion keeps SentencePiece's byte rows")
    processor = train_model(words, settings, "bpe", settings.num_rows + 1)
    return build_fast_tokenizer(processor, make_splitter(make_word_pattern(settings.digits)))


def train_sentencepiece_unigram(words: Sequence[str], settings: TrainingSettings) -> TokenizerData:
    """words: the text, cut where no piece may cross."""
    processor = train_model(words, settings, "unigram", settings.num_rows)
    first = 1 + (NUM_BYTES if settings.byte_fallback else 0)
    scores = [
        (processor.id_to_piece(row).replace(_SPACE, " "), processor.get_score(row))
        for row in range(first, processor.get_piece_size())
    ]
    check_num_rows(len(scores) + first, settings)
    return make_unigram(scores, settings.byte_fallback, make_splitter(make_word_pattern(settings.digits)))


def train_model(words: Sequence[str], settings: TrainingSettings, kind: str, size: int) -> SentencePieceProcessor:
    """SentencePiece's own model of `size` pieces, with its unknown row. Raises ValueError where the text is too little.

    A word that holds U+2581 or the unit separator teaches nothing: SentencePiece would read them as spaces and cuts.
    """
    import sentencepiece

    def join_words() -> Iterator[str]:
        known = [word for word in words if _SPACE not in word and _CUT not in word and word.strip()]
        for start in range(0, len(known), _WORDS_A_LINE):
            yield _CUT.join(known[start : start + _WORDS_A_LINE])

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=join_words(),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            byte_fallback=settings.byte_fallback,
            character_coverage=0.9995,
            required_chars="".join(chr(code) for code in range(33, 127)),
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=settings.digits == "single",
            pretokenization_delimiter=_CUT,
            max_sentencepiece_length=settings.max_length or 16,
            max_sentence_length=1 << 30,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ValueError(
            f"cannot train {size} pieces on this text: {reason}; give more text or a smaller size"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
