"""Words → scenes: are there as many things as asked for, in the colour, at the place and in the order asked for?

Captions of scenes on white are drawn, of what was trained on and of what was never together in training. The judge is
no network: things are what differs from the background, counted as parts, named by the colour that most of their pixels
have and by where they lie (`unimodal/data/scenes/segment.py`). Of a pair, which is which is told by EfficientNet-lite2,
which also names what is drawn (among the 5 things whose pictures it finds most alike). `original` is what the same
judge says of the prepared pictures. Shares are in per cent with Wilson's 95% interval.

Shapes: B pictures, D features, T things.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from unimodal.data.encoded_media import EVALUATION_STYLES
from unimodal.data.scenes.scene import Scene, Split
from unimodal.data.scenes.segment import Part, find_parts, name_place
from unimodal.data.scenes.words import PLACES
from unimodal.evaluation.asking import answer_media
from unimodal.evaluation.prepared_scenes import PreparedScenes
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.evaluation.tokenizer_bench.picture_judges import PackagedJudge
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 200  # of each of count, colour, place, and pairs
NUM_NEAREST = 5
SPLITS_DRAWN: tuple[Split, ...] = ("seen", "combination")


class ThingJudge:
    """Which thing a part of a picture is most like, by features of EfficientNet-lite2 of the sprites."""

    def __init__(self, prepared: PreparedScenes, folder: Path) -> None:
        self.judge = PackagedJudge(2)
        with np.load(folder / "sprites.npz") as stored:
            pixels, thing, style = stored["pixels"], stored["thing"], stored["style"]
        kept = np.flatnonzero(np.array([prepared.things[one].split == "train" for one in thing]))
        kept = kept[~np.isin(style[kept], EVALUATION_STYLES)]
        alpha = pixels[kept][..., 3:].astype(np.float32) / 255
        white = pixels[kept][..., :3] * alpha + 255 * (1 - alpha)  # [K, 64, 64, 3]
        sprites = torch.from_numpy(white).permute(0, 3, 1, 2).float() / 255
        self.features = normalize(self.judge.extract(sprites), dim=-1)  # [K, D]
        self.thing = torch.from_numpy(thing[kept].astype(np.int64))
        self.names = [thing.name for thing in prepared.things]

    def compare(self, picture: Tensor, part: Part) -> Tensor:
        """A part of a picture [3, H, W] → how like each thing it is, the best of its sprites, [T]."""
        side = picture.shape[-1]
        reach = max(part.size * side / 2 + 1, 3)
        left, right = (int(np.clip(part.x * side + sign * reach, 0, side)) for sign in (-1, 1))
        top, bottom = (int(np.clip(part.y * side + sign * reach, 0, side)) for sign in (-1, 1))
        cut = interpolate(picture[None, :, top:bottom, left:right], (64, 64), mode="bicubic", antialias=True).clamp(
            0, 1
        )
        likeness = (normalize(self.judge.extract(cut), dim=-1) @ self.features.T)[0]  # [K]
        return torch.full((len(self.names),), -1.0).scatter_reduce(0, self.thing, likeness, "amax")


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    prepared = PreparedScenes.load(data_folder)
    judge = ThingJudge(prepared, data_folder / "scenes")
    figures: dict[str, object] = {"judge": "parts that differ from the background; EfficientNet-lite2 for names"}
    for split in SPLITS_DRAWN:
        rows: list[int] = []
        for kind in ("count", "place", "one", "pair"):
            found = [
                row for row in prepared.find_rows(split, (kind,), None, seed).tolist() if _is_on_white(prepared, row)
            ]
            rows += found[: limit or DEFAULT_LIMIT]
        if not rows:
            continue
        wishes = [model.wording.phrase_request(prepared.find_words(row).caption(), "image") for row in rows]
        documents = [Document([Turn("user", wish)]) for wish in wishes]
        drawn = torch.stack(answer_media(model, documents, "image", seed, report, "drawing"))  # [B, 3, H, W]
        scenes = [prepared.scenes[row] for row in rows]
        figures[split] = judge_drawings(judge, scenes, drawn, report)
        figures[f"{split}_original"] = judge_drawings(judge, scenes, prepared.take(np.array(rows)), report)
    return figures


def judge_drawings(
    judge: ThingJudge, scenes: list[Scene], pictures: Tensor, report: ReportProgress
) -> dict[str, dict[str, float]]:
    """Shares of pictures [B, 3, H, W] that show what their scenes say."""
    right: dict[str, list[bool]] = {
        name: [] for name in ("count", "colour", "place", "relation", f"name_in_{NUM_NEAREST}")
    }
    for index, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        report("judging drawings", index, len(scenes))
        parts = find_parts((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
        if scene.kind == "count":
            right["count"].append(len(parts) == len(scene.things))
        colour = scene.things[0].colour
        if colour and scene.kind != "pair":
            right["colour"].append(bool(parts) and all(part.colour == colour for part in parts))
        if scene.place:
            right["place"].append(len(parts) == 1 and name_place(parts[0], PLACES) == scene.place)
        likeness = [judge.compare(picture, part) for part in parts[:2]]
        if scene.kind == "pair":
            right["relation"].append(len(parts) == 2 and _find_relation(scene, parts, likeness) == scene.relation)
        elif not colour:  # painted things are not what the network knows
            near = likeness[0].topk(NUM_NEAREST).indices.tolist() if likeness else []
            found = [judge.names[thing] for thing in near]  # two things may have one name
            right[f"name_in_{NUM_NEAREST}"].append(judge.names[scene.things[0].thing] in found)
    return {name: measure_share(found) for name, found in right.items()}


def _find_relation(scene: Scene, parts: list[Part], likeness: list[Tensor]) -> str:
    """Where the first thing of a pair is drawn, as seen from the second; which part is which is told by likeness."""
    first, second = (placed.thing for placed in scene.things)
    straight = float(likeness[0][first] + likeness[1][second])
    crossed = float(likeness[0][second] + likeness[1][first])
    one, other = (parts[0], parts[1]) if straight >= crossed else (parts[1], parts[0])
    across, down = one.x - other.x, one.y - other.y
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def _is_on_white(prepared: PreparedScenes, row: int) -> bool:
    return prepared.scenes[row].background == "white"


SUITE = Suite(run)
