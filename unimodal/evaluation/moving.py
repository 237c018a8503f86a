"""Clips → what moves and how; and words → clips that move so.

`moves`: of two things, which one moves. `how`: what it does (slides a way, grows, shrinks, turns, appears, disappears).
`made`: of captions of one moving thing, the share of clips that move as asked, judged by no network: the thing is what
differs from the background, and its place and area in the first and last frames are compared. `original` is what that
judge says of the prepared clips. Shares are in per cent with Wilson's 95% interval.

Shapes: frames uint8 [T, H, W, 3].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unimodal.data.order import make_generator
from unimodal.data.scenes.scene import Motion
from unimodal.data.scenes.segment import find_parts
from unimodal.evaluation.asking import answer_media, answer_texts
from unimodal.evaluation.prepared_scenes import TESTED, PreparedScenes, ask, is_same_answer
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 200
DRAWN_LIMIT = 60
SLID, RESIZED = 0.15, 1.5  # share of the side that a thing moves, and times its area changes, to count as such


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    prepared = PreparedScenes.load(data_folder, clips=True)
    figures: dict[str, object] = {
        "judge": "the scene that was drawn; of made clips, parts that differ from the background"
    }
    for split in TESTED:
        rows = prepared.find_rows(split, ("clip",), limit or DEFAULT_LIMIT, seed)
        if not len(rows):
            continue
        media = prepared.encode(model, rows, report)
        shares: dict[str, object] = {}
        for about in ("moves", "how"):
            documents, right = [], []
            for row, medium in zip(rows.tolist(), media, strict=True):
                words = prepared.find_words(row)
                if about == "moves" and words.count < 2:
                    continue
                draws = make_generator("ask", seed, row)
                question = next(one for one in words.ask_all(draws) if one.about == about)
                documents.append(ask(medium, question.text))
                right.append(question.answer)
            answers = answer_texts(model, documents, seed, report)
            shares[about] = measure_share([is_same_answer(*pair) for pair in zip(answers, right, strict=True)])
        single = np.array(
            [row for row in rows.tolist() if len(prepared.scenes[row].things) == 1][: limit or DRAWN_LIMIT]
        )
        if split in ("seen", "combination") and len(single):
            shares |= _judge_made(model, prepared, single, seed, report)
        figures[split] = shares
    return figures


def _judge_made(
    model: Unimodal, prepared: PreparedScenes, rows: np.ndarray, seed: int, report: ReportProgress
) -> dict[str, object]:
    wishes = [model.wording.phrase_request(prepared.find_words(row).caption(), "video") for row in rows.tolist()]
    made = answer_media(model, [Document([Turn("user", wish)]) for wish in wishes], "video", seed, report, "filming")
    motions = [prepared.scenes[row].motion for row in rows.tolist()]
    clips = [(clip.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy() for clip in made]
    return {
        "made": measure_share([name_motion(clip) == motion for clip, motion in zip(clips, motions, strict=True)]),
        "original": measure_share(
            [name_motion(prepared.pixels[row]) == motion for row, motion in zip(rows.tolist(), motions, strict=True)]
        ),
    }


def name_motion(frames: np.ndarray) -> Motion | None:
    """What the largest thing of a clip uint8 [T, H, W, 3] does; None where nothing is to be seen or nothing changes."""
    begin, end = (find_parts(frame)[:1] for frame in (frames[0], frames[-1]))
    if not begin or not end:
        return None if not begin and not end else "appears" if end else "disappears"
    [first], [last] = begin, end
    across, down = last.x - first.x, last.y - first.y
    if max(abs(across), abs(down)) > SLID:
        if abs(across) > abs(down):
            return "left" if across < 0 else "right"
        return "up" if down < 0 else "down"
    if last.area > RESIZED * first.area:
        return "grows"
    if first.area > RESIZED * last.area:
        return "shrinks"
    changed = np.abs(frames[len(frames) // 2].astype(int) - frames[0].astype(int)).max(-1) > 40
    return "turns" if float(changed.mean()) > 0.01 else None


SUITE = Suite(run)
