"""English numbers and signs → words, for a model that was trained to say letters alone. Imports nothing heavy.

They become the words that one would read aloud: `3 apples` → `three apples`, `$5.50` → `five dollars and fifty cents`,
`3:05` → `three oh five`, `21st` → `twenty first`, `1,200` → `one thousand two hundred`, `1999` → `nineteen ninety
nine`, `3.14` → `three point one four`, `007` → `zero zero seven`. Signs that have no word here, and numerals of other
scripts, stay as they are.
"""

from __future__ import annotations

import re

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
TENS = ["", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}  # fmt: skip
MONEY = {"$": ("dollar", "cent", "cents"), "€": ("euro", "cent", "cents"), "£": ("pound", "penny", "pence")}
SIGNS = {"&": "and", "%": "percent", "@": "at", "#": "hash", "§": "section", "+": "plus", "=": "equals",
         "°": "degrees", "×": "times", "÷": "divided by", "$": "dollars", "€": "euros", "£": "pounds"}  # fmt: skip

_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_LARGE = "hundred|thousand|million|billion|trillion"
_MONEY = re.compile(
    rf"([$€£]) ?({_NUMBER})(?:\.([0-9]{{2}})(?![0-9])|(\.[0-9]+)?((?: (?:{_LARGE})\b)?))", re.IGNORECASE
)
_TIME = re.compile(r"(?<![0-9:])([01]?[0-9]|2[0-4]):([0-5][0-9])(?![0-9:])( ?[ap]\.?m\b)?", re.IGNORECASE)
_ORDINAL = re.compile(rf"({_NUMBER})(?:st|nd|rd|th)\b", re.IGNORECASE)
_DECADE = re.compile(r"([0-9]+)['’]?s\b")
_DECIMAL = re.compile(rf"({_NUMBER})?\.([0-9]+)(?![.]?[0-9])")
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){2,}")
_NEGATIVE = re.compile(r"(?<![^\s(])[-−](?=\.?[0-9])")
_PLAIN = re.compile(_NUMBER)
_SIGNS = re.compile(f"[{''.join(SIGNS)}]+")


def spell_numerals(text: str) -> str:
    """A text with its numbers and common signs in English words."""
    if not any(letter in SIGNS or letter in "0123456789−" for letter in text):
        return text
    text = _MONEY.sub(_spell_money, text)
    text = _TIME.sub(_spell_time, text)
    text = re.sub(r"°([CF])\b", lambda found: f" degrees {'celsius' if found[1] == 'C' else 'fahrenheit'}", text)
    text = re.sub(r"#(?=[0-9])", "number ", text)
    text = _NEGATIVE.sub("minus ", text)
    text = _ORDINAL.sub(lambda found: _set_apart(found, _make_ordinal(spell_count(_read(found[1])))), text)
    text = _DECADE.sub(lambda found: _set_apart(found, _make_plural(spell_number(found[1]))), text)
    text = _DOTTED.sub(lambda found: _set_apart(found, found[0].replace(".", " point ")), text)
    text = _DECIMAL.sub(_spell_decimal, text)
    text = _PLAIN.sub(lambda found: _set_apart(found, spell_number(found[0])), text)
    return _SIGNS.sub(lambda found: _set_apart(found, " ".join(SIGNS[sign] for sign in found[0])), text)


def spell_count(value: int) -> str:
    """A count in words: 1200 → `one thousand two hundred`."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f" {ONES[value % 10]}" if value % 10 else "")
    size, name = next((size, name) for size, name in SCALES if value >= size)
    rest = f" {spell_count(value % size)}" if value % size else ""
    return f"{spell_count(value // size)} {name}{rest}"


def spell_number(digits: str, may_be_year: bool = True) -> str:
    """A number in words, by the way it is written.

    With commas it is a count; with a leading zero, or of very many digits, it is spelled digit by digit; of four digits
    it is said as a year, if `may_be_year`.
    """
    if "," not in digits and (len(digits) > 12 or (digits[0] == "0" and len(digits) > 1)):
        return _spell_digits(digits)
    value = _read(digits)
    is_year = may_be_year and "," not in digits and (1100 <= value < 2000 or 2010 <= value < 2100)
    if not is_year:
        return spell_count(value) if value < 10**15 else _spell_digits(digits.replace(",", ""))
    century, rest = divmod(value, 100)
    return f"{spell_count(century)} {spell_count(rest) if rest > 9 else f'oh {ONES[rest]}' if rest else 'hundred'}"


def _spell_money(found: re.Match[str]) -> str:
    sign, whole, cents, point, large = found[1], found[2], found[3], found[4] or "", found[5] or ""
    unit, cent, many_cents = MONEY[sign]
    count = spell_number(whole, False)
    if point or large:
        more = f" point {_spell_digits(point[1:])}" if point else ""
        return _set_apart(found, f"{count}{more}{large} {unit}s")
    words = f"{count} {unit if count == 'one' else unit + 's'}"
    if cents and int(cents):
        small = f"{spell_count(int(cents))} {cent if int(cents) == 1 else many_cents}"
        words = small if count == "zero" else f"{words} and {small}"
    return _set_apart(found, words)


def _spell_time(found: re.Match[str]) -> str:
    hour, minute, half = spell_count(int(found[1])), int(found[2]), found[3] or ""
    if minute:
        hour += f" oh {ONES[minute]}" if minute < 10 else f" {spell_count(minute)}"
    elif not half:
        hour += " o'clock"
    return _set_apart(found, f"{hour} {half.strip()}".rstrip())


def _spell_decimal(found: re.Match[str]) -> str:
    whole = spell_number(found[1], False) if found[1] else ""
    return _set_apart(found, f"{whole} point {_spell_digits(found[2])}")


def _spell_digits(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)


def _read(digits: str) -> int:
    return int(digits.replace(",", ""))


def _make_ordinal(words: str) -> str:
    before, _, last = words.rpartition(" ")
    last = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{before} {last}".lstrip()


def _make_plural(words: str) -> str:
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}es" if words.endswith("x") else f"{words}s"


def _set_apart(found: re.Match[str], words: str) -> str:
    """Words with a space where a letter, digit or sign stands beside what they replace."""
    text = found.string
    before = found.start() > 0 and _is_spoken(text[found.start() - 1])
    after = found.end() < len(text) and _is_spoken(text[found.end()])
    return f"{' ' if before else ''}{words.strip()}{' ' if after else ''}"


def _is_spoken(letter: str) -> bool:
    return letter.isalnum() or letter in SIGNS
