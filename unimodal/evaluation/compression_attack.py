"""Pictures for which only the compressed model fails: a compression-aware attack (after CAA, arXiv 2601.12042).

The attack changes every pixel by at most `strength`, so that the whole model goes on giving the right answer and the
model under a method gives it the least chance. What the paper does with gradients of an encoder is a search here: codes
have none. It changes random squares, one after another (`pixel_attack.py`), keeps a change only if the whole model
holds, and never sees a defence. Only pictures that the whole model names are attacked.

Defences, from the cheapest on, each tried on the attacked and on the clean pictures:

- `even`: prune evenly at the same share, which no score leads astray;
- `jpeg`: code the picture behind a JPEG of quality 75;
- `check`: read the whole picture where the answer is less sure than nine of ten answers about clean pictures were;
- `double`: keep twice as many tokens.

A defence held if the attacked pictures are named right nine times for ten that the method names clean, at least.

Shapes: B pictures, H × W pixels in [0, 1].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from unimodal.data.words import is_right_answer
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.pixel_attack import SquareChanges
from unimodal.evaluation.prepared import EVALUATION_STYLES, Pictures, sample
from unimodal.generation.likelihood import list_allowed_rows
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Image, Part, Text, Turn

DEFENCES = ("even", "jpeg", "check", "double")  # the cheapest first
QUALITY = 75
SURE = 0.1  # of clean answers, the share that is less sure than what is read again
HELD = 0.9

#: opens the context of a method
OpenMethod: TypeAlias = Callable[[], AbstractContextManager[object]]


class Chance(NamedTuple):
    """Of an answer to each of B prompts: the logarithm of its probability a token, and whether it would be given.

    Both are over the rows that an answer in words may hold, as an engine draws."""

    log: Tensor  # float32 [B]
    given: Tensor  # bool [B]


@dataclass(frozen=True)
class Outcome:
    """Whether each picture is named right. clean, random, attacked: by the compressed model, as they are, changed at
    random and attacked. whole: the whole model, attacked. defended, kept: by defence, attacked and clean. again: the
    share of pictures that `check` reads again, attacked and clean."""

    method: str
    keep: float
    strength: float
    queries: int
    clean: list[bool]
    random: list[bool]
    attacked: list[bool]
    whole: list[bool]
    defended: dict[str, list[bool]] = field(default_factory=dict)
    kept: dict[str, list[bool]] = field(default_factory=dict)
    again: list[float] = field(default_factory=list)

    @property
    def gap(self) -> float:
        """By how many points more the attack costs the compressed model than the whole one, which was right on all."""
        lost = np.mean(self.clean) - np.mean(self.attacked)
        return float(100 * (lost - (1 - np.mean(self.whole))))

    def find_cheapest(self) -> str:
        """The first of `DEFENCES` that held; "" where none did, "none needed" where the attack did not succeed."""
        needed = HELD * sum(self.clean)
        if sum(self.attacked) >= needed:
            return "none needed"
        return next((name for name in DEFENCES if name in self.defended and sum(self.defended[name]) >= needed), "")


class AttackedPictures:
    """Pictures of things in a style that was never trained on, which the whole model names.

    Raises ValueError for missing data, and where the model names none of them.
    """

    def __init__(self, model: Unimodal, pictures: Pictures, number: int, seed: int) -> None:
        self.model, self.seed, self.question = model, seed, model.wording.ask("image")
        rows = sample(pictures.find_rows(EVALUATION_STYLES, "train"), 4 * number, seed)
        clean, concepts = pictures.take(rows), pictures.take_concepts(rows)  # [B, 3, H, W]
        answers = self.answer(self.encode(clean))
        named = [i for i, answer in enumerate(answers) if is_right_answer(answer, concepts[i])][:number]
        if not named:
            raise ValueError(f"the model names none of {len(rows)} pictures; there is nothing to attack")
        self.clean, self.concepts = clean[named], [concepts[i] for i in named]
        self.answers = [answers[i] for i in named]

    def __len__(self) -> int:
        return len(self.clean)

    def encode(self, pictures: Tensor) -> list[Part]:
        return [Image(codes=codes) for codes in self.model.coder.encode("image", list(pictures))]

    def ask(self, part: Part) -> Document:
        return Document([Turn("user", [part, Text(self.question)])])

    def answer(self, parts: Sequence[Part]) -> list[str]:
        return answer_texts(self.model, [self.ask(part) for part in parts], self.seed, lambda *_: None, "plain")

    def judge(self, answers: Sequence[str]) -> list[bool]:
        return [bool(is_right_answer(answer, concept)) for answer, concept in zip(answers, self.concepts, strict=True)]

    def name(self, pictures: Tensor, opened: AbstractContextManager[object]) -> list[bool]:
        """Whether each picture is named right in a context."""
        parts = self.encode(pictures)
        with opened:
            return self.judge(self.answer(parts))

    def weigh(self, parts: Sequence[Part], answers: Sequence[str]) -> Chance:
        """The chance of an answer to each prompt, read as an engine reads: the prompt, and then token by token."""
        model = self.model
        prompts, wanted = [], []
        for part, answer in zip(parts, answers, strict=True):
            document = self.ask(part)
            prompts.append(model.read(model.template.render(document, add_generation_prompt=True)))
            said = Document([*document.turns, Turn("assistant", [Text(answer)])])
            wanted.append(model.read(model.template.render(said))[len(prompts[-1]) :])
        return _read(model, prompts, wanted)


@torch.inference_mode()
def _read(model: Unimodal, prompts: list[list[int]], wanted: list[list[int]]) -> Chance:
    engine = model.engine
    decoder, most = engine.decoder, max(map(len, wanted))
    rows = [list_allowed_rows(engine.vocabulary, *pair, ("text",)) for pair in zip(prompts, wanted, strict=True)]
    only = ((engine.pad_id, engine.pad_id + 1),)  # behind the end of a shorter answer
    hidden = decoder.prefill(prompts, engine.pad_id, max(map(len, prompts)) + most)  # [B, D]
    ids = [row + [engine.pad_id] * (most - len(row)) for row in wanted]
    total, given = hidden.new_zeros(len(ids)), torch.ones(len(ids), dtype=torch.bool, device=hidden.device)
    for at in range(most):
        allowed = [own[at] if at < len(own) else only for own in rows]
        logs, best = engine.head.score(hidden, [row[at] for row in ids], allowed)
        total, given = total + logs, given & best
        if at + 1 < most:
            hidden = decoder.step(torch.tensor([row[at : at + 1] for row in ids], device=hidden.device))
    return Chance(total / total.new_tensor([len(row) for row in wanted]), given)


def search(asked: AttackedPictures, open_method: OpenMethod, strength: float, queries: int) -> tuple[Tensor, Tensor]:
    """The attacked pictures [B, 3, H, W], and the same changed at random by as much.

    A picture for which nothing was found stays as it is.
    """
    changes = SquareChanges(strength, torch.Generator().manual_seed(asked.seed))
    random = changes.draw_stripes(asked.clean)
    change = torch.zeros_like(asked.clean)  # a whole picture of noise would cost the whole model its answer too
    with open_method():
        least = asked.weigh(asked.encode(asked.clean), asked.answers).log
    for query in range(queries):
        tried = changes.move_squares(change, query, queries)
        parts = asked.encode((asked.clean + tried).clamp(0, 1))
        with open_method():
            log = asked.weigh(parts, asked.answers).log
        better = log < least
        tempting = better.nonzero()[:, 0].tolist()
        if tempting:  # the whole model reads only those
            given = asked.weigh([parts[i] for i in tempting], [asked.answers[i] for i in tempting]).given
            better[tempting] = given
        change = torch.where(better.cpu()[:, None, None, None], tried, change)
        least = torch.where(better, log, least)
    return (asked.clean + change).clamp(0, 1), (asked.clean + random).clamp(0, 1)


def attack(
    asked: AttackedPictures, method: str, keep: float, open_config: Callable[[str, float], OpenMethod],
    strength: float, queries: int,
) -> Outcome:  # fmt: skip
    """Attack one method at one share and try every defence. open_config: (method, share) → its context."""
    own = open_config(method, keep)
    found, random = search(asked, own, strength, queries)
    clean, attacked = asked.name(asked.clean, own()), asked.name(found, own())
    whole = asked.name(found, nullcontext())
    defended: dict[str, list[bool]] = {}
    kept: dict[str, list[bool]] = {}
    for defence in DEFENCES:
        if defence == "even":
            sides = [(pictures, open_config("stride", keep)) for pictures in (found, asked.clean)]
        elif defence == "jpeg":
            sides = [(compress_pictures(pictures), own) for pictures in (found, asked.clean)]
        elif defence == "double":
            sides = [(pictures, open_config(method, min(1.0, 2 * keep))) for pictures in (found, asked.clean)]
        else:
            continue
        defended[defence], kept[defence] = (asked.name(pictures, opened()) for pictures, opened in sides)
    checked = check(asked, [asked.clean, found], own)
    (kept["check"], again_clean), (defended["check"], again) = checked
    return Outcome(
        method, keep, strength, queries, clean, asked.name(random, own()), attacked, whole, defended, kept,
        [again, again_clean],
    )  # fmt: skip


def check(asked: AttackedPictures, sets: Sequence[Tensor], own: OpenMethod) -> list[tuple[list[bool], float]]:
    """Of the clean pictures and of others: whether each is named right when unsure answers are given again by the whole
    model, and the share of those."""
    bound: float | None = None
    results = []
    for pictures in sets:
        parts = asked.encode(pictures)
        with own():
            answers = asked.answer(parts)
            sure = asked.weigh(parts, answers).log
        if bound is None:  # the clean ones come first
            bound = float(sure.quantile(SURE))
        unsure = (sure < bound).tolist()
        again = asked.answer([part for part, one in zip(parts, unsure, strict=True) if one]) if any(unsure) else []
        told = iter(again)
        right = asked.judge([next(told) if one else answer for one, answer in zip(unsure, answers, strict=True)])
        results.append((right, float(np.mean(unsure))))
    return results


def compress_pictures(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] as they come out of a JPEG of quality 75."""
    out = []
    for picture in pictures:
        pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        with io.BytesIO() as held:
            PILImage.fromarray(pixels).save(held, "JPEG", quality=QUALITY)
            held.seek(0)
            read = np.asarray(PILImage.open(held).convert("RGB"))
        out.append(torch.from_numpy(read.copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(out)
