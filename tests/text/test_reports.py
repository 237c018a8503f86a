"""What a report says of a tokenizer equals counts made by hand and formulas written out."""

import math
from collections import Counter

import pytest

from tests.text.test_tokenizer import NASTY, byte_level
from tests.text.test_trainers import LINES, train_kind
from unimodal.text.pretokens import make_word_pattern
from unimodal.text.reports.entropy import compute_conditional, compute_renyi, measure_entropies
from unimodal.text.reports.layout import format_report, write_html
from unimodal.text.reports.morphemes import measure_morphemes, read_segments
from unimodal.text.reports.numbers import measure_numbers, name_rule, split_number
from unimodal.text.reports.opened import OpenedTokenizer, open_tokenizer
from unimodal.text.reports.premium import compute_premiums
from unimodal.text.reports.report import ReportInput, compare, make_report
from unimodal.text.reports.round_trip import count_encodings, measure_cuts, measure_outputs, measure_round_trip
from unimodal.text.reports.rows import find_scaffolds, find_unreached, measure_rows
from unimodal.text.reports.words import count_rows_by_script, count_text, find_text_script
from unimodal.text.tokenizer import TextTokenizer
from unimodal.text.trainers import KINDS, TrainingSettings, train
from unimodal.text.trainers.plain import list_byte_letters
from unimodal.text.trainers.subwords import make_byte_bpe

TH, THE, SPACE_THE, NEVER = range(256, 260)


@pytest.fixture(scope="module")
def hand() -> OpenedTokenizer:
    """Bytes, "th", "the", " the", and "xq", which no merge makes."""
    vocab = {letter: value for value, letter in enumerate(list_byte_letters())}
    vocab |= {"th": TH, "the": THE, "Ġthe": SPACE_THE, "xq": NEVER}
    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"]]
    return OpenedTokenizer(make_byte_bpe(vocab, merges, make_word_pattern("free")), "hand")


def test_words_tokens_and_their_places_are_those_counted_by_hand(hand):
    counts = count_text(hand, ["the cat the", "é"])  # the| |c|a|t| the, and two bytes
    assert (counts.num_words, counts.num_tokens, counts.num_characters, counts.num_bytes) == (4, 8, 12, 13)
    assert counts.fertility == 2 and counts.num_spaces == 1 and counts.num_split == 2
    assert counts.starts == {"latin": 4} and counts.continuations == {"latin": 3}  # é: its second byte goes on
    said = counts.describe(260)
    assert said["bytes a token"] == 13 / 8 and said["characters a token"] == 12 / 8 and said["words split"] == 0.5
    assert said["rows used"] == 8 / 260 and said["coverage"] == 1
    assert [find_text_script(text) for text in (" дом", "日", "42", "...", " ", "a1", "(б")] == [
        "cyrillic", "cjk", "digits", "signs", "spaces", "latin", "cyrillic"
    ]  # fmt: skip
    rows = count_rows_by_script(hand)
    assert rows["latin"] == {"with a space": 1, "without": 52 + 3} and rows["parts of characters"]["without"] == 128


def test_a_token_over_several_words_begins_each():
    lines = ["by the way"] * 50 + ["it was by the way"] * 50
    wide = OpenedTokenizer(train(lines, TrainingSettings("bpe", 271, superwords=0.0221)), "wide")
    counts = count_text(wide, ["by the way"])
    assert counts.num_tokens < counts.num_words == 3 and counts.starts.total() == counts.num_tokens
    assert counts.num_split == 0


def test_the_premium_is_the_ratio_of_tokens(hand):
    table = compute_premiums(hand, ["a", "b"], [["the the", "", "a"], ["a b c", "left out", "ab"]])
    assert table["a"]["tokens"] == 3 and table["b"]["tokens"] == 5 + 2  # the| the + a; a| |b| |c + a|b
    assert table["b"]["premium"] == 7 / 3 and table["b"]["worst line"] == 2.5
    assert table["b"]["premium of bytes"] == 7 / 8 and table["a"]["premium"] == 1


