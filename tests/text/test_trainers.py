"""Every kind of text tokenizer: strings survive, the rule of each learner holds, and AutoTokenizer reads the same."""

import itertools
import json
import random
from collections import Counter
from functools import cache

import pytest
from tokenizers import pre_tokenizers

from tests.sequence.conftest import sentences
from unimodal.text.pretokens import cut, make_word_pattern
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.text.trainers import KINDS, TrainingSettings, save, train
from unimodal.text.trainers.less_is_better import Lexicon, Reader, ReadingSettings, is_worse
from unimodal.text.trainers.plain import list_byte_letters
from unimodal.text.trainers.sentence_pieces import train_model

LINES = [f"{line} {number * 7919}" for number, line in enumerate(sentences(300))]
SIZES = {"bpe": 360, "unigram": 380, "wordpiece": 600, "less-is-better": 400, "characters": None, "bytes": None}
NASTY = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\ttabs\r\n",
    "é 🎈 👩‍👩‍👧 日本語 \u0000 \U0010ffff",
    "<0x41> <unk> </s>",
    "##a ## \u2581\u2581x \u2581",
    "1234567 12 3",
    "CAPITALS",
]


def settings_of(kind: str, **changes) -> TrainingSettings:
    return TrainingSettings(kind, SIZES.get(kind, 420), **changes)


@cache  # of several tests
def train_kind(kind: str) -> TokenizerData:
    return train(LINES, settings_of(kind))


def open_trained(kind: str, lines=LINES, **changes) -> TextTokenizer:
    return TextTokenizer(train(lines, settings_of(kind, **changes)))


def spell(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([row]) for row in tokenizer.encode(text)]


@pytest.mark.sweep("kinds of text tokenizers")
@pytest.mark.parametrize("kind", KINDS)
def test_every_string_survives_in_every_kind_and_autotokenizer_reads_the_same(kind, tmp_path):
    from transformers import AutoTokenizer

    settings, data = settings_of(kind), train_kind(kind)
    tokenizer = TextTokenizer(data)
    assert settings.size in (None, tokenizer.size)
    save(data, tmp_path / "out", settings, LINES)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*NASTY, *LINES[:5]]:
        rows = tokenizer.encode(text)
        assert tokenizer.decode(rows) == text
        assert theirs.encode(text, add_special_tokens=False) == rows and theirs.decode(rows) == text
    said = json.loads((tmp_path / "out" / "training.json").read_text())
    assert said["kind"] == kind and said["corpus"]["num_lines"] == len(LINES)


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("free", [" 1234567", " 12"]),
        ("single", [" ", *"1234567", " ", *"12"]),
        ("left", [" ", "123", "456", "7", " ", "12"]),
        ("right", [" ", "1", "234", "567", " ", "12"]),
    ],
)
def test_numbers_are_cut_by_their_rule(rule, pieces):
    assert list(cut(make_word_pattern(rule), [" 1234567 12"])) == pieces
    groups = "".join(pieces).split()
    assert groups == ["1234567", "12"]
    trained = open_trained("bpe", digits=rule)
    if rule != "free":
        rows = [part for part in spell(trained, "7919 15838") if part.strip()]
        assert max(map(len, rows)) <= (1 if rule == "single" else 3)


def count_pairs(words: Counter, merges: list[tuple[str, str]]) -> Counter:
    """The pairs of a text after these merges, as byte-pair encoding counts them."""
    counts: Counter = Counter()
    for word, times in words.items():
        parts = list(word)
        for left, right in merges:
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == (left, right):
                    parts[place : place + 2] = [left + right]
                place += 1
        for pair in itertools.pairwise(parts):
            counts[pair] += times
    return counts


def test_every_merge_is_the_most_frequent_pair_of_its_time():
    letters = list_byte_letters()
    words = Counter(
        "".join(letters[byte] for byte in word.encode())
        for word in cut(make_word_pattern("free"), [line + "\n" for line in LINES])
    )
    merges = [tuple(pair) for pair in open_trained("bpe").data["model"]["merges"]]
    for step in (0, 5, 40, 90):
        counts = count_pairs(words, merges[:step])
        assert counts[merges[step]] == max(counts.values())


