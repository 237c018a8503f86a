"""Token compression: how many right answers each method loses and how much time it saves, beside baselines.

Questions are about pictures in a style that was never trained on, clips of concepts never trained on, and sentences
never heard, in the words of the training. For each method and share of kept tokens the table has

- the share of right answers (of words, for speech), and how often the answer is that of the whole model;
- the time to the first token and the tokens a second, scoring included, and memory;
- the share of right answers about pictures under small pixel noise, and under an attack on the scores.

The attack searches for pixels, each within `ATTACK` of the picture's own, for which the method keeps the most different
tokens. It tries random squares (Square Attack, arXiv 1912.00049), which needs no gradient. The whole model scores no
tokens: it gets the pixels that the search starts from.

Random pruning is the mean of five seeds. Methods that are trained with a decoder are left out. `blind` is the model
asked without the medium, the least that any method gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from unimodal.compression import BASELINES, METHODS, CompressionSession
from unimodal.data.words import is_right_answer
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.compression_table import CompressionFigures, CompressionRow, RowKind, make_markdown, plot
from unimodal.evaluation.compression_timing import measure_times
from unimodal.evaluation.judges import compute_word_error_rate
from unimodal.evaluation.pixel_attack import SquareChanges
from unimodal.evaluation.prepared import EVALUATION_STYLES, Clips, Pictures, Speech, sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.pipeline.compression import compress
from unimodal.pipeline.requests import count_answer_tokens, count_room
from unimodal.sequence.document import Audio, Document, Image, Part, Text, Turn, Video

DEFAULT_LIMIT = 48  # questions of each medium
KEEPS = (0.5, 0.25, 0.125)
SEEDS = 5  # of random pruning
ROBUST_KEEP, ROBUST_LIMIT = 0.25, 16
NOISE_STD = 2 / 255  # of a pixel in [0, 1]
LONG = 512  # codes of the timed prompts
ATTACK, QUERIES = 4 / 255, 16  # the largest change of a pixel in [0, 1], and the pictures tried
METHOD_NAMES = tuple(name for name, method in METHODS.items() if not method.is_learned)

#: answer, number of the question → how right it is, between 0 and 1
Judge: TypeAlias = Callable[[str, int], float]
#: the open context of a method; None for the model without compression
Context: TypeAlias = AbstractContextManager[CompressionSession | None]
#: (model, seed of the method, or None for its default) → context
OpenContext: TypeAlias = Callable[[Unimodal, int | None], Context]
#: figures by name; None if there is nothing to measure
Measured: TypeAlias = dict[str, float | None]


@dataclass(frozen=True)
class Questions:
    """Questions about one medium, and the judge of their answers."""

    parts: list[Part]
    judge: Judge
    question: str

    @property
    def documents(self) -> list[Document]:
        return [Document([Turn("user", [part, Text(self.question)])]) for part in self.parts]

    def score(self, answers: Sequence[str]) -> float:
        """The mean of the judge's scores, in per cent."""
        return round(100 * fmean(self.judge(answer, i) for i, answer in enumerate(answers)), 2)


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> CompressionFigures:
    number = limit or DEFAULT_LIMIT
    pictures = Pictures.load(data_folder)
    rows = sample(pictures.find_rows(EVALUATION_STYLES, "train"), number, seed)
    media = {
        "picture": ask_about_pictures(model, pictures, rows),
        "clip": ask_about_clips(model, Clips.load(data_folder), number, seed),
        "speech": ask_about_speech(model, Speech.load(data_folder), number, seed),
    }
    perturbed = PerturbedPictures(model, pictures, rows[:ROBUST_LIMIT], seed)
    blind = {name: questions.score(answer_blindly(model, questions, seed)) for name, questions in media.items()}
    whole = {name: answer_questions(model, questions, seed) for name, questions in media.items()}
    configs = list(list_configs())
    rows_out: list[CompressionRow] = []
    for done, (name, keep, context) in enumerate(configs):
        report(f"compressing by {name}", done, len(configs))
        seeds = range(SEEDS) if name == "random" else (None,)
        tries = [_try_method(model, context, own, media, whole, perturbed, seed, keep) for own in seeds]
        row = {"method": name, "keep": keep, "kind": find_kind(name), **_average(tries)}
        rows_out.append(cast(CompressionRow, row))
    return {
        "questions": {name: len(questions.parts) for name, questions in media.items()},
        "blind": blind,
        "right_of_whole_model": {name: media[name].score(answers) for name, answers in whole.items()},
        "noise_std": round(NOISE_STD, 5),
        "attack_most": round(ATTACK, 5),
        "attack_queries": QUERIES,
        "timed_codes": count_codes(make_timed_prompts(model, media["clip"], 1)[0]),
        "rows": rows_out,
    }


