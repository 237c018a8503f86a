"""Needles in a long text: which cache methods still find what they kept too little of, on any causal language model.

    python tools/fetch_data.py --set text --set models
    python tools/bench_needle.py measure --rows needle_rows [--lengths 1024,2048,4096] [--keeps 0.5,0.25,0.125]
    python tools/bench_needle.py write --rows needle_rows --out needle.md

The task is the multi-key needle of RULER (arXiv 2404.06654): sentences "One of the special magic numbers for KEY is:
NUMBER." at random depths of paragraphs of a novel, and the number of each key is asked for. Two ways of asking are kept
apart, since methods differ in them more than in anything else:

- `after`: the text is read and evicted before any question is known, and every question is put to a copy of that cache.
  That is a document that is asked several times.
- `with`: the question stands at the end of what is evicted, once for each, as most papers measure.

A row is a method, a share, a length and a way; it is a file of its own with the score of every question, so an
interrupted run goes on. An answer is right if its first number is the one asked for. `write` makes a table with 95%
intervals by texts, since questions about one text are alike.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from unimodal.compression import METHODS
from unimodal.data.plain_text import read_paragraphs
from unimodal.evaluation.cached_answers import continue_rows
from unimodal.evaluation.shares import count_independent, find_interval
from unimodal.files import read_json_as, write_json, write_text_atomically
from unimodal.model.base_check import find_cache_name
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

WHOLE = "whole cache"
WAYS = ("after", "with")
KEYS = (
    "Amsterdam", "Bergen", "Cordoba", "Dakar", "Edinburgh", "Florence", "Geneva", "Havana", "Istanbul", "Jakarta",
    "Kingston", "Lisbon", "Madrid", "Nairobi", "Oslo", "Prague", "Quito", "Riga", "Sydney", "Tokyo",
)  # fmt: skip
NEEDLE = "One of the special magic numbers for {key} is: {number}."
QUESTION = "\n\nThe special magic number for {key} mentioned in the text is:"
ANSWER_TOKENS = 10
ROOM = 4096  # tokens that are read at once where prompts do not share a text


@dataclass(frozen=True)
class Haystack:
    """A text of a length in tokens, and what is hidden in it: key → number."""

    ids: list[int]
    numbers: dict[str, str]


@dataclass(frozen=True)
class Row:
    """Whether each question was answered right, text by text."""

    method: str
    keep: float
    length: int
    way: str
    right: list[list[bool]]

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '-')}_{self.keep:g}_{self.length}_{self.way}.json"


def make_haystack(paragraphs: Sequence[str], tokenizer: Tokenizer, length: int, num_keys: int, seed: int) -> Haystack:
    """Paragraphs of together about `length` tokens, never more, with a needle for each of so many keys between them.
    ValueError where the needles alone are longer."""
    draws = random.Random(seed)
    numbers = {key: str(draws.randrange(1_000_000, 10_000_000)) for key in draws.sample(KEYS, num_keys)}
    needles = [NEEDLE.format(key=key, number=number) for key, number in numbers.items()]

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    room = length - sum(count(f" {needle}") for needle in needles)
    if room < 0:
        raise ValueError(f"{num_keys} needles are longer than a text of {length} tokens")
    sentences: list[str] = []
    first = draws.randrange(len(paragraphs))
    for number in range(len(paragraphs)):
        for sentence in paragraphs[(first + number) % len(paragraphs)].split(". "):
            own = count(f" {sentence}.")
            if own > room:
                break
            sentences.append(f"{sentence.rstrip('.')}.")
            room -= own
        else:
            continue
        break
    for needle in needles:
        sentences.insert(draws.randrange(len(sentences) + 1), needle)
    return Haystack(tokenizer.encode(" ".join(sentences), add_special_tokens=False).ids[:length], numbers)


def read_number(text: str) -> str:
    """The first number of an answer, without what groups its digits; \"\" where there is none."""
    digits = ""
    for sign in text.strip():
        if sign.isdigit():
            digits += sign
        elif digits and sign not in ",. ":
            break
    return digits


