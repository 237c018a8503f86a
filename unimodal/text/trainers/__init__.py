"""Text tokenizers trained on a corpus, by kind, and the folder that each becomes.

`AutoTokenizer` opens the folder, and so does `TextTokenizer`: `tokenizer.json`, `tokenizer_config.json`, and
`training.json` with the settings and the hash of the corpus. No kind but `wordpiece` and those without byte fallback
has unknown text: `decode(encode(x)) == x`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from unimodal.files import quote_path, write_json, write_text_atomically
from unimodal.text.corpora import hash_lines
from unimodal.text.pretokens import cut, make_word_pattern
from unimodal.text.tokenizer import CONFIG_FILE, TOKENIZER_FILE, TokenizerData
from unimodal.text.trainers.less_is_better import train_less_is_better
from unimodal.text.trainers.plain import train_bytes, train_characters
from unimodal.text.trainers.segmenters import cut_segments, load_segmenter
from unimodal.text.trainers.sentence_pieces import train_sentencepiece_bpe, train_sentencepiece_unigram
from unimodal.text.trainers.settings import TrainingSettings
from unimodal.text.trainers.subwords import train_bpe, train_unigram, train_wordpiece
from unimodal.text.trainers.superwords import train_superwords

TRAINING_FILE = "training.json"

Trainer = Callable[[Sequence[str], TrainingSettings], TokenizerData]

#: kind → what trains it, on text that is cut into words
TRAINERS: dict[str, Trainer] = {
    "bpe": train_bpe,
    "unigram": train_unigram,
    "wordpiece": train_wordpiece,
    "sentencepiece-bpe": train_sentencepiece_bpe,
    "sentencepiece-unigram": train_sentencepiece_unigram,
    "characters": train_characters,
    "bytes": train_bytes,
}
#: kind → what trains it, on whole lines
LINE_TRAINERS: dict[str, Trainer] = {"less-is-better": train_less_is_better}
KINDS = (*TRAINERS, *LINE_TRAINERS)


def train(lines: Sequence[str], settings: TrainingSettings) -> TokenizerData:
    """The `tokenizer.json` of a tokenizer trained on lines of text.

    Raises ValueError for settings that do not fit each other, and for text that does not give so many rows.
    """
    settings.check()
    if settings.kind not in KINDS:
        raise ValueError(f"kind {settings.kind!r} is unknown; choose {', '.join(KINDS)}")
    if settings.kind != "less-is-better":
        settings.refuse(seed="nothing is drawn at random")
    ended = [line + "\n" for line in lines]
    if settings.superwords and settings.kind != "bpe":
        raise ValueError(f"superwords are learned by a second stage of bpe, not of {settings.kind}")
    if settings.superwords or settings.kind in LINE_TRAINERS:
        if settings.segmenter is not None:
            raise ValueError("a segmenter has no say where pieces cross spaces; leave one of the two out")
        return (LINE_TRAINERS.get(settings.kind) or train_superwords)(ended, settings)
    words = cut(make_word_pattern(settings.digits), ended)
    if settings.segmenter is not None:
        words = cut_segments(words, load_segmenter(settings.segmenter), settings.segmenter)
    return TRAINERS[settings.kind](list(words), settings)


def check_target(folder: Path) -> None:
    """Raises ValueError for a folder to write that holds something already, or that cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{quote_path(folder)} is there already; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {quote_path(folder.parent)} to write {folder.name} in; create it first")


def save(data: TokenizerData, folder: str | Path, settings: TrainingSettings, lines: Sequence[str]) -> None:
    """Writes the folder of a trained tokenizer."""
    folder = Path(folder)
    check_target(folder)
    write_text_atomically(folder / TOKENIZER_FILE, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_text_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    corpus = {"num_lines": len(lines), "num_bytes": sum(len(line.encode()) for line in lines)}
    described = {**settings.describe(), "corpus": {**corpus, "sha256": hash_lines(lines)}}
    write_json(folder / TRAINING_FILE, described)
