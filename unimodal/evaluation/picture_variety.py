"""Text → picture: how many of ten seeds give different pictures, and is the concept right by a network outside of ours?

Labels of training concepts are asked for, each with ten seeds. `different` is the mean number of drawings of ten that
are apart (less than 25 dB from each other), `visible` of those that an eye tells apart (6 of 255, root mean square).
`copies` is the share of drawings within 25 dB of one training picture. `among_5` is the share of drawings with a
picture of the concept among the 5 training pictures most alike by EfficientNet-lite2, which no tokenizer of ours has
inside; `by_classifier` the share whose concept is among the first 5 of a linear classifier of its features, fitted to
the training pictures alone. Shares are in per cent; their intervals are Wilson's of concepts, whose ten drawings are
alike; those of means are 1.96 standard errors.

Shapes: B drawings, M training pictures, D features, C concepts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.evaluation.asking import answer_media
from unimodal.evaluation.judges import find_nearest
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.evaluation.shares import Z, measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.evaluation.tokenizer_bench.picture_judges import PackagedJudge
from unimodal.pipeline import Unimodal
from unimodal.pipeline.settings import SearchSettings
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 30  # concepts, ten drawings each
SEEDS, NUM_NEAREST = 10, 5
NEAR_DB, VISIBLE = 25.0, 6 / 255
RIDGE = 0.1  # times the mean variance of a feature


def run(
    model: Unimodal,
    data_folder: Path,
    limit: int | None,
    seed: int,
    report: ReportProgress,
    search: tuple[str, SearchSettings] | None = None,
) -> dict[str, object]:
    """search: as in `answer_media`; by default every drawing is the only one of its seed."""
    pictures = Pictures.load(data_folder)
    gallery = pictures.find_rows(TRAINING_STYLES, "train")
    concepts = pictures.concept[gallery]
    asked = sample(np.unique(concepts), limit or DEFAULT_LIMIT, seed)
    wishes = [model.wording.phrase_request(pictures.concepts[concept].label, "image") for concept in asked]
    documents = [Document([Turn("user", wish)]) for wish in wishes for _ in range(SEEDS)]
    drawn = torch.stack(answer_media(model, documents, "image", seed, report, "drawing", search=search)).clamp(
        0, 1
    )  # [B, 3, H, W]
    if drawn.shape[-1] != pictures.pixels.shape[1]:
        side = pictures.pixels.shape[1:3]
        drawn = torch.nn.functional.interpolate(drawn, side, mode="bilinear", antialias=True)
    near = 10 ** (-NEAR_DB / 20)
    of_concept = list(drawn.split(SEEDS))
    different = [count_apart(some, near) for some in of_concept]
    visible = [count_apart(some, VISIBLE) for some in of_concept]
    copies = [bool((distances < near).any()) for distances in _measure_distances(drawn, pictures.take(gallery))]
    report("judging drawings", 0, None)
    judge = PackagedJudge(2)
    known = normalize(judge.extract(pictures.take(gallery)), dim=-1)  # [M, D]
    made = normalize(judge.extract(drawn), dim=-1)
    wanted = np.repeat(asked, SEEDS)
    of = wanted.tolist()
    found = concepts[find_nearest(made, known, NUM_NEAREST).numpy()]  # [B, 5]
    classes, number = np.unique(concepts, return_inverse=True)
    first = classes[
        classify(known, torch.from_numpy(number), made).topk(min(NUM_NEAREST, len(classes)), 1).indices.numpy()
    ]
    return {
        "judge": "EfficientNet-lite2: nearest training pictures, and a linear classifier of its features",
        "concepts": len(asked),
        "drawings": len(drawn),
        "different_of_10": _describe_mean(different),
        "visible_of_10": _describe_mean(visible),
        "copies": measure_share(copies, of),
        "among_5": measure_share((found == wanted[:, None]).any(1).tolist(), of),
        "by_classifier": measure_share((first == wanted[:, None]).any(1).tolist(), of),
    }


def count_apart(pictures: Tensor, distance: float) -> int:
    """Counts pictures [B, 3, H, W] in [0, 1]: one counts if its root mean square difference to all that counted before
    is at least `distance`."""
    apart = _measure_distances(pictures, pictures) >= distance
    taken: list[int] = []
    for row in range(len(pictures)):
        if bool(apart[row, taken].all()):
            taken.append(row)
    return len(taken)


def classify(known: Tensor, number: Tensor, made: Tensor) -> Tensor:
    """Scores [B, C] of features [B, D] by ridge regression onto the classes int [M] of known features [M, D]."""
    centre = known.mean(0)
    x = (known - centre).double()
    y = torch.nn.functional.one_hot(number).double()
    gram = x.T @ x
    gram += RIDGE * len(x) * x.var(0).mean() * torch.eye(len(gram), dtype=torch.double)
    weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    return ((made - centre).double() @ weights).float()


def _measure_distances(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square differences of pictures [A, 3, H, W] and [B, 3, H, W] → [A, B]."""
    x, y = a.flatten(1), b.flatten(1)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5


def _describe_mean(values: list[int]) -> dict[str, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 2), "interval": round(Z * spread / len(values) ** 0.5, 2)}


SUITE = Suite(run)