def make_table(name: str, figures: CompressionFigures) -> str:
    """The Markdown table that is printed in place of a list of figures."""
    return f"{name}\n\n{make_markdown(figures)}"


def make_files(figures: CompressionFigures) -> dict[str, str]:
    """Texts to write beside the report, by the end of the file's name."""
    return {"_compression.md": make_markdown(figures) + "\n", "_compression.svg": plot(figures)}


# ---- one row


def list_configs() -> Iterator[tuple[str, float, OpenContext]]:
    """(name, share kept, context): the whole model by the engine's step, by its own forward, and then every method."""
    yield "whole model", 1.0, lambda model, seed: nullcontext()
    yield "whole model, plain forward", 1.0, lambda model, seed: compress(model, "stride", keep=1.0)
    for name in METHOD_NAMES:
        for keep in KEEPS:
            yield name, keep, _make_context(name, keep)


def _make_context(name: str, keep: float) -> OpenContext:
    def open_context(model: Unimodal, seed: int | None) -> Context:
        return compress(model, name, keep=keep, **({} if seed is None else {"seed": seed}))

    return open_context


def find_kind(name: str) -> RowKind:
    """The kind of the row of a method."""
    if name not in METHODS:
        return "whole"
    return "baseline" if name in BASELINES else METHODS[name].acts_on


def _try_method(
    model: Unimodal,
    context: OpenContext,
    method_seed: int | None,
    media: Mapping[str, Questions],
    whole: Mapping[str, list[str]],
    perturbed: PerturbedPictures,
    seed: int,
    keep: float,
) -> Measured:
    """All figures of one method with one seed. whole: the whole model's answers by medium."""
    figures: Measured = {}
    same = []
    with context(model, method_seed):
        for name, questions in media.items():
            answers = answer_questions(model, questions, seed)
            figures[f"{name}_percent"] = questions.score(answers)
            same += [a == b for a, b in zip(answers, whole[name], strict=True)]
    figures["same_answer_percent"] = round(100 * fmean(same), 2)
    with context(model, method_seed) as session:
        figures |= measure_times(model, make_timed_prompts(model, media["clip"]), session)
    if keep in (ROBUST_KEEP, 1.0):
        with context(model, method_seed) as session:
            figures |= perturbed.measure(media["picture"], session)
    return figures


def _average(tries: Sequence[Measured]) -> dict[str, float | list[float] | None]:
    """The mean over seeds, and the range of the share of right answers about pictures."""
    mean: dict[str, float | list[float] | None] = {}
    for name in tries[0]:
        values = [value for one in tries if (value := one[name]) is not None]
        mean[name] = round(fmean(values), 3) if values else None
    if len(tries) > 1:
        picture = [one["picture_percent"] or 0.0 for one in tries]
        mean["picture_percent_range"] = [min(picture), max(picture)]
    return mean


def make_timed_prompts(model: Unimodal, questions: Questions, number: int = 8) -> list[Document]:
    """Prompts of several media and a question, with at least `LONG` codes if the model has room for them."""
    documents = []
    for first in range(number):
        parts: list[Part] = []
        codes = 0
        while codes < LONG:
            part = questions.parts[(first + len(parts)) % len(questions.parts)]
            longer = Document([Turn("user", [*parts, part, Text(questions.question)])])
            if parts and count_room(model, longer) < count_answer_tokens(model, "text"):
                break
            parts.append(part)
            codes = count_codes(Document([Turn("user", parts)]))
        documents.append(Document([Turn("user", [*parts, Text(questions.question)])]))
    return documents


def count_codes(document: Document) -> int:
    """The number of codes in a document's media."""
    return sum(len(part.codes) for part in document.parts if not isinstance(part, Text) and part.codes is not None)


# ---- questions


def ask_about_pictures(model: Unimodal, pictures: Pictures, rows: np.ndarray) -> Questions:
    """Which thing a picture shows."""
    concepts = pictures.take_concepts(rows)
    codes = model.coder.encode("image", list(pictures.take(rows)))
    return Questions(
        [Image(codes=one) for one in codes],
        lambda answer, i: float(is_right_answer(answer, concepts[i])),
        model.wording.ask("image"),
    )


def ask_about_clips(model: Unimodal, clips: Clips, number: int, seed: int, split: str = "heldout") -> Questions:
    """Which thing a clip shows. split: "heldout", or "train" for clips that were trained on."""
    rows = sample(clips.find_rows(split), number, seed)
    concepts = clips.take_concepts(rows)
    codes = model.coder.encode("video", list(clips.take(rows)))
    return Questions(
        [Video(codes=one) for one in codes],
        lambda answer, i: float(is_right_answer(answer, concepts[i])),
        model.wording.ask("video"),
    )


