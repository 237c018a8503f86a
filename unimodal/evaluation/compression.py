"""Token compression: what every method costs in answers and saves in time, beside the baselines at equal tokens.

Questions are about pictures in a style that was never trained on, clips of concepts never trained on, and sentences
never heard, in the words of the training. For each method and share of tokens kept: the share of right answers (of
words, for speech), how often the answer is that of the whole model, time to the first token and tokens a second with
the scoring inside, memory; on pictures also under small pixel noise, and under an attack on the scores: a search for
the pixels, all within `ATTACK` of the picture's own, after which the method keeps the most different tokens (the random
squares of Square Attack, arXiv 1912.00049, which needs no gradient). For the whole model, which scores nothing, it is
the search's starting point. Random pruning is the mean of five seeds. `blind` is the model asked without the medium:
what any method gets for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimodal.compression import BASELINES, METHODS
from unimodal.data.words import is_right_answer
from unimodal.evaluation import Report
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.compression_table import markdown, plot
from unimodal.evaluation.compression_timing import timed
from unimodal.evaluation.judges import word_error_rate
from unimodal.evaluation.prepared import EVALUATION_STYLES, Clips, Pictures, Speech, sample
from unimodal.pipeline import Unimodal
from unimodal.pipeline.compression import compress
from unimodal.pipeline.requests import count_answer_tokens, count_room
from unimodal.sequence.document import Audio, Document, Image, Part, Text, Turn, Video

DEFAULT_LIMIT = 48  # questions of each medium
KEEPS = (0.5, 0.25, 0.125)
SEEDS = 5  # of random pruning
ROBUST_KEEP, ROBUST_LIMIT = 0.25, 16
NOISE_STD = 2 / 255  # of a pixel in [0, 1]
LONG = 512  # codes of the prompts that are timed
ATTACK, QUERIES = 4 / 255, 16  # the most that a pixel is changed by, and pictures tried
SQUARES = (0.3, 0.05)  # share of the picture that a first and a last change covers
METHOD_NAMES = tuple(METHODS)

#: answer, number of the question → how right it is, between 0 and 1
Judge = Callable[[str, int], float]


@dataclass(frozen=True)
class Questions:
    """Questions about one medium, and who judges the answers."""

    parts: list[Part]
    judge: Judge
    question: str

    @property
    def documents(self) -> list[Document]:
        return [Document([Turn("user", [part, Text(self.question)])]) for part in self.parts]

    def score(self, answers: Sequence[str]) -> float:
        """Per cent."""
        return round(100 * fmean(self.judge(answer, i) for i, answer in enumerate(answers)), 2)


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    number = limit or DEFAULT_LIMIT
    pictures = Pictures.load(data_folder)
    rows = sample(pictures.rows(EVALUATION_STYLES, "train"), number, seed)
    media = {
        "picture": _about_pictures(model, pictures, rows),
        "clip": _about_clips(model, Clips.load(data_folder), number, seed),
        "speech": _about_speech(model, Speech.load(data_folder), number, seed),
    }
    noisy = _Perturbed(model, pictures, rows[:ROBUST_LIMIT], seed)
    blind = {name: questions.score(_blind(model, questions, seed)) for name, questions in media.items()}
    whole = {name: answer_texts(model, questions.documents, seed, _quiet, "plain") for name, questions in media.items()}
    configs = list(_configs())
    rows_out = []
    for done, (name, keep, context) in enumerate(configs):
        report(f"compressing by {name}", done, len(configs))
        seeds = range(SEEDS) if name == "random" else (None,)
        tries = [_tried(model, context, own, media, whole, noisy, seed, keep) for own in seeds]
        rows_out.append({"method": name, "keep": keep, "kind": _kind(name), **_mean(tries)})
    return {
        "questions": {name: len(questions.parts) for name, questions in media.items()},
        "blind": blind,
        "right_of_whole_model": {name: media[name].score(answers) for name, answers in whole.items()},
        "noise_std": round(NOISE_STD, 5),
        "attack_most": round(ATTACK, 5),
        "attack_queries": QUERIES,
        "timed_codes": num_codes(timed_prompts(model, media["clip"], 1)[0]),
        "rows": rows_out,
    }


def table(figures: Mapping[str, Any]) -> str:
    """What is printed in place of the list of figures."""
    return f"compression\n\n{markdown(figures)}"


def files(figures: Mapping[str, Any]) -> dict[str, str]:
    """What is written beside the report, by the end of its name."""
    return {"_compression.md": markdown(figures) + "\n", "_compression.svg": plot(figures)}


# ---- one row


def _configs() -> Iterator[tuple[str, float, Callable[[Unimodal, int | None], AbstractContextManager]]]:
    """(name, share kept, context): the whole model with the engine's own step and with its plain forward, then each."""
    yield "whole model", 1.0, lambda model, seed: nullcontext()
    yield "whole model, plain forward", 1.0, lambda model, seed: compress(model, "stride", keep=1.0)
    for name in METHOD_NAMES:
        for keep in KEEPS:
            yield name, keep, _context(name, keep)


