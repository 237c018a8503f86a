"""The pictures that a picture tokenizer is trained on and measured by, as files of 64×64 pixels in folders.

    python tools/prepare_pictures.py [--raw data/raw] [--prepared data/prepared] [--scenes 4000]

Reads what `prepare_images.py` wrote and the unpacked `openclipart-png` of `tools/fetch_data.py --set clipart`, and
writes, deterministically, under data/prepared/pictures:

- `train/main/emoji/KEY/STYLE.png`: the training concepts in the three training styles, one folder a concept.
- `train/more/views/KEY/STYLE.png`: each once more, turned, moved, scaled and recoloured.
- `train/more/clipart/FOLDER/NAME.png`: clip art that shows something at this size, of files of a moderate size.
- `train/main/scenes/NUMBER.png`: two to four training emoji, smaller, on a plain or shaded ground.
- `heldout/KEY/STYLE.png`: the concepts that are never trained on, in the training styles.
- `unseen_style/KEY/twemoji.png`: every concept in the style that is never trained on.

`pictures.json` beside them has their numbers and one sha256 of all of a folder's pixels.

Shapes: H, W of a picture, h, w of a smaller one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unimodal.data.augmented_views import augment  # noqa: E402
from unimodal.data.emoji_concepts import SIZE, put_on_white  # noqa: E402
from unimodal.data.encoded_media import (
    EVALUATION_STYLES,  # noqa: E402
    load_concepts,  # noqa: E402
)
from unimodal.files import write_bytes_atomically, write_json  # noqa: E402

CLIP_ART = Path("openclipart-png/usr/share/openclipart/png")
LEAST_SPREAD = 12.0  # standard deviation of pixels, of 255, below which clip art is called blank
MOST_PIXELS = 1_000_000  # of a file of clip art; larger ones take seconds each
MARKER = (254, 0, 253)  # a colour that no corner has


def list_clip_art(raw: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(folder/name, uint8 [64, 64, 3] on white) of clip art that shows something. ValueError where there is none."""
    paths = sorted((raw / CLIP_ART).rglob("*.png"))
    if not paths:
        raise ValueError(f"{raw / CLIP_ART} has no clip art; run `python tools/fetch_data.py --set clipart` first")
    for path in paths:
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    continue
                picture.thumbnail((4 * SIZE, 4 * SIZE))
                pixels = put_on_white(picture)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            print(f"left out {path.name}: {error}", file=sys.stderr)
            continue
        if pixels.std() >= LEAST_SPREAD:
            yield path.relative_to(raw / CLIP_ART).with_suffix("").as_posix(), pixels


def cut_out(pixels: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """A picture on white → (itself, its mask "L"): 255 inside, 0 where white reaches the border."""
    picture = Image.fromarray(pixels)
    filled = ImageChops.duplicate(picture)
    for corner in ((0, 0), (SIZE - 1, 0), (0, SIZE - 1), (SIZE - 1, SIZE - 1)):
        if min(filled.getpixel(corner)) > 245:  # type: ignore[type-var, arg-type]
            ImageDraw.floodfill(filled, corner, MARKER, thresh=24)
    outside = (np.asarray(filled) == np.array(MARKER)).all(-1)
    mask = Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))
    return picture, mask.filter(ImageFilter.MinFilter(3))


def make_ground(generator: np.random.Generator) -> Image.Image:
    """A plain colour, or two that blend from one side to the other; white in a third of the cases."""
    if generator.random() < 1 / 3:
        return Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    first, last = generator.integers(90, 256, (2, 3)).astype(np.float64)
    if generator.random() < 0.5:
        last = first
    way = np.linspace(0, 1, SIZE)[:, None, None]
    ground = np.broadcast_to(first * (1 - way) + last * way, (SIZE, SIZE, 3))
    ground = ground if generator.random() < 0.5 else ground.transpose(1, 0, 2)
    return Image.fromarray(ground.round().astype(np.uint8))


