"""Write pictures with masks, boxes and conversations about them, as files that every recipe reads as a dataset.

    python tools/prepare_grounded.py [--data data/prepared] [--out FOLDER] [--pictures 4000] [--test 200]

Reads what `tools/prepare_scenes.py` wrote, and writes, deterministically, to OUT:

- `pictures/NUMBER.png`, `masks/NUMBER-REGION.pbm` (black where the region is), `boxes/NUMBER-REGION.box`;
- `train.jsonl`, `seen.jsonl`, `combination.jsonl`, `concept.jsonl`, `style.jsonl`: conversations, one a picture, by the
  splits of the scenes; what is asked and answered is in `unimodal/data/grounded/tasks.py`.

A mask comes from the alpha channels of what is drawn: emoji, clip art and plain shapes. The parts of masks and boxes
are media of their own: name their modules, `UNIMODAL_PLUGINS=unimodal.tokenizers.more_media.masks,` and `….boxes`, to
the recipe that reads the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unimodal.data.grounded.coded import PlannedScenes
from unimodal.data.grounded.regions import Region, draw_regions, find_box
from unimodal.data.grounded.tasks import TASKS, GroundedSource, check_shares
from unimodal.data.messages import Conversation
from unimodal.data.scenes.scene import SPLITS, Split
from unimodal.data.scenes.words import SceneWords
from unimodal.files import write_text_atomically
from unimodal.sequence.document import MEDIA_PARTS, Part
from unimodal.tokenizers.more_media.boxes import save_box
from unimodal.tokenizers.more_media.masks import save_mask

KINDS = ("one", "count", "place", "pair")


class FiledScenes:
    """Scenes by the files of their pictures, masks and boxes, whose paths are below the folder of the dataset."""

    def __init__(self, planned: PlannedScenes, rows: Sequence[int]) -> None:
        self.planned, self.rows = planned, rows
        self._drawn: dict[int, dict[Region, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, item: int) -> dict[Region, np.ndarray]:
        if item not in self._drawn:
            self._drawn = {item: draw_regions(self.planned.painter, self.planned.scenes[self.rows[item]])}
        return self._drawn[item]

    def find_words(self, item: int) -> SceneWords:
        return SceneWords(self.planned.scenes[self.rows[item]], self.planned.things)

    def list_regions(self, item: int) -> Sequence[Region]:
        return list(self.draw(item))

    def make_picture(self, item: int) -> Part:
        return MEDIA_PARTS["image"](path=f"pictures/{self.rows[item]:06}.png")

    def make_mask(self, item: int, region: Region) -> Part:
        return MEDIA_PARTS["mask"](path=f"masks/{self.name_region(item, region)}.pbm")

    def make_box(self, item: int, region: Region) -> Part:
        return MEDIA_PARTS["box"](path=f"boxes/{self.name_region(item, region)}.box")

    def name_region(self, item: int, region: Region) -> str:
        return f"{self.rows[item]:06}-{'-'.join(map(str, region))}"


def write_split(folder: Path, scenes: FiledScenes, split: Split, shares: Mapping[str, float]) -> None:
    """The files of the scenes of one split, and then their conversations."""
    source = GroundedSource(scenes, shares)
    lines = []
    for item, row in enumerate(scenes.rows):
        Image.fromarray(scenes.planned.painter.draw(scenes.planned.scenes[row])).save(
            folder / str(scenes.make_picture(item).path)  # type: ignore[union-attr]
        )
        for region, mask in scenes.draw(item).items():
            name = scenes.name_region(item, region)
            save_mask(torch.from_numpy(mask)[None].float(), folder / "masks" / f"{name}.pbm", None)
            save_box(torch.from_numpy(find_box(mask)), folder / "boxes" / f"{name}.box", None)
        messages = Conversation.from_document(source.make_document(item)).model_dump(mode="json", exclude_none=True)
        lines.append(json.dumps(messages))
        if item % 500 == 0:
            print(f"{split}: {item} of {len(scenes.rows)}", file=sys.stderr, flush=True)
    write_text_atomically(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="folder with scenes/ to read")
    parser.add_argument("--out", type=Path, default=Path("data/prepared/grounded"), help="folder to write")
    parser.add_argument("--pictures", type=int, default=4000, help="training pictures, at most")
    parser.add_argument("--test", type=int, default=200, help="pictures of each split to test on, at most")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"what is asked, of {', '.join(TASKS)}")
    options = parser.parse_args(arguments)
    try:
        if options.pictures < 1 or options.test < 0:
            raise ValueError(f"--pictures {options.pictures} --test {options.test}: give at least 1, and 0 or more")
        planned = PlannedScenes.load(options.data)
        shares = dict.fromkeys(options.tasks.split(","), 1.0)
        check_shares(shares)
        for name in ("pictures", "masks", "boxes"):
            (options.out / name).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            rows = planned.find_rows(split, KINDS)[: options.pictures if split == "train" else options.test]
            if rows:
                write_split(options.out, FiledScenes(planned, rows), split, shares)
    except ValueError as error:
        print(f"prepare_grounded: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
