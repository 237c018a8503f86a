"""How different the pictures are that a model draws for one prompt with ten seeds, and how like what was asked for.

    python tools/measure_variety.py [--model model_cards/nano] [--data data/prepared] [--prompts 12]
        [--settings temperature=0.9 --settings first_codes=48,temperature=1.2,first_temperature=0.2] [--sheets FOLDER]

Prompts are labels of training concepts. For the model's own sampling, and for it with every `--settings`, it prints the
mean number of different pictures of ten, the share of prompts with six and more, how many of ten can be told apart by
eye (each is at least 6 of 255 from the others, root mean square over the pixels), and in how many of all drawings a
training picture of the concept is among the five most alike, or the most alike (`among_5_percent` and `nearest_percent`
of the suite `picture_drawing`). `--sheets` keeps the drawings of each setting as a picture, a row a prompt.
Needs the prepared pictures: python tools/fetch_data.py --set images, then python tools/prepare_images.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unimodal.evaluation.asking import answer_media, compute_percent, find_features
from unimodal.evaluation.judges import compute_picture_features, find_nearest
from unimodal.evaluation.prepared import TRAINING_STYLES, Pictures, sample
from unimodal.media.image import save_image
from unimodal.media.preview import draw_contact_sheet
from unimodal.model_folder.settings import MediumSettings
from unimodal.pipeline import Unimodal, load
from unimodal.sequence.document import Document, Turn

SEEDS, NEIGHBOURS, ENOUGH = 10, 5, 6
VISIBLE = 6 / 255


def change_sampling(own: MediumSettings, text: str) -> MediumSettings:
    """The sampling of pictures with some fields changed: "temperature=0.9,top_k=5"."""
    changes = dict(part.split("=", 1) for part in text.split(",") if part)
    return MediumSettings.model_validate(own.model_dump() | changes)


def count_visible(drawn: torch.Tensor) -> int:
    """Counts pictures of [B, 3, H, W]: one counts if it is at least `VISIBLE` from all that counted before."""
    x = drawn.flatten(1).double()
    apart = torch.cdist(x, x) / x.shape[1] ** 0.5 >= VISIBLE  # [B, B]
    taken: list[int] = []
    for row in range(len(drawn)):
        if bool(apart[row, taken].all()):
            taken.append(row)
    return len(taken)


def measure(
    model: Unimodal, pictures: Pictures, gallery: np.ndarray, features: torch.Tensor, num: int, sheet: Path | None
) -> str:
    """The line of one setting: features [M, D] are those of the pictures of rows int [M]."""
    concepts = pictures.concept[gallery]
    asked = sample(np.unique(concepts), num, 0)
    found: list[int] = []
    visible: list[int] = []
    hits: list[bool] = []
    nearest: list[bool] = []
    rows: list[torch.Tensor] = []
    for concept in asked:
        words = model.wording.phrase_request(pictures.concepts[concept].label, "image")
        drawn = torch.stack(
            answer_media(model, [Document([Turn("user", words)])] * SEEDS, "image", 0, lambda *_: None, "drawing")
        )  # [10, 3, H, W]
        found.append(len(torch.unique(drawn.flatten(1), dim=0)))
        visible.append(count_visible(drawn))
        rows += list(drawn.clamp(0, 1))
        near = find_nearest(compute_picture_features(model, drawn), features, NEIGHBOURS).numpy()
        hits += (concepts[near] == concept).any(1).tolist()
        nearest += (concepts[near[:, 0]] == concept).tolist()
    if sheet is not None:
        save_image(draw_contact_sheet(rows, SEEDS), sheet)
    share, like = compute_percent([count >= ENOUGH for count in found]), compute_percent(hits)
    return (
        f"{np.mean(found):.1f} different of {SEEDS}, {share} % of prompts {ENOUGH} or more, "
        f"{np.mean(visible):.1f} told apart by eye, among_5 {like} %, nearest {compute_percent(nearest)} %"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--settings", action="append", default=[])
    parser.add_argument("--sheets", type=Path)
    options = parser.parse_args(arguments)
    model, pictures = load(options.model, device="cpu"), Pictures.load(options.data)
    gallery = pictures.find_rows(TRAINING_STYLES, "train")
    features, own = find_features(model, pictures, gallery, lambda *_: None), model.sampling["image"]
    for text in ("", *options.settings):
        model.sampling["image"] = change_sampling(own, text)
        sheet = options.sheets / f"{text or 'own'}.png" if options.sheets else None
        print(f"{text or 'own'}: {measure(model, pictures, gallery, features, options.prompts, sheet)}", flush=True)


if __name__ == "__main__":
    main()
