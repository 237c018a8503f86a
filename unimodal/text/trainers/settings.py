"""What a text tokenizer is trained by, and what a trainer makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from unimodal.text.pretokens import DIGIT_RULES, DigitRule

NUM_BYTES = 256

#: word → its segments, which joined are the word
Segmenter = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class TrainingSettings:
    """kind: a name of `TRAINERS`. size: rows of the vocabulary; None only for characters and bytes.

    digits: how numbers are cut (`pretokens.py`). superwords: the share of the rows that is learned across spaces.
    segmenter: `module:function`, which cuts words before pieces are learned. max_length: the longest piece, in
    characters (in bytes for `bpe`). byte_fallback: whether a character without a row is spelled by its bytes; else it
    becomes the unknown row. seed: only for `less-is-better`, which draws at random.
    """

    kind: str
    size: int | None = None
    digits: DigitRule = "free"
    superwords: float = 0.0
    segmenter: str | None = None
    max_length: int | None = None
    byte_fallback: bool = True
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.digits not in DIGIT_RULES:
            raise ValueError(f"digits {self.digits!r} is no rule; choose {', '.join(DIGIT_RULES)}")
        if self.size is not None and self.size < 2:
            raise ValueError(f"a vocabulary of {self.size} rows says nothing; give more")
        if not 0 <= self.superwords < 1:
            raise ValueError(f"superwords {self.superwords:g} is the share of the rows across spaces; give 0 to 0.99")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length {self.max_length}: a piece has at least one character")

    def describe(self) -> dict[str, object]:
        return asdict(self)

    def refuse(self, **ignored: str) -> None:
        """Raises ValueError for a setting that differs from its default though this kind has no use for it.

        ignored: name of the setting → why.
        """
        for name, why in ignored.items():
            if getattr(self, name) != getattr(TrainingSettings(self.kind), name):
                raise ValueError(f"{self.kind} takes no {name.replace('_', ' ')}: {why}")

    @property
    def num_rows(self) -> int:
        if self.size is None:
            raise ValueError(f"{self.kind} needs the size of the vocabulary")
        return self.size


def check_num_rows(found: int, settings: TrainingSettings) -> None:
    """Raises ValueError where the text gave fewer rows than were asked for."""
    if found < settings.num_rows:
        raise ValueError(f"this text gives only {found} rows of {settings.num_rows}; give more text or a smaller size")


def spell_byte(value: int) -> str:
    """The piece that stands for a byte where characters without a row are spelled by their bytes."""
    return f"<0x{value:02X}>"