def _context(name: str, keep: float) -> Callable[[Unimodal, int | None], AbstractContextManager]:
    def open_context(model: Unimodal, seed: int | None) -> AbstractContextManager:
        return compress(model, name, keep=keep, **({} if seed is None else {"seed": seed}))

    return open_context


def _kind(name: str) -> str:
    if name not in METHODS:
        return "whole"
    return "baseline" if name in BASELINES else METHODS[name].acts_on


def _tried(
    model: Unimodal,
    context: Callable[[Unimodal, int | None], AbstractContextManager],
    method_seed: int | None,
    media: Mapping[str, Questions],
    whole: Mapping[str, list[str]],
    noisy: _Perturbed,
    seed: int,
    keep: float,
) -> dict[str, float | None]:
    """All figures of one method with one seed."""
    figures: dict[str, float | None] = {}
    same = []
    with context(model, method_seed):
        for name, questions in media.items():
            answers = answer_texts(model, questions.documents, seed, _quiet, "plain")
            figures[f"{name}_percent"] = questions.score(answers)
            same += [a == b for a, b in zip(answers, whole[name], strict=True)]
    figures["same_answer_percent"] = round(100 * fmean(same), 2)
    with context(model, method_seed) as session:
        figures |= timed(model, timed_prompts(model, media["clip"]), session)
    if keep in (ROBUST_KEEP, 1.0):
        with context(model, method_seed) as session:
            figures |= noisy.figures(media["picture"], session)
    return figures