def test_superwords_cross_spaces_and_go_on_where_the_words_end():
    rng = random.Random(0)
    lines = [" ".join(rng.choices(["by the way", "dog", "cat", "it was 77", "red"], k=6)) for _ in range(100)]
    plain, wide = (TextTokenizer(train(lines, TrainingSettings("bpe", size, "single", share))) for size, share in
                   ((272, 0), (290, 0.062)))  # fmt: skip
    assert wide.size == 290 and any(" " in part.strip() for part in spell(wide, lines[0]))
    assert sum(map(len, wide.encode_batch(lines))) < 0.7 * sum(map(len, plain.encode_batch(lines)))
    first = 272
    merges = [tuple(pair) for pair in wide.data["model"]["merges"]]
    letters = list_byte_letters()
    parts = [part for line in lines for part in cut(r"\p{N}|[^\r\n\p{N}]+|[\r\n]+", [line + "\n"])]
    words = Counter("".join(letters[byte] for byte in part.encode()) for part in parts)
    for step in (first - 256, len(merges) - 1):
        counts = count_pairs(words, merges[:step])
        assert counts[merges[step]] == max(counts.values())
    assert all(wide.decode(wide.encode(line)) == line for line in lines[:3])
    assert not any("7" in text and len(text) > 1 for text in map(wide.decode, ([row] for row in range(256, 290))))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_cuts_every_word_as_its_own_library_does(kind):
    settings = settings_of(f"sentencepiece-{kind}", digits="right")
    words = list(cut(make_word_pattern("right"), [line + "\n" for line in LINES]))
    reference = train_model(words, settings, kind, settings.size + (kind == "bpe"))
    tokenizer = TextTokenizer(train(LINES, settings))
    for text in [*sentences(40, seed=1), "Ünïcode zebras 1234567 ", "日本 🎈"]:
        ours = [tokenizer.encode(word) for word in cut(make_word_pattern("right"), [text])]
        theirs = [
            [row - (kind == "bpe") for row in reference.encode(word)]
            for word in cut(make_word_pattern("right"), [text])
        ]
        assert ours == theirs and tokenizer.encode(text) == [row for rows in ours for row in rows]


def test_short_pieces_and_unknown_characters():
    longest = max(len(piece) for piece in open_trained("bpe", max_length=3).data["model"]["vocab"])
    assert longest == 3
    for kind in ("unigram", "wordpiece", "sentencepiece-unigram", "characters"):
        settings = TrainingSettings(kind, {"characters": None}.get(kind, 130), byte_fallback=False)
        tokenizer = TextTokenizer(train(LINES, settings))
        rows = tokenizer.encode("the 日")
        assert tokenizer.decode(rows) != "the 日" and "日" not in "".join(spell(tokenizer, "the 日"))
        assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def split_ing(word: str) -> list[str]:
    return [word[:-3], "ing"] if len(word) > 4 and word.endswith("ing") else [word]


def lose_letters(word: str) -> list[str]:
    return [word[:1]]


def test_no_piece_crosses_what_the_segmenter_cuts(tmp_path, monkeypatch):
    lines = ["walking talking smiling and walking", "he is talking while smiling and walking"] * 50
    name = f"{__name__}:split_ing"
    pieces = [
        {TextTokenizer(data).decode([row]).strip() for row in range(256, 276)}
        for data in (train(lines, TrainingSettings("bpe", 276, segmenter=used)) for used in (None, name))
    ]
    assert "walking" in pieces[0] and "ing" in pieces[1] and not any("king" in piece for piece in pieces[1])
    for wrong, said in {
        "split_ing": "not of the form",
        "no.such.module:f": "cannot be imported",
        f"{__name__}:nothing": "has no function",
        f"{__name__}:lose_letters": "joined they are to be the word",
    }.items():
        with pytest.raises(ValueError, match=said):
            train(lines, TrainingSettings("bpe", 276, segmenter=wrong))


