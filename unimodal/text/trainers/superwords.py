"""Superwords: byte-pair encoding that goes on over spaces.

A second stage drops the cuts at spaces and merges on (Liu et al. 2025, "SuperBPE", arXiv:2503.13423; learning across
words is also what the supertokens of TokenAdapt do, which cuts lines at random lengths instead).
As in SuperBPE the text of the second stage is cut by the merges of the first one over whole lines, exactly as the
finished tokenizer will cut it. Numbers keep their rule, and nothing crosses the end of a line.

SuperBPE bounds a superword to four words; here `max_length` bounds it, in pieces of the first stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, pre_tokenizers

from unimodal.text.pretokens import cut, make_chunk_pattern, make_word_pattern
from unimodal.text.tokenizer import TokenizerData
from unimodal.text.trainers.settings import TrainingSettings, check_num_rows
from unimodal.text.trainers.subwords import learn_bpe, make_byte_bpe, train_bpe

_FIRST_LETTER = 0xF0000  # the private planes have a letter for each piece of the first stage
_NUM_LETTERS = 2 * 0xFFFE
_END = "\n"


def train_superwords(lines: Sequence[str], settings: TrainingSettings) -> TokenizerData:
    """A byte-level BPE whose last `settings.superwords` of its rows were learned across spaces."""
    num_first = round(settings.num_rows * (1 - settings.superwords))
    if num_first > _NUM_LETTERS:
        raise ValueError(
            f"the first stage may have {_NUM_LETTERS} rows, not {num_first}; raise the share of superwords"
        )
    first_settings = TrainingSettings("bpe", num_first, settings.digits)
    first = train_bpe(cut(make_word_pattern(settings.digits), lines), first_settings)
    vocab, merges = first["model"]["vocab"], first["model"]["merges"]
    assert isinstance(vocab, dict)
    pattern = make_chunk_pattern(settings.digits)
    pieces = sorted(vocab, key=lambda piece: vocab[piece])
    letters = [chr(_FIRST_LETTER + row + 2 * (row >= 0xFFFE)) for row in range(num_first)]  # no U+FFFFE, U+FFFFF
    tokenizer = Tokenizer.from_str(json.dumps(make_byte_bpe(vocab, merges, pattern)))

    def spell_chunks() -> Iterator[str]:
        for chunk in cut(pattern, lines):
            yield "".join(letters[row] for row in tokenizer.encode(chunk, add_special_tokens=False).ids) + _END

    steps = pre_tokenizers.CharDelimiterSplit(_END)
    # a few more than are needed: a superword may be spelled like a piece that is there already
    num_asked = settings.num_rows + settings.num_rows // 20 + 8
    _, more = learn_bpe(spell_chunks(), steps, num_asked, letters, settings.max_length)
    spelled = dict(zip(letters, pieces, strict=True))
    grown, wide = dict(vocab), list(merges)
    for pair in more:
        if len(grown) == settings.num_rows:
            break
        left, right = ("".join(spelled[letter] for letter in part) for part in pair)
        grown.setdefault(left + right, len(grown))
        wide.append([left, right])
    check_num_rows(len(grown), settings)
    return make_byte_bpe(grown, wide, pattern)
