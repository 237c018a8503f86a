"""Counting and finding letters in a word: the four tasks of CharBench (arXiv:2508.02591) in its own words.

How many different characters a word has, how often it has one of them, and where this stands first and last, counted
from 0. Words of 4 to 10 letters come from WordNet in place of MiniPile, equally many of each length; the character is
drawn from the word's own. An answer counts if it is the number and nothing else, as in the authors' program.
`places_by_token` has the shares of the two tasks of places by the length of the token that the character stands in: the
authors find that longer tokens hide places. Shares are in per cent with Wilson's 95% interval.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimodal.data.plain_text import read_definitions
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn
from unimodal.text.tokenizer import TextTokenizer

DEFAULT_LIMIT = 100  # questions of a task
SHORTEST, LONGEST = 4, 10  # letters of a word
NUM_EXAMPLES = 2
ONLY = (
    "Answer this question only with the final number, without any other text. Lower case and upper case letters are "
    "considered different characters.\n\nQuestion: {question}"
)
TASKS = {
    "count_character_frequency": "How many times does the character '{character}' appear in the string '{word}'?",
    "count_unique_chars": "How many unique characters appear in the string '{word}'?",
    "find_first_occurrence": "What is the index of the first occurrence of the character '{character}' in the string "
    "'{word}'?\nStart counting from 0.",
    "find_last_occurrence": "What is the index of the last occurrence of the character '{character}' in the string "
    "'{word}'?\nStart counting from 0.",
}
PLACES = ("find_first_occurrence", "find_last_occurrence")


@dataclass(frozen=True)
class CharacterQuestion:
    """A question about a word and, but for the number of its different characters, about one of them."""

    task: str
    word: str
    character: str
    answer: int

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return ONLY.format(question=TASKS[self.task].format(word=self.word, character=self.character))


def compute_answer(task: str, word: str, character: str) -> int:
    """The right answer to one of `TASKS`."""
    if task == "count_unique_chars":
        return len(set(word))
    if task == "count_character_frequency":
        return word.count(character)
    return word.index(character) if task == "find_first_occurrence" else word.rindex(character)


def make_questions(words: Sequence[str], count: int, seed: int) -> list[CharacterQuestion]:
    """So many questions of every task, each about a word of its own, with as many words of each length as there are.

    Words that are no plain letters, or too short or long, are left out. Raises ValueError where none is left.
    """
    fitting = {word for word in words if word.isascii() and word.isalpha() and SHORTEST <= len(word) <= LONGEST}
    if not fitting:
        raise ValueError(f"there is no word of {SHORTEST} to {LONGEST} letters to ask about")
    rng = random.Random(seed)
    by_length = [sorted(word for word in fitting if len(word) == n) for n in range(SHORTEST, LONGEST + 1)]
    for listed in by_length:
        rng.shuffle(listed)
    # one word of each length in turn, for one task after the other
    ordered = [listed[at] for at in range(max(map(len, by_length))) for listed in by_length if at < len(listed)]
    questions = []
    for number, task in enumerate(TASKS):
        for word in ordered[number * count : (number + 1) * count]:
            character = rng.choice(word)
            questions.append(CharacterQuestion(task, word, character, compute_answer(task, word, character)))
    return questions


def read_number(answer: str) -> int | None:
    """The number that an answer is; None for one that says anything else."""
    try:
        return int(answer.strip())
    except ValueError:
        return None


def find_token_length(tokenizer: TextTokenizer, question: CharacterQuestion) -> int:
    """The characters of the token that holds the place asked for, in the question as the model reads it."""
    text = f" {question.text}"  # as a template writes a text
    at = text.rindex(f"'{question.word}'") + 1 + question.answer
    _, spans = tokenizer.locate(text)
    return next(end - start for start, end in spans if start <= at < end)


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    raw = data_folder.parent / "raw"
    words = [word for split in ("train", "test") for word, _ in read_definitions(raw, split)]
    questions = make_questions(words, limit or DEFAULT_LIMIT, seed)
    documents = [Document([Turn("user", question.text)]) for question in questions]
    answers = answer_texts(model, documents, seed, report)
    right = [read_number(answer) == question.answer for question, answer in zip(questions, answers, strict=True)]
    figures: dict[str, object] = {"words": "WordNet"}
    for task in TASKS:
        figures[task] = measure_share([found for found, one in zip(right, questions, strict=True) if one.task == task])
    figures["all"] = measure_share(right)
    by_token: dict[str, list[bool]] = {}
    for found, question in zip(right, questions, strict=True):
        if question.task in PLACES:
            length = find_token_length(model.template.text, question)
            by_token.setdefault("1" if length == 1 else "2-3" if length < 4 else "4 or more", []).append(found)
    figures["places_by_token"] = {name: measure_share(by_token[name]) for name in sorted(by_token)}
    figures["numbers"] = measure_share([read_number(answer) is not None for answer in answers])
    figures["examples"] = [
        {"word": one.word, "task": one.task, "right": one.answer, "answer": answer}
        for one, answer in list(zip(questions, answers, strict=True))[:: max(1, len(questions) // NUM_EXAMPLES)]
    ]
    return figures


SUITE = Suite(run)
