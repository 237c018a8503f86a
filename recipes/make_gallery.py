"""One picture of what a model does, for its card and the README: nothing is picked, everything is drawn with seed 0.

    python recipes/make_gallery.py [--set model=model_cards/nano]

Rows: pictures of held-out concepts, the same after their 64 codes, drawings asked for in words, a clip asked for in
words.
Writes ``gallery.png`` and ``gallery.json`` (what each cell is) to the model's folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from unimodal.config import Config
from unimodal.files import write_text_atomically
from unimodal.media.image import save_image
from unimodal.media.preview import draw_contact_sheet
from unimodal.training.command import run_recipe

COLUMNS = 8


class GalleryRecipe(Config):
    model: Path = Path("model_cards/nano")
    data: Path = Path("data/prepared")
    wishes: tuple[str, ...] = (
        "red apple", "cat face", "sunflower", "rocket", "red heart", "grinning face", "house", "fish",
    )  # fmt: skip
    clip: str = "beating heart"
    scale: int = 2


def run(cfg: GalleryRecipe, dry_run: bool) -> None:
    from unimodal.pipeline import load

    if dry_run:
        return
    model = load(cfg.model)
    images = np.load(cfg.data / "images.npz")
    concepts = json.loads((cfg.data / "concepts.json").read_text())
    heldout = [c["id"] for c in concepts if c["split"] == "heldout"]
    rows = np.flatnonzero(np.isin(images["concept"], heldout) & (images["style"] != "twemoji"))
    rows = rows[np.linspace(0, len(rows) - 1, COLUMNS).astype(int)]
    originals = [torch.from_numpy(images["pixels"][row]).permute(2, 0, 1).float() / 255 for row in rows]
    rebuilt = list(model.coder.decode("image", model.coder.encode("image", originals)))
    drawings = [model.generate(wish, to="image", seed=0).media for wish in cfg.wishes]
    clip = model.generate(cfg.clip, to="video", seed=0).media  # [T, 3, H, W]
    cells = [*originals, *rebuilt, *drawings, *list(clip)[:COLUMNS]]
    sheet = draw_contact_sheet([cell.clamp(0, 1) for cell in cells], COLUMNS)
    large = torch.nn.functional.interpolate(sheet[None].float(), scale_factor=cfg.scale, mode="nearest")[0]
    save_image(large, cfg.model / "gallery.png")
    labels = [concepts[images["concept"][row]]["label"] for row in rows]
    text = {"held-out pictures, then after 64 codes": labels, "asked for": list(cfg.wishes), "clip": cfg.clip}
    write_text_atomically(cfg.model / "gallery.json", json.dumps(text, indent=2) + "\n")
    print(f"wrote {cfg.model / 'gallery.png'}", file=sys.stderr)


if __name__ == "__main__":
    run_recipe(GalleryRecipe, run)