def compose_scene(pictures: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Pictures on white [64, 64, 3] each → them smaller, one in each chosen quarter, on one ground [64, 64, 3].

    What lies between a figure and the white around it takes the ground's colour (they are multiplied)."""
    ground = make_ground(generator)
    quarters = generator.permutation(4)[: len(pictures)]
    for pixels, quarter in zip(pictures, quarters, strict=True):
        side = int(generator.integers(18, 35))
        free = SIZE // 2 - side
        at = [int(quarter % 2) * SIZE // 2, int(quarter // 2) * SIZE // 2]
        left, top = (min(max(0, a + int(generator.integers(min(free, 0), max(free, 0) + 1))), SIZE - side) for a in at)
        picture, mask = (part.resize((side, side), Image.Resampling.BICUBIC) for part in cut_out(pixels))
        box = (left, top, left + side, top + side)
        shaded = ImageChops.multiply(ground.crop(box), picture)
        ground.paste(Image.composite(picture, shaded, mask), box)
    return np.asarray(ground)


class PictureFolder:
    """Writes PNG files below a folder, counts them, and hashes all pixels in the order of writing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.digest = folder, 0, hashlib.sha256()

    def write(self, name: str, pixels: np.ndarray) -> None:
        memory = io.BytesIO()
        Image.fromarray(pixels).save(memory, "PNG", compress_level=1)
        write_bytes_atomically(self.folder / f"{name}.png", memory.getvalue())
        self.digest.update(name.encode() + np.ascontiguousarray(pixels).tobytes())
        self.count += 1

    def describe(self) -> dict[str, object]:
        return {"pictures": self.count, "sha256": self.digest.hexdigest()}


def make_view(pixels: np.ndarray, row: int, seed: int) -> np.ndarray:
    """Another view of the picture in that row of images.npz."""
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    view = augment(picture, torch.Generator().manual_seed((seed * 1_000_003 + row) * 101 + 1))
    return (view * 255).round().byte().permute(1, 2, 0).numpy()


def write_pictures(raw: Path, prepared: Path, num_scenes: int, seed: int) -> dict[str, object]:
    """Writes every folder. ValueError where the prepared arrays or the clip art are missing."""
    out = prepared / "pictures"
    concepts = load_concepts(prepared / "concepts.json")
    with np.load(prepared / "images.npz") as arrays:
        pixels, owners, styles = arrays["pixels"], arrays["concept"], arrays["style"]
    names = (
        "train/main/emoji",
        "train/main/scenes",
        "train/more/views",
        "train/more/clipart",
        "heldout",
        "unseen_style",
    )
    folders = {name: PictureFolder(out / name) for name in names}
    training: list[int] = []
    for row, (owner, style) in enumerate(zip(owners, styles, strict=True)):
        concept, name = concepts[int(owner)], f"{concepts[int(owner)].key}/{style}"
        if style in EVALUATION_STYLES:
            folders["unseen_style"].write(name, pixels[row])
        elif concept.split != "train":
            folders["heldout"].write(name, pixels[row])
        else:
            training.append(row)
            folders["train/main/emoji"].write(name, pixels[row])
            folders["train/more/views"].write(name, make_view(pixels[row], row, seed))
    print(f"{len(training)} training pictures and as many views", file=sys.stderr, flush=True)
    for name, picture in list_clip_art(raw):
        folders["train/more/clipart"].write(name, picture)
    print(f"{folders['train/more/clipart'].count} pieces of clip art", file=sys.stderr, flush=True)
    for number in range(num_scenes):
        generator = np.random.default_rng((seed, number))
        rows = generator.choice(training, int(generator.integers(2, 5)), replace=False)
        folders["train/main/scenes"].write(f"{number:05d}", compose_scene(pixels[rows], generator))
    return {name: folder.describe() for name, folder in folders.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"), help="what prepare_images.py wrote")
    parser.add_argument("--scenes", type=int, default=4000, help="how many scenes are composed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        written = write_pictures(options.raw, options.prepared, options.scenes, options.seed)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    write_json(options.prepared / "pictures" / "pictures.json", written)
    for name, folder in written.items():
        print(f"{name}: {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
