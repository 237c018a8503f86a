"""Short spoken English: numbers, letters and phonetic words, and texts as they are spelled and said.

What the human clips of Debian's asterisk-core-sounds-en-g722 say is among it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

UNWANTED = re.compile(
    r"\b(sex\w*|slaves?|whores?|rap(e|ed|ist)|kill\w*|murder\w*|nigg\w*|drunk\w*|suicide|naked|nude|jews?|negro\w*|"
    r"prostitut\w*|breasts?|hell|damn\w*|bastard|bitch|ass|shit|piss\w*)\b"
)


def split_words(text: str, separator: str | None = None) -> list[str]:
    """A word list written as one string."""
    return text.split(separator)


DIGITS = split_words("zero one two three four five six seven eight nine")
TEENS = split_words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = split_words("twenty thirty forty fifty sixty seventy eighty ninety")
LETTERS = split_words("a b c d e f g h i j k l m n o p q r s t u v w x y z")
NATO = split_words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec "
    "romeo sierra tango uniform victor whiskey x_ray yankee zulu"
)
DAYS = split_words("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = split_words("january february march april may june july august september october november december")
ORDINALS = dict(
    zip(
        [*map(str, range(1, 21)), "30", "40", "50", "60", "70", "80", "90"],
        split_words(
            "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
            "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth "
            "seventieth eightieth ninetieth"
        ),
        strict=True,
    )
)
BIG = split_words("hundred thousand million billion")
OTHER_SHORT = split_words(
    "today,tomorrow,yesterday,hello,goodbye,yes,no,thank you,please,star,pound,dollars,minus,oh,at,dash,dollar,dot,"
    "equals,plus,slash,space,asterisk,o'clock,niner,a m,p m,exclamation point,question mark,good morning,good night,"
    "how are you,i am fine,what is this,who is there,come here,let's go,i don't know",
    ",",
)


@dataclass(frozen=True)
class Sentence:
    """One sentence, its kind ("example", "emoji", "short") and the split it belongs to for ever."""

    id: int
    text: str
    kind: str
    split: str


def normalise(text: str) -> str:
    """Lower case, letters and apostrophes only, single spaces."""
    text = text.lower().replace("’", "'").replace("-", " ")
    kept = [word.strip("'") for word in re.sub(r"[^a-z' ]", " ", text).split()]
    return " ".join(word for word in kept if word)


def spell_numbers(value: int) -> str:
    """0 … 99 in words."""
    if value < 20:
        return (DIGITS + TEENS)[value]
    tens, ones = divmod(value, 10)
    return TENS[tens - 2] + (f" {DIGITS[ones]}" if ones else "")


def make_short_utterances(rng: random.Random) -> list[str]:
    """Digits, letters, NATO words, numbers, dates: everything the human test clips say, and sequences of it."""
    nato = [word.replace("_", " ") for word in NATO]
    texts = [*map(spell_numbers, range(100)), *LETTERS, "zed", *nato, *DAYS, *MONTHS, *ORDINALS.values(), *BIG]
    texts += OTHER_SHORT
    for pool, count in ((DIGITS, 150), (LETTERS, 80), (nato, 80), (DAYS + MONTHS, 40)):
        texts += [" ".join(rng.choices(pool, k=rng.randint(2, 4))) for _ in range(count)]
    texts += [f"{rng.choice(DIGITS[1:])} hundred {spell_numbers(rng.randrange(1, 100))}" for _ in range(60)]
    texts += [f"{rng.choice(MONTHS)} {rng.choice(list(ORDINALS.values())[:20])}" for _ in range(40)]
    texts += [f"{spell_numbers(rng.randint(1, 12))} o'clock" for _ in range(20)]
    return texts


def make_spoken_form(text: str) -> str:
    """What a voice is asked to say: single letters as letters, "a m" spelled, a full stop for the intonation."""
    spoken = text.split()
    if all(len(word) == 1 for word in spoken):
        return ", ".join(word.upper() for word in spoken) + "."
    return re.sub(r"\bi\b", "I", text) + "."
