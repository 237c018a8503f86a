"""Sentences and breaths: abbreviations, other scripts, no punctuation, very long ones; nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.text.sentences import measure_breath, split_sentences, split_utterances


@pytest.mark.parametrize(
    "sentences",
    [
        ["Hello there.", "How are you?"],
        ["Mr. Smith met Dr. Jones at 5 p.m. on Main St. in Boston.", "They ate pie."],
        ["He works for Acme Inc.", "She does not."],
        ["J. R. R. Tolkien wrote it.", "So did J.K. Rowling!"],
        ["It costs 3.14 dollars, e.g. at No. 5, see Fig. 2.", "Cheap?!", "Yes…"],
        ["We left at 9 a.m.", "Then it rained."],
        ["She said no.", "He left."],
        ["Well… maybe not.", "“Who is it?” she asked.", "“Me.”", "(It was he.)"],
        ["apples, pears, etc. and so on"],
        ["no punctuation at all and it just goes on"],
        ["今日は晴れです。", "明日は雨でしょう！", "本当？"],
        ["「そうです。」", "彼は言った。"],
        ["Привет, мир.", "Как дела?", "Хорошо!"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["هل أنت بخير؟", "نعم."],
        ["Τι κάνεις\u037e", "Καλά."],
        ["A title", "And a paragraph."],
        ["Visit example.com today.", "Or not."],
    ],
)
def test_sentences(sentences):
    text = ("\n\n" if sentences[0] == "A title" else " ").join(sentences)
    assert split_sentences(text) == sentences
    if not sentences[0].isascii() and sentences[0][-1] in "。」":
        assert split_sentences("".join(sentences)) == sentences


def test_nothing_to_say_has_no_sentences():
    assert split_sentences("") == split_sentences(" … !? — \n\n ") == []


def test_what_is_too_long_is_cut_at_clauses_then_words_then_letters():
    long = "When the rain had stopped, the old man walked under seven trees; and nobody saw him."
    assert split_utterances(long, 40) == [
        "When the rain had stopped,",
        "the old man walked under seven trees;",
        "and nobody saw him.",
    ]
    assert split_utterances(long, 70) == [
        "When the rain had stopped,",
        "the old man walked under seven trees; and nobody saw him.",
    ]
    words = split_utterances("one two three four five six seven eight nine ten", 20)
    assert words == ["one two three four", "five six seven", "eight nine ten"]  # not a last one of a single word
    assert split_utterances("漢" * 25, 30) == ["漢" * 9, "漢" * 9, "漢" * 7]
    with pytest.raises(ValueError, match="a word of 61 letters cannot be said at once"):
        split_utterances("say " + "a" * 61, 60)


texts = st.text(
    st.sampled_from("abc defg hij ABC.,;:!?…—\n\n0123 'ñé漢字。、กขค") | st.characters(exclude_categories=["Cs"]),
    max_size=200,
)


@examples(60)
@given(texts, st.integers(60, 90))
def test_every_piece_fits_and_no_letter_is_lost(text, most):
    def letters(given):
        return [letter for letter in given if letter.isalnum()]

    assert letters("".join(split_sentences(text))) == letters(text)
    try:
        pieces = split_utterances(text, most)
    except ValueError as error:
        assert "letters cannot be said at once" in str(error)
        assert max(map(measure_breath, text.split())) > most
        return
    assert letters("".join(pieces)) == letters(text)
    assert all(any(map(str.isalnum, piece)) for piece in pieces)
    assert all(measure_breath(piece) <= most + 20 for piece in pieces)  # marks that end a piece stay with it