def test_the_reader_keeps_what_reads_in_fewer_chunks():
    lexicon = Lexicon(["a", "b", "ab", "abc", "c"])
    assert lexicon.match_two("abcd", 0) == ("ab", "abc") and lexicon.match_two("xa", 0) == ("", "")
    assert lexicon.match_two("abc", 0, 2) == ("a", "ab") and lexicon.match("cab", 1) == "ab"
    assert is_worse(["abc", "a", "b"], ["ab", "c"], lexicon) and not is_worse(["abc"], ["ab", "c"], lexicon)
    assert not is_worse(["abc", "a"], ["ab", "b"], lexicon)  # places 3 + 0 and 2 + 1
    assert is_worse(["abc", "b"], ["ab", "b"], lexicon)
    lexicon.move([("c", -1), ("b", 1), ("a", 1)], 0.5)  # c: 4 - 3 = 1; then b, at 2, to 4; the first one stays
    assert lexicon.chunks == ["a", "c", "ab", "abc", "b"]
    lexicon.move([("b", 1)], 0.5)  # past the end: forgotten
    assert lexicon.chunks == ["a", "c", "ab", "abc"] and lexicon.match("bc") == ""


def test_less_is_better_learns_phrases_and_reads_in_the_fewest_chunks():
    rng = random.Random(0)
    lines = [" ".join(rng.choices(["by the way", "dog", "cat", "it is", "red"], k=6)) for _ in range(60)]
    data = train(lines, TrainingSettings("less-is-better", 340, max_length=12))
    tokenizer = TextTokenizer(data)
    chunks = [piece for piece, _ in data["model"]["vocab"][257:]]
    assert "by the way " in chunks and len(tokenizer.encode("by the way dog red ")) == 2
    again = train(lines, TrainingSettings("less-is-better", 340, max_length=12))
    assert again == data and train(lines, TrainingSettings("less-is-better", 340, max_length=12, seed=1)) != data
    place = {chunk: number for number, chunk in enumerate(chunks)}

    def find_ways(text: str) -> list[list[int]]:
        if not text:
            return [[]]
        firsts = [text[:end] for end in range(1, len(text) + 1) if text[:end] in place]
        return [[place[first], *rest] for first in firsts for rest in find_ways(text[len(first) :])]

    for text in ("by the way red", "red dog it", "cat it is"):
        best = min(find_ways(text), key=lambda way: (len(way), sum(way)))
        assert [row - 257 for row in tokenizer.encode(text)] == best


def test_a_reader_forgets_what_does_not_prove_itself():
    reader = Reader(["abab"] * 5 + ["xy"], ReadingSettings(life=2, num_readings=30))
    chunks = reader.learn()
    assert set("abxy") <= set(chunks) and len(chunks) == len(set(chunks))
    assert "ab" in chunks and "ba" not in chunks[:2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "bpe", "size": 99_999}, "gives only"),
        ({"kind": "bpe", "size": 200}, "256 of the rows are taken"),
        ({"kind": "bpe"}, "needs the size"),
        ({"kind": "sentencepiece-bpe", "size": 99_999}, "cannot train 100000 pieces"),
        ({"kind": "unigram", "size": 99_999}, "gives only"),
        ({"kind": "nothing", "size": 300}, "kind 'nothing' is unknown; choose bpe, "),
        ({"kind": "unigram", "size": 300, "superwords": 0.1}, "a second stage of bpe, not of unigram"),
        ({"kind": "bpe", "size": 300, "byte_fallback": False}, "bpe takes no byte fallback"),
        ({"kind": "bytes", "size": 300}, "there are 256 bytes"),
        ({"kind": "bytes", "digits": "left"}, "bytes takes no digits"),
        ({"kind": "characters", "seed": 3}, "nothing is drawn at random"),
        ({"kind": "bpe", "size": 300, "superwords": 0.1, "segmenter": "a:b"}, "leave one of the two out"),
        ({"kind": "bpe", "size": 300, "superwords": 1.0}, "give 0 to 0.99"),
        ({"kind": "bpe", "size": 300, "digits": "odd"}, "'odd' is no rule"),
    ],
)
def test_what_cannot_be_trained_is_one_line(changes, said):
    with pytest.raises(ValueError, match=said) as error:
        train(LINES[:50], TrainingSettings(**changes))
    assert "\n" not in str(error.value)


def test_bytes_are_their_own_rows():
    tokenizer = open_trained("bytes")
    text = "é 🎈\x00"
    assert tokenizer.encode(text) == list(text.encode())
    letters = list_byte_letters()
    assert sorted(letters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    [(written, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert written == "".join(letters[byte] for byte in text.encode())