def _mean(tries: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The mean over seeds, and of the answers the spread."""
    mean: dict[str, Any] = {}
    for name in tries[0]:
        values = [value for one in tries if (value := one[name]) is not None]
        mean[name] = round(fmean(values), 3) if values else None
    if len(tries) > 1:
        picture = [one["picture_percent"] or 0.0 for one in tries]
        mean["picture_percent_range"] = [min(picture), max(picture)]
    return mean


def timed_prompts(model: Unimodal, questions: Questions, number: int = 8) -> list[Document]:
    """Prompts of several media and one question, of at least `LONG` codes where the model has room for them."""
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
            codes = num_codes(Document([Turn("user", parts)]))
        documents.append(Document([Turn("user", [*parts, Text(questions.question)])]))
    return documents


def num_codes(document: Document) -> int:
    return sum(len(part.codes) for part in document.parts if not isinstance(part, Text) and part.codes is not None)


# ---- questions


def _about_pictures(model: Unimodal, pictures: Pictures, rows: np.ndarray) -> Questions:
    concepts = [pictures.concepts.entries[concept] for concept in pictures.concept[rows]]
    codes = model.coder.encode("image", list(pictures.tensors(rows)))
    return Questions(
        [Image(codes=one) for one in codes],
        lambda answer, i: float(is_right_answer(answer, concepts[i])),
        model.wording.ask("image"),
    )


def _about_clips(model: Unimodal, clips: Clips, number: int, seed: int) -> Questions:
    rows = sample(clips.rows("heldout"), number, seed)
    concepts = [clips.concepts.entries[concept] for concept in clips.concept[rows]]
    codes = model.coder.encode("video", list(clips.tensors(rows)))
    return Questions(
        [Video(codes=one) for one in codes],
        lambda answer, i: float(is_right_answer(answer, concepts[i])),
        model.wording.ask("video"),
    )


def _about_speech(model: Unimodal, speech: Speech, number: int, seed: int) -> Questions:
    voices = speech.unseen(number, seed, model.coder.find_max_seconds("audio"))
    items = [item for at in range(number) for own in voices.values() for item in own[at : at + 1]][:number]
    codes = model.coder.encode("audio", [speech.sound(item) for item in items])
    return Questions(
        [Audio(codes=one) for one in codes],
        lambda answer, i: max(0.0, 1 - word_error_rate([items[i]["text"]], [answer]) / 100),
        model.wording.ask("audio"),
    )


def _blind(model: Unimodal, questions: Questions, seed: int) -> list[str]:
    """The answers to the question alone."""
    bare = Document([Turn("user", [Text(questions.question)])])
    return answer_texts(model, [bare] * len(questions.parts), seed, _quiet, "plain")


class _Perturbed:
    """Pictures with small noise, drawn once for all methods, and what changes them most in a method's eyes."""

    def __init__(self, model: Unimodal, pictures: Pictures, rows: np.ndarray, seed: int) -> None:
        self.model, self.seed = model, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.clean = pictures.tensors(rows)  # [B, 3, H, W]
        noise = torch.randn(self.clean.shape, generator=self.generator)
        self.parts, self.noisy = self._parts(self.clean), self._parts((self.clean + NOISE_STD * noise).clamp(0, 1))

    def _parts(self, pictures: Tensor) -> list[Part]:
        return [Image(codes=codes) for codes in self.model.coder.encode("image", list(pictures))]

    def figures(self, questions: Questions, session: Any) -> dict[str, float | None]:
        """Right answers under noise and under attack, and the share of the kept tokens that the attack leaves kept."""
        figures: dict[str, float | None] = {"noise_percent": self._right(questions, self.noisy)}
        kept = self._kept(questions, self.parts, session)
        self.generator.manual_seed(self.seed + 1)  # the same tries for all methods
        if kept is None and hasattr(session, "kept"):  # no tokens go before the decoder: merged, or left to the cache
            return figures | {"attack_percent": None, "kept_alike_percent": None}
        change = ATTACK * self._signs(len(self.clean), 3, 1, self.clean.shape[3]).expand_as(self.clean)  # stripes
        if kept is None:
            return figures | {
                "attack_percent": self._right(questions, self._changed(change)),
                "kept_alike_percent": None,
            }
        parts = self._changed(change)
        alike = self._alike(kept, parts, questions, session)
        for query in range(1, QUERIES):
            tried = self._square(change, SQUARES[0] * (SQUARES[1] / SQUARES[0]) ** (query / (QUERIES - 1)))
            tried_parts = self._changed(tried)
            found = self._alike(kept, tried_parts, questions, session)
            better = found < alike
            change = torch.where(better[:, None, None, None], tried, change)
            alike = torch.where(better, found, alike)
            parts = [new if took else old for new, old, took in zip(tried_parts, parts, better.tolist(), strict=True)]
        figures["attack_percent"] = self._right(questions, parts)
        figures["kept_alike_percent"] = round(100 * float(alike.mean()), 2)
        return figures

    def _changed(self, change: Tensor) -> list[Part]:
        return self._parts((self.clean + change).clamp(0, 1))

    def _signs(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.generator) * 2.0 - 1

    def _square(self, change: Tensor, share: float) -> Tensor:
        """change [B, 3, H, W] with a square of this share of each picture moved to other corners of the ball."""
        height, width = change.shape[2:]
        side = max(1, round((share * height * width) ** 0.5))
        changed = change.clone()
        tops = torch.randint(0, max(1, height - side + 1), (len(change),), generator=self.generator).tolist()
        lefts = torch.randint(0, max(1, width - side + 1), (len(change),), generator=self.generator).tolist()
        for one, top, left, signs in zip(changed, tops, lefts, self._signs(len(change), 3, 1, 1), strict=True):
            one[:, top : top + side, left : left + side] = ATTACK * signs
        return changed

    def _alike(self, kept: list[set[int]], parts: list[Part], questions: Questions, session: Any) -> Tensor:
        """The share [B] of the tokens kept of the clean pictures that are kept of these too."""
        found = self._kept(questions, parts, session)
        assert found is not None
        return torch.tensor([len(a & b) / len(a) if a else 1.0 for a, b in zip(kept, found, strict=True)])

    def _right(self, questions: Questions, parts: list[Part]) -> float:
        asked = Questions(parts, questions.judge, questions.question)
        return asked.score(answer_texts(self.model, asked.documents, self.seed, _quiet, "plain"))

    def _kept(self, questions: Questions, parts: list[Part], session: Any) -> list[set[int]] | None:
        """The places of the tokens that went furthest of every picture, or None where the tokens all stay."""
        if not hasattr(session, "kept"):  # the whole model
            return None
        found = []
        for document in Questions(parts, questions.judge, questions.question).documents:
            self.model.answers([document], to="text", tokens=2, decoder="plain")
            if not session.kept:
                return None
            found.append(set(session.kept[0]))
        return found


def _quiet(text: str, done: int, total: int | None) -> None:
    """The suite reports method by method."""