def test_unknown_characters_and_bytes_are_counted():
    lines = ["abc abc", "cab"]
    plain = OpenedTokenizer(train(lines, TrainingSettings("characters", byte_fallback=False)), "plain")
    counts = count_text(plain, ["abc日", "本b"])
    assert counts.unknown_tokens == 2 and counts.coverage == pytest.approx(4 / 6)
    spelled = OpenedTokenizer(train(lines, TrainingSettings("characters")), "spelled")
    counts = count_text(spelled, ["abc日", "本b"])
    assert counts.fallback_tokens == 6 and counts.fallback_characters == 2 and counts.coverage == 1
    assert counts.num_tokens == 4 + 6


def test_entropies_are_their_formulas():
    sequences = [[1, 2, 1, 3], [1, 2]]
    share = [3 / 6, 2 / 6, 1 / 6]
    renyi = math.log2(sum(p**2.5 for p in share)) / (1 - 2.5)
    said = measure_entropies(sequences, 16)
    assert said["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in share))
    assert said["Rényi entropy"] == pytest.approx(renyi) and said["Rényi efficiency"] == pytest.approx(
        renyi / math.log2(3)
    )
    assert said["Rényi efficiency of all rows"] == pytest.approx(renyi / 4)
    assert compute_renyi([1, 1, 1, 1]) == pytest.approx(2) and compute_renyi([3, 1], 1) == pytest.approx(0.8112781)
    pairs = Counter([(1, 2), (2, 1), (1, 3), (1, 2)])  # behind 1: 2, 3, 2; behind 2: 1
    by_hand = -sum(
        count / 4 * math.log2(count / sum(other for (first, _), other in pairs.items() if first == pair[0]))
        for pair, count in pairs.items()
    )
    assert compute_conditional(sequences, 1) == pytest.approx(by_hand)
    assert compute_conditional(sequences, 2) == 0 and compute_conditional([[1]], 3) == 0


def test_encodings_of_a_text_are_counted_and_cuts_found(hand):
    spellings = Counter(hand.spelled.values())
    assert count_encodings(spellings, b" the") == 4 and count_encodings(spellings, b"xq") == 2  # t h e, th e, the; all
    assert measure_cuts(hand, ["the x"]) == {"inside words": 1.0, "before spaces": 0.0, "behind spaces": 0.0}
    assert measure_cuts(hand, ["a the"])["behind spaces"] == 1.0
    assert measure_outputs(hand, [[TH, ord("e")], [THE], [NEVER]])["written otherwise again"] == 2 / 3
    said = measure_round_trip(hand, ["the", "é"])
    assert said["lines that come back"] == 1 and said["rows that spell what another does"] == 0
    assert said["encodings of a word, in bits"] == 1  # 4 and 1
    losing = OpenedTokenizer(train(["abc"], TrainingSettings("characters", byte_fallback=False)), "losing")
    said = measure_round_trip(losing, ["abc", "日"])
    assert said["lines that come back"] == 0.5 and said["first line that is lost"] == "日"


def test_rows_that_nothing_reaches_and_rows_on_the_way(hand):
    unreached, parts = find_unreached(hand)
    assert unreached == [NEVER] and parts == list(range(128, 256))
    counts = count_text(hand, ["the the"]).rows
    assert find_scaffolds(hand, counts) == sorted([ord(" "), ord("t"), ord("h"), ord("e"), TH])
    said = measure_rows(hand, counts)
    assert said["unreached rows"] == ["259 'xq'"] and said["never in the corpus"] == 260 - 2


def test_numbers_show_their_rule():
    assert name_rule((3, 3, 1)) == "left" and name_rule((1, 3, 3)) == "right" and name_rule((2, 2)) == "other"
    assert name_rule((1, 1)) == "single" and name_rule((3, 3)) == "left/right" and name_rule((4,)) == "whole"
    for rule, groups in (("single", (1,) * 7), ("left", (3, 3, 1)), ("right", (1, 3, 3))):
        lines = [f"{number:03d}" for number in range(1000)] * 3
        tokenizer = OpenedTokenizer(train(lines, TrainingSettings("bpe", 1332, rule)), rule) if rule != "single" else (
            OpenedTokenizer(train(["ab ab"] * 9, TrainingSettings("bpe", 257, rule)), rule))  # fmt: skip
        assert split_number(tokenizer, "1234567") == groups
        said = measure_numbers(tokenizer)["7"]
        assert said == {"split": "-".join(map(str, groups)), "rule": rule, "share": 1.0, "splits": 1}


def test_morphemes_are_compared_cut_by_cut(hand, tmp_path):
    letters = OpenedTokenizer(train(["walking the"], TrainingSettings("characters")), "letters")
    said = measure_morphemes(letters, [("walking", ["walk", "ing"])])
    assert said["precision"] == 1 / 6 and said["recall"] == 1 and said["F1"] == pytest.approx(2 / 7)
    assert said["cuts too many a word"] == 5 and said["stems of one token"] == 0 and said["purity"] == 0
    said = measure_morphemes(hand, [("the", ["the"]), ("thex", ["th", "ex"])])  # the; the|x
    assert said["precision"] == said["recall"] == 0 and said["F1, mean of words"] == 0.5
    assert said["purity"] == said["tokens that are words"] == 0.5 and said["stems of one token"] == 0.5
    file = tmp_path / "segments.tsv"
    file.write_text("walking\twalk ing\n\nthe\tthe\n")
    assert read_segments(file) == [("walking", ["walk", "ing"]), ("the", ["the"])]
    file.write_text("the\tthe\nwalking\twalk in\n")
    with pytest.raises(ValueError, match="line 2: 'walking"):
        read_segments(file)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_spell_their_text_and_stand_where_they_say(kind):
    opened = OpenedTokenizer(train_kind(kind), kind)
    for text in [*LINES[:3], "é 🎈 two  spaces", "1234567"]:
        encoded = opened.locate(text)
        assert encoded.ids == opened.encode(text)
        assert b"".join(opened.spelled[row] for row in encoded.ids) == text.encode()
        for row, (start, end) in zip(encoded.ids, encoded.spans, strict=True):
            assert opened.spelled[row] in text[start:end].encode()


def test_special_strings_are_located_as_text(tmp_path):
    tokenizer: TextTokenizer = byte_level(tmp_path)
    for text in [*NASTY[:6], "see <|endoftext|> here", "<think>"]:
        ids, spans = tokenizer.locate(text)
        assert ids == tokenizer.encode(text) and len(spans) == len(ids)
        assert (
            "".join(text[start:end] for start, end in spans if end > start).replace(" ", "") != "" or not text.strip()
        )
        assert all(before[1] <= after[1] for before, after in zip(spans, spans[1:], strict=False))


def test_a_report_and_a_comparison_hold_all_sections(hand, tmp_path):
    lines = ["the cat the", "12 the"]
    given = ReportInput(
        lines,
        parallel=(["a", "b"], [lines, lines[::-1]]),
        segmented=[("the", ["the"])],
        outputs=[[THE]],
        samples={"x": ["the the"], "y": ["thx thx"]},
    )
    report = make_report(hand, given)
    assert report["text"]["tokens"] == 6 + 3 and report["premium"]["b"]["premium"] == 1
    assert report["a model's ids"]["written otherwise again"] == 0
    mixture = report["mixture of the training data"]
    assert mixture["x"] + mixture["y"] == pytest.approx(1) and mixture["merges"] == 3
    shown, page = format_report(report), write_html("a <title>", report)
    for name in report:
        assert name in shown and name.replace("'", "&#x27;") in page
    assert "a &lt;title&gt;" in page and "<script" not in page
    table = compare([hand, hand], given)
    assert list(table["fertility"]) == ["hand (1)", "hand (2)"] and len(set(table["fertility"].values())) == 1
    with pytest.raises(ValueError, match="row 999 of --ids is not a text row"):
        make_report(hand, ReportInput(lines, outputs=[[999]]))


def test_what_cannot_be_opened_is_one_line(tmp_path):
    for name, content, said in (
        ("a.json", "no json", "no readable tokenizer.json"),
        ("b.json", "{}", "no readable tokenizer.json"),
        ("missing", None, "no such tokenizer"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=said) as error:
            open_tokenizer(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="AutoTokenizer cannot open"):
        open_tokenizer(tmp_path / "folder")
    data = train(["ab ab"] * 9, TrainingSettings("bpe", 257))
    ctc = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    with pytest.raises(ValueError, match="decoder CTC"):
        assert OpenedTokenizer({**data, "decoder": ctc}, "ctc").spelled