def ask_about_speech(model: Unimodal, speech: Speech, number: int, seed: int) -> Questions:
    """What a voice says."""
    voices = speech.choose_unseen(number, seed, model.coder.find_max_seconds("audio"))
    items = [item for at in range(number) for own in voices.values() for item in own[at : at + 1]][:number]
    codes = model.coder.encode("audio", [speech.take(item) for item in items])
    return Questions(
        [Audio(codes=one) for one in codes],
        lambda answer, i: max(0.0, 1 - compute_word_error_rate([items[i].text], [answer]) / 100),
        model.wording.ask("audio"),
    )


def answer_questions(model: Unimodal, questions: Questions, seed: int, tokens: int | None = None) -> list[str]:
    """The answers in words, written token by token. tokens: the most of one."""
    return answer_texts(model, questions.documents, seed, _ignore_progress, "plain", tokens)


def answer_blindly(model: Unimodal, questions: Questions, seed: int, tokens: int | None = None) -> list[str]:
    """The answers to the question without a medium. tokens: the most of one."""
    bare = Document([Turn("user", [Text(questions.question)])])
    return answer_texts(model, [bare] * len(questions.parts), seed, _ignore_progress, "plain", tokens)


class PerturbedPictures:
    """Pictures with small noise, the same for all methods, and pictures changed so that a method keeps other tokens.

    rows: int [B], of the pictures.
    """

    def __init__(self, model: Unimodal, pictures: Pictures, rows: np.ndarray, seed: int) -> None:
        self.model, self.seed = model, seed
        self.clean = pictures.take(rows)  # [B, 3, H, W]
        noise = torch.randn(self.clean.shape, generator=torch.Generator().manual_seed(seed))
        self.parts, self.noisy = self._encode(self.clean), self._encode((self.clean + NOISE_STD * noise).clamp(0, 1))

    def _encode(self, pictures: Tensor) -> list[Part]:
        return [Image(codes=codes) for codes in self.model.coder.encode("image", list(pictures))]

    def measure(self, questions: Questions, session: CompressionSession | None) -> Measured:
        """The shares of right answers under noise and under attack, and of kept tokens that are kept under attack.

        session: None for the whole model.
        """
        figures: Measured = {"noise_percent": self._score(questions, self.noisy)}
        kept = None if session is None else self._find_kept(questions, self.parts, session)
        changes = SquareChanges(ATTACK, torch.Generator().manual_seed(self.seed + 1))  # the same for all methods
        if kept is None and session is not None:  # no tokens are chosen: they are merged, or left to the cache
            return figures | {"attack_percent": None, "kept_alike_percent": None}
        change = changes.draw_stripes(self.clean)
        parts = self._change(change)
        if kept is None or session is None:
            return figures | {"attack_percent": self._score(questions, parts), "kept_alike_percent": None}
        alike = self._compare_kept(kept, parts, questions, session)
        for query in range(1, QUERIES):
            tried = changes.move_squares(change, query, QUERIES)
            tried_parts = self._change(tried)
            found = self._compare_kept(kept, tried_parts, questions, session)
            better = found < alike
            change = torch.where(better[:, None, None, None], tried, change)
            alike = torch.where(better, found, alike)
            parts = [new if took else old for new, old, took in zip(tried_parts, parts, better.tolist(), strict=True)]
        figures["attack_percent"] = self._score(questions, parts)
        figures["kept_alike_percent"] = round(100 * float(alike.mean()), 2)
        return figures

    def _change(self, change: Tensor) -> list[Part]:
        """The pictures with change [B, 3, H, W] added."""
        return self._encode((self.clean + change).clamp(0, 1))

    def _compare_kept(
        self, kept: list[set[int]], parts: list[Part], questions: Questions, session: CompressionSession
    ) -> Tensor:
        """The share [B] of the clean pictures' kept tokens that are kept in these pictures too."""
        found = self._find_kept(questions, parts, session)
        assert found is not None
        return torch.tensor([len(a & b) / len(a) if a else 1.0 for a, b in zip(kept, found, strict=True)])

    def _score(self, questions: Questions, parts: list[Part]) -> float:
        """The judge's mean score of answers about these pictures, in per cent."""
        asked = replace(questions, parts=parts)
        return asked.score(answer_questions(self.model, asked, self.seed))

    def _find_kept(self, questions: Questions, parts: list[Part], session: CompressionSession) -> list[set[int]] | None:
        """The places of each picture's tokens that reached the last site; None if the method chooses no tokens."""
        found = []
        for document in replace(questions, parts=parts).documents:
            self.model.answers([document], to="text", tokens=2, decoder="plain")
            if not session.kept:
                return None
            found.append(set(session.kept[0]))
        return found


def _ignore_progress(text: str, done: int, total: int | None) -> None:
    """Progress within a method, which is not shown: the suite reports method by method."""


SUITE = Suite(run, make_table, make_files)
