"""Numbers and signs in English words: as read aloud, and nothing of them left."""

import random

import pytest

from unimodal.text.numerals import SIGNS, spell_count, spell_numerals

READ_ALOUD = {
    "I have 3 apples": "I have three apples",
    "It costs $5.50 & 20%.": "It costs five dollars and fifty cents and twenty percent.",
    "$1, £0.01, €2.5 million": "one dollar, one penny, two point five million euros",
    "at 3:05, 3:30 pm and 12:00": "at three oh five, three thirty pm and twelve o'clock",
    "the 21st of May 1999": "the twenty first of May nineteen ninety nine",
    "June 30th, 2005": "June thirtieth, two thousand five",
    "the 1990s, 1905, 2026": "the nineteen nineties, nineteen oh five, twenty twenty six",
    "1,200 and 1000001": "one thousand two hundred and one million one",
    "-5°C is 3.14 or .5": "minus five degrees celsius is three point one four or point five",
    "agent 007, A4, mp3, C++": "agent zero zero seven, A four, mp three, C plus plus",
    "192.168.0.1": "one hundred ninety two point one hundred sixty eight point zero point one",
    "#1 @ home, 3-5": "number one at home, three-five",
    "Nothing to spell — here; ½ and ٣ stay.": "Nothing to spell — here; ½ and ٣ stay.",
}


@pytest.mark.parametrize(("written", "aloud"), READ_ALOUD.items())
def test_numbers_and_signs_are_read_aloud(written, aloud):
    assert spell_numerals(written) == aloud
    assert spell_numerals(aloud) == aloud


def test_no_digit_and_no_known_sign_is_left_of_any_text():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("0123456789$€£%&@#+=°.,:- sthnd") for _ in range(rng.randrange(1, 30)))
        spelled = spell_numerals(text)
        assert not any(letter in SIGNS or letter.isdigit() for letter in spelled), (text, spelled)
        assert spell_numerals(spelled) == spelled


def test_counts_are_told_apart():
    counts = [*range(3000), *(10**power + more for power in range(4, 15) for more in (-1, 0, 1))]
    assert len({spell_count(value) for value in counts}) == len({*counts})
