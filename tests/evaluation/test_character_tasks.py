"""The suite character_tasks: known answers, a model that answers right, and one that says more than a number."""

import json
import re

import pytest

from unimodal.evaluation import character_tasks, run_suites
from unimodal.evaluation.character_tasks import (
    LONGEST,
    SHORTEST,
    TASKS,
    CharacterQuestion,
    compute_answer,
    find_token_length,
    make_questions,
    read_number,
)

WORDS = ["strawberry", "Banana", "tree", "letter", "apple", "mouse", "giraffe", "elephant", "umbrella", "chocolate"] * 2


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "raw" / "wordnet-base"
    folder.mkdir(parents=True)
    line = "00001740 03 n 01 {word} 0 000 | a thing\n"
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("".join(line.format(word=word) for word in WORDS))
    (tmp_path / "prepared").mkdir()
    return tmp_path / "prepared"


@pytest.mark.parametrize(
    ("task", "word", "character", "answer"),
    [
        ("count_character_frequency", "strawberry", "r", 3),
        ("count_character_frequency", "Banana", "b", 0),
        ("count_unique_chars", "strawberry", "", 8),
        ("count_unique_chars", "Banana", "", 3),
        ("find_first_occurrence", "strawberry", "r", 2),
        ("find_last_occurrence", "strawberry", "r", 8),
        ("find_first_occurrence", "tree", "t", 0),
    ],
)
def test_the_answers_are_the_counts_and_places(task, word, character, answer):
    assert compute_answer(task, word, character) == answer


def test_every_task_has_as_many_words_of_each_length_and_no_word_twice():
    words = [letters * n for n in range(2, 7) for letters in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]
    words += ["no word", "naïve", "abc1", "tenletterss"]
    questions = make_questions(words, 8, seed=3)
    assert [sum(q.task == task for q in questions) for task in TASKS] == [8, 8, 8, 8]
    assert len({q.word for q in questions}) == 32 and all(SHORTEST <= len(q.word) <= LONGEST for q in questions)
    for task in TASKS:
        lengths = [len(q.word) for q in questions if q.task == task]
        assert {lengths.count(n) for n in (4, 6, 8, 10)} == {2}
    assert questions == make_questions(words, 8, seed=3) != make_questions(words, 8, seed=4)
    assert all(q.character in q.word and f"'{q.word}'" in q.text for q in questions)
    with pytest.raises(ValueError, match="no word of 4 to 10 letters"):
        make_questions(["abc", "ein Wort"], 8, seed=0)


@pytest.mark.parametrize(("said", "number"), [("3", 3), (" 12\n", 12), ("3.", None), ("It is 3", None), ("", None)])
def test_an_answer_is_a_number_and_nothing_else(said, number):
    assert read_number(said) == number


def test_the_length_is_that_of_the_token_at_the_place(model):
    text = model.template.text
    question = CharacterQuestion("find_last_occurrence", "draw", "w", 3)
    ids, spans = text.locate(f" {question.text}")
    at = f" {question.text}".rindex("'draw'") + 4
    [expected] = [end - start for start, end in spans if start <= at < end]
    assert find_token_length(text, question) == expected >= 1


def solve(text):
    """A model that can count, in the words that it is asked in."""
    word = re.search(r"string '(\w+)'", text)[1]
    found = re.search(r"character '(\w)'", text)
    [task] = [name for name, template in TASKS.items() if template.split("'")[0] in text]
    character = found[1] if found else ""
    return str(compute_answer(task, word, character))


def test_a_model_that_counts_has_all_and_one_that_chats_nothing(model, data, tmp_path, monkeypatch):
    asked = []

    def answer(_, documents, seed, report):
        asked.extend(document.turns[0].parts[0].text for document in documents)
        return [solve(text) for text in asked]

    monkeypatch.setattr(character_tasks, "answer_texts", answer)
    [table] = run_suites(["character_tasks"], model, data, tmp_path / "report.json", limit=2)
    figures = json.loads((tmp_path / "report.json").read_text())["suites"]["character_tasks"]
    assert figures["all"]["percent"] == 100 and figures["all"]["count"] == 8 == len(asked)
    assert sum(share["count"] for share in figures["places_by_token"].values()) == 4
    assert all(text.startswith("Answer this question only with the final number") for text in asked)
    assert "find_last_occurrence" in table
    monkeypatch.setattr(character_tasks, "answer_texts", lambda *_: [f"It is {solve(text)}." for text in asked])
    list(run_suites(["character_tasks"], model, data, tmp_path / "report.json", limit=2))
    figures = json.loads((tmp_path / "report.json").read_text())["suites"]["character_tasks"]
    assert figures["all"]["percent"] == 0 == figures["numbers"]["percent"]


@pytest.mark.sweep("suites at work")
def test_the_tiny_model_is_asked(model, data, tmp_path):
    list(run_suites(["character_tasks"], model, data, tmp_path / "report.json", limit=1))
    figures = json.loads((tmp_path / "report.json").read_text())["suites"]["character_tasks"]
    assert figures["all"]["count"] == 4 and len(figures["examples"]) == 2
