"""Masks and boxes of scenes: what lies under one, and where the thing is that words single out.

    mask_named, box_named   the share of regions whose name is in the answer, in per cent with Wilson's 95% interval
    mask, box               intersection over union of the answer and what was drawn: the mean over questions (miou,
                            half of its 95% interval is miou_error), summed areas (ciou), the share of at least a half;
                            `other_things` is the miou of the mask or box that was wanted for another question, which is
                            what shape and size alone give, `through_codes` that of what was wanted and its own codes,
                            which no answer can do much better than
    all_at_once             the things that are both named and marked (IoU of at least a half) in the one answer

For scenes of what was trained on (`seen`), put together anew (`combination`), of concepts that were never seen
(`concept`) and in a style that was never seen (`style`). Masks are compared at the size of the pictures. A model
without masks, or without boxes, is asked about the other alone.

Shapes: masks bool [64, 64], boxes float [4].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from unimodal.coder.outputs import Output
from unimodal.data.grounded.coded import CodedScenes, PlannedScenes, code_scenes
from unimodal.data.grounded.regions import Region, compute_iou, compute_overlap, find_box
from unimodal.data.grounded.tasks import (
    GroundedExchange,
    make_document,
    name_box,
    name_mask,
    refer_to_box,
    refer_to_mask,
    tell_all,
)
from unimodal.data.scenes.scene import SIDE, Kind, Thing
from unimodal.evaluation.asking import answer_texts
from unimodal.evaluation.prepared import sample
from unimodal.evaluation.prepared_scenes import TESTED, is_thing_named
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document

DEFAULT_LIMIT = 100  # pictures of a split
KINDS: tuple[Kind, ...] = ("one", "count", "place", "pair")
MEDIA = ("mask", "box")
NUM_EXAMPLES = 4
HALF = 0.5  # the IoU from which an answer counts as found
ALL_TOKENS = 160  # that an answer of names and masks may have


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    media = [name for name in MEDIA if name in model.vocabulary.media]
    if not media:  # no error: `all` is asked of models without them
        return {"not_measured": f"{model.folder.name} has neither masks nor boxes; see recipes/train_grounded.py"}
    planned = PlannedScenes.load(data_folder)
    size = model.coder.get_tokenizer("mask").picture_size if "mask" in media else None
    figures: dict[str, object] = {"judge": "the alpha channels of what was drawn"}
    for split in TESTED:
        rows = sample(np.array(planned.find_rows(split, KINDS), np.int64), limit or DEFAULT_LIMIT, seed).tolist()
        if not rows:
            continue
        scenes = code_scenes(
            planned, rows, model.coder.encode, media, None if size is None else size[0],
            lambda done, total: report("coding scenes", done, total),
        )  # fmt: skip
        found: dict[str, object] = {}
        for name in media:
            found[f"{name}_named"] = measure_naming(model, scenes, name, seed, report)
            found[name] = measure_places(model, scenes, name, seed, report)
        if "mask" in media:
            found["all_at_once"] = measure_all(model, scenes, seed, report)
        figures[split] = found
    return figures


def measure_naming(
    model: Unimodal, scenes: CodedScenes, medium: str, seed: int, report: ReportProgress
) -> dict[str, object]:
    """The share of regions that are named, one question each."""
    task = name_mask if medium == "mask" else name_box
    asked = [(item, exchange) for item in range(len(scenes)) for exchange in task(scenes, item)]
    answers = answer_texts(model, [_ask(scenes, item, exchange) for item, exchange in asked], seed, report)
    right, examples = [], []
    for (item, exchange), answer in zip(asked, answers, strict=True):
        thing = _find_thing(scenes, item, exchange.region)
        right.append(is_thing_named(answer, thing, scenes.planned.things))
        examples.append({"shown": thing.name, "answer": answer})
    return {**measure_share(right, [item for item, _ in asked]), "examples": examples[:NUM_EXAMPLES]}


def measure_places(
    model: Unimodal, scenes: CodedScenes, medium: str, seed: int, report: ReportProgress
) -> dict[str, float]:
    """How far what the model marks and what was wanted overlap, one question for each region with words."""
    task = refer_to_mask if medium == "mask" else refer_to_box
    wanted: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    asked: list[Document] = []
    own = scenes.masks if medium == "mask" else scenes.boxes
    for item in range(len(scenes)):
        for exchange in task(scenes, item):
            mask = scenes.regions[item][exchange.region]
            wanted.append(mask if medium == "mask" else find_box(mask))
            codes.append(own[item][exchange.region])
            asked.append(_ask(scenes, item, exchange))
    seeds = range(seed, seed + len(asked))

    def tell(done: int, total: int) -> None:
        report(f"marking by {medium}", done, total)

    answers = model.answers(asked, to=medium, seeds=seeds, on_progress=tell)
    found = [_read_answer(next(output for output in answer if output.modality == medium)) for answer in answers]
    figures = summarize_overlap(found, wanted)
    if codes:
        coded = [_read_medium(medium, one) for one in model.coder.decode(medium, codes)]
        each = [compute_iou(one, other) for one, other in zip(coded, wanted, strict=True)]
        figures["through_codes"] = round(100 * float(np.mean(each)), 1)
    return figures


def summarize_overlap(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean and cumulative IoU, the share of at least a half, and the mean IoU with what another question wanted."""
    if not wanted:
        return {"count": 0}
    each = [compute_iou(one, other) for one, other in zip(found, wanted, strict=True)]
    areas = np.array([compute_overlap(one, other) for one, other in zip(found, wanted, strict=True)]).sum(0)
    others = [*wanted[len(wanted) // 2 :], *wanted[: len(wanted) // 2]]
    return {
        "count": len(wanted),
        "miou": round(100 * float(np.mean(each)), 1),
        "miou_error": round(196 * float(np.std(each) / np.sqrt(len(each))), 1),
        "ciou": round(100 * float(areas[0] / max(areas[1], 1e-12)), 1),
        "half": round(100 * float(np.mean([iou >= HALF for iou in each])), 1),
        "other_things": round(
            100 * float(np.mean([compute_iou(a, b) for a, b in zip(others, wanted, strict=True)])), 1
        ),
    }


def measure_all(model: Unimodal, scenes: CodedScenes, seed: int, report: ReportProgress) -> dict[str, object]:
    """Of all things of the scenes, how many one answer names, marks, and both names and marks."""
    asked = [_ask(scenes, item, exchange) for item in range(len(scenes)) for exchange in tell_all(scenes, item)]

    def tell(done: int, total: int) -> None:
        report("naming and marking everything", done, total)

    seeds = range(seed, seed + len(asked))
    answers = model.answers(
        asked, allow=("text", "mask"), seeds=seeds, tokens=ALL_TOKENS, shorten=True, on_progress=tell
    )
    named, marked, both, items = [], [], [], []
    for item, answer in enumerate(answers):
        pairs = pair_names(answer)
        for region in scenes.list_regions(item):
            if len(region) > 1:
                continue
            thing = _find_thing(scenes, item, region)
            hits = [is_thing_named(name, thing, scenes.planned.things) for name, _ in pairs]
            overlaps = [compute_iou(mask, scenes.regions[item][region]) >= HALF for _, mask in pairs]
            named.append(any(hits))
            marked.append(any(overlaps))
            both.append(any(hit and overlap for hit, overlap in zip(hits, overlaps, strict=True)))
            items.append(item)
    return {
        "named": measure_share(named, items),
        "marked": measure_share(marked, items),
        "both": measure_share(both, items),
    }


def pair_names(answer: Sequence[Output]) -> list[tuple[str, np.ndarray]]:
    """The masks of an answer, each with the words before it; those of an answer without masks are left out."""
    pairs, said = [], ""
    for output in answer:
        if output.modality == "mask":
            pairs.append((said, _read_answer(output)))
            said = ""
        else:
            said = f"{said} {output.text}".strip()
    return pairs


def _ask(scenes: CodedScenes, item: int, exchange: GroundedExchange) -> Document:
    """The question of an exchange with its picture, without the answer."""
    return Document(make_document(scenes.make_picture(item), [exchange]).turns[:1])


def _find_thing(scenes: CodedScenes, item: int, region: Region) -> Thing:
    """What the first of a region is."""
    return scenes.planned.things[scenes.find_words(item).scene.things[region[0]].thing]


def _read_answer(output: Output) -> np.ndarray:
    """What a model marked: a mask bool [64, 64], or a box float [4]."""
    media: Tensor | None = output.media
    assert media is not None
    return _read_medium(output.modality, media)


def _read_medium(modality: str, media: Tensor) -> np.ndarray:
    """A mask [1, H, W] as bool [64, 64], or a box as float [4]."""
    if modality == "box":
        return media.flatten().numpy()
    if media.shape[-1] != SIDE:
        media = interpolate(media[None].float(), size=(SIDE, SIDE), mode="bilinear")[0]
    return (media[0] > HALF).numpy()


SUITE = Suite(run)