@torch.inference_mode()
def ask(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    haystack: Haystack,
    opened: AbstractContextManager[object],
    way: str,
) -> list[bool]:
    """Whether the number of each key is found."""
    from transformers import DynamicCache

    end = tokenizer.token_to_id("<|im_end|>") or -1
    keys = list(haystack.numbers)
    questions = [tokenizer.encode(QUESTION.format(key=key), add_special_tokens=False).ids for key in keys]
    numbers = list(haystack.numbers.values())
    with opened:
        cache = DynamicCache(config=model.config)
        if way == "after":
            read = {find_cache_name(model): cache, "use_cache": True}
            model(torch.tensor([haystack.ids]), **read, logits_to_keep=1)
            groups = [questions]
        else:
            prompts = [[*haystack.ids, *question] for question in questions]
            most = max(1, ROOM // len(prompts[0]))
            groups = [prompts[first : first + most] for first in range(0, len(prompts), most)]
        answers: list[str] = []
        for group in groups:
            wanted = numbers[len(answers) :]

            def is_wrong(row: int, ids: Sequence[int], wanted: Sequence[str] = wanted) -> bool:
                return not wanted[row].startswith(read_number(tokenizer.decode(ids)))

            written = continue_rows(model, group, cache, ANSWER_TOKENS, (end,), is_settled=is_wrong)
            answers += [read_number(tokenizer.decode(ids)) for ids in written]
    return [answer == number for answer, number in zip(answers, numbers, strict=True)]


def list_methods() -> list[str]:
    """Methods that evict or pack cache entries, and need no training."""
    return [name for name, method in METHODS.items() if method.acts_on == "cache" and not method.is_learned]


def list_rows(
    methods: Sequence[str], keeps: Sequence[float], lengths: Sequence[int], ways: Sequence[str]
) -> Iterator[Row]:
    """Rows without answers, the whole cache first and short texts before long ones."""
    for length in lengths:
        for way in ways:
            yield Row(WHOLE, 1.0, length, way, [])
            for keep in keeps:
                yield from (Row(name, keep, length, way, []) for name in methods)


def measure(asked: argparse.Namespace) -> None:
    """Measures every row that is missing."""
    from tokenizers import Tokenizer

    from unimodal.model.base import load_base

    base = load_base(asked.base, asked.precision)
    tokenizer = Tokenizer.from_str(json.dumps(base.tokenizer))
    model = base.model.eval()
    vocabulary = Vocabulary.build(base.num_rows, [], [])
    paragraphs = read_paragraphs(asked.raw, "test")
    asked.rows.mkdir(parents=True, exist_ok=True)
    methods = asked.methods or list_methods()
    for row in list_rows(methods, asked.keeps, asked.lengths, asked.ways):
        path = asked.rows / row.name
        if path.exists():
            continue
        for number in range(asked.texts):
            haystack = make_haystack(paragraphs, tokenizer, row.length, asked.needles, number)
            method = None if row.method == WHOLE else METHODS[row.method](keep=row.keep, scope="prompt")
            opened = nullcontext() if method is None else method(model, vocabulary)
            row.right.append(ask(model, tokenizer, haystack, opened, row.way))
        write_json(path, asdict(row))
        print(f"{row.name}: {100 * fmean(sum(row.right, [])):.1f} %", flush=True)


def write(rows: Path, out: Path, name: str) -> None:
    """The page with the table of what is there. name: of the model. ValueError where nothing is."""
    found = [read_json_as(Row, path) for path in sorted(rows.glob("*.json"))]
    if not found:
        raise ValueError(f"{rows} has no rows; measure some first")
    columns = sorted({(row.length, row.way) for row in found})
    cells = {(row.method, row.keep, row.length, row.way): row.right for row in found}
    keys = sorted({(row.method, row.keep) for row in found}, key=lambda key: (key[0] != WHOLE, -key[1], key[0]))
    lines = [
        f"| method | kept | {' | '.join(f'{length:,} tokens, asked {way}' for length, way in columns)} |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for method, keep in keys:
        told = []
        for length, way in columns:
            right = cells.get((method, keep, length, way))
            if right is None:
                told.append("–")
                continue
            flat = [one for text in right for one in text]
            texts = [number for number, text in enumerate(right) for _ in text]
            low, high = find_interval(fmean(flat), count_independent(flat, texts))
            told.append(f"{100 * fmean(flat):.0f} ({100 * low:.0f}–{100 * high:.0f})")
        lines.append(f"| {method} | {keep:g} | {' | '.join(told)} |")
    counts = {(len(row.right), len(row.right[0])) for row in found}
    told = ", ".join(f"{texts} texts with {needles} needles each" for texts, needles in sorted(counts))
    head = (
        f"Per cent of numbers found, with 95% intervals: {told}. *After*: the text was evicted before a question was "
        "known; *with*: the question stands at the end of what is evicted. A row or a cell that is not here "
        "was not measured."
    )
    command = "Made by `python tools/bench_needle.py write`; `measure` goes on with what is missing."
    title = f"# Needles in a long text, {name}"
    write_text_atomically(out, "\n".join([title, "", head, "", *lines, "", command]) + "\n")


def read_numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("measure", "write"))
    parser.add_argument("--rows", type=Path, required=True, help="the folder of what is measured")
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a causal LM: folder or hub id")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--methods", nargs="*", help="by default every one of the cache that needs no training")
    parser.add_argument("--keeps", type=read_numbers, default=[0.5, 0.25, 0.125])
    parser.add_argument(
        "--lengths", type=lambda text: [int(part) for part in text.split(",")], default=[1024, 2048, 4096]
    )
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="of asking")
    parser.add_argument("--texts", type=int, default=25)
    parser.add_argument("--needles", type=int, default=4, help="in each text, and as many questions")
    parser.add_argument("--out", type=Path, default=Path("needle.md"))
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.methods or () if name not in list_methods()]
    if unknown:
        parser.error(f"--methods {unknown[0]}: choose from {', '.join(list_methods())}")
    try:
        measure(asked) if asked.work == "measure" else write(
            asked.rows, asked.out, f"{Path(asked.base).name} in {asked.precision}"
        )
    except ValueError as error:
        print(f"bench_needle: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
