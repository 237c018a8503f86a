"""Compose training pictures and clips of emoji, clip art and plain shapes, and write down what they show.

    python tools/prepare_scenes.py [--raw data/raw] [--out data/prepared] [--pictures 24000] [--clips 2400]
    python tools/prepare_scenes.py --folder looks --pictures 60 --clips 6        # as files, with captions, to look at

Reads the packages of `tools/fetch_data.py --set images --set clipart` with the concepts of `tools/prepare_images.py`,
and writes, deterministically, to `OUT/scenes/`:

- `things.json`, `sprites.npz`: what may stand in a scene, and its pictures with alpha: `pixels` uint8 [K, 64, 64, 4],
  each filling its square, `thing` int32 [K], `style` str [K], `looks` str [K] (its own colour, "" for several);
- `scenes.jsonl`, `scenes.npz`: pictures (`unimodal/data/scenes/scene.py`), `pixels` uint8 [M, 64, 64, 3];
- `moves.jsonl`, `moves.npz`: clips, `frames` uint8 [C, 9, 64, 64, 3] at 8 frames a second;
- `split.json`: what is held out; `manifest.json`: the sha256 of each file.

Held out are the concepts that prepare_images.py holds out, the Twemoji style, and a tenth of the pairs, of the
colours a thing may be painted in, of the counts of a thing and of its motions, chosen by a hash with seed 0.
`--folder` writes PNG and GIF files with a `data.jsonl` of conversations, which the recipes read as a dataset.

Shapes: K sprites, M pictures, C clips.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unimodal.data.emoji_packages import open_emoji_styles, render_svg
from unimodal.data.encoded_media import EVALUATION_STYLES, Concept, load_concepts
from unimodal.data.order import make_generator
from unimodal.data.scenes.colours import COLOURS, find_main_colour, name_colours
from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.plan import SHARES, Planner
from unimodal.data.scenes.scene import (
    HELD_OUT_SHARE,
    MOTIONS,
    SIDE,
    SPLIT_SEED,
    SPLITS,
    Scene,
    Split,
    Thing,
    is_held_out,
    write_scenes,
)
from unimodal.data.scenes.segment import count_parts
from unimodal.data.scenes.words import SceneWords
from unimodal.files import write_bytes_atomically, write_json
from unimodal.media.video import save_video

GROUPS = {"animals-nature", "food-drink", "travel-places", "activities", "objects"}
CLIP_ART_FOLDERS = (
    "animals", "buildings", "computer", "containers", "education", "electronics", "food", "office", "plants",
    "recreation", "science", "tools", "transportation",
)  # fmt: skip
PLAIN_NAME = re.compile(r"[a-z]+( [a-z]+)?")
#: names that are no thing one can count or paint, that say too little, or that mean two things
LEFT_OUT = frozenset(
    """abracadabra, advertising, airbrush, airplane arrival, airplane departure, ak, antilope, attention, bacon,
    badminton, badminton racket, bamboo, bar chart, barber pole, bass clef, bat, beans, bowling, bread, broccoli,
    broken chain, building construction, bullet hole, butter, button, camping, candy, canned food, card, carp
    streamer, certificate, chart decreasing, chart increasing, chateau, cheese, chef, chess game, church building,
    cityscape, coffee, cog, construction, control knobs, cooked rice, cooking, coral, cricket game, cultivator,
    curry rice, cyclone, damselfly, dancer, derelict house, desert, desktop, dna, dossier, double helix, easter,
    eclipse, empty tomb, eris, erlenmeyer, field hockey, fire, firewall, flan, flatbread, floppy, fog, foggy,
    folder, fries, gallows, garlic, gateau, gateway, ginger root, hair pick, hamsa, handshake, hearth, help, high
    voltage, hourglass done, hub, hummer, ice, ice hockey, inbox tray, ink, insecticide, io, judo, jupiter, kaaba,
    knot, lacrosse, landslide, lasagna, lemonade, leone, level slider, liberty, light rail, link, load, locked,
    lotion, love hotel, m, manager, mascot, mate, milk, milky way, mobile, mortar, motorway, mount fuji, mountain
    railway, mouse, muted speaker, national park, nazar amulet, new moon, oden, orange, outbox tray, package,
    packman, page, panel, paper, paprika, park, parking, pasta, patchwork, pda, people, performing arts, photo, ping
    pong, placard, pong, popcorn, pouring liquid, projectile, quaver, railway track, rana, ras, reaching, reed,
    reunion, road runner, rock, rugby, sake, salad, salami, salt, save, scale, seal, server, shaved ice, smoke,
    soap, soup, spaghetti, stamp, sunrise, sunset, sunshine, sushi, suspension railway, table tennis, tennis,
    thread, toque, tramway, transistor, trefoil, troll, tux, unlocked, user, video, virus, water wave, wedding, wind
    face, wood, workstation, yang, yarn""".replace("\n    ", " ").split(", ")  # noqa: SIM905
)
NOT_PAINTED = {"rainbow", "artist palette", "disco ball", "mirror ball", "beach ball", "balloon"}
SHAPES = {
    "circle": '<circle cx="32" cy="32" r="32"/>', "square": '<rect width="64" height="64"/>',
    "triangle": '<path d="M32 4 64 60H0z"/>', 
    "star": '<path d="M32 0l9 22 23 2-17 15 5 24-20-12-20 12 5-24L0 24l23-2z"/>',
    "diamond": '<path d="M32 0 58 32 32 64 6 32z"/>',
    "heart": '<path d="M32 62C-20 24 10-12 32 14 54-12 84 24 32 62z"/>',
    "ring": '<path fill-rule="evenodd" d="M32 0a32 32 0 1 0 .01 0zM32 16a16 16 0 1 1-.01 0z"/>',
    "cross": '<path d="M22 0h20v22h22v20H42v22H22V42H0V22h22z"/>',
}  # fmt: skip
LARGEST_SVG = 400_000  # bytes; larger ones take seconds
OWN_SHARE, NATURAL_SHARE = 0.62, 0.25  # of its pixels: to be called its colour; to be a colour it may have by nature
HELD_OUT_CONCEPTS = 0.05  # of the clip art whose names no emoji has, as of the emoji


def fill_square(picture: Image.Image) -> np.ndarray | None:
    """What is seen of a picture, cut out and reduced to uint8 [64, 64, 4]; None where there is next to nothing."""
    rgba = picture.convert("RGBA")
    box = rgba.getchannel("A").point(lambda level: 255 * (level > 24)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    cut = rgba.crop(box)
    side = max(cut.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return np.asarray(square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGBA"))


def is_whole(sprite: np.ndarray) -> bool:
    """Whether a sprite is one piece when it is small, and not a thin line: only such things can be counted."""
    small = Image.fromarray(sprite, "RGBA").resize((18, 18), Image.Resampling.BOX)
    seen = np.asarray(small)[..., 3] > 100
    pale = np.asarray(small)[..., :3].min(-1) > 225  # nothing of it would be seen on white
    return float(seen.mean()) > 0.25 and count_parts(seen) == 1 and float((seen & ~pale).sum() / seen.sum()) > 0.5


def measure_looks(sprite: np.ndarray) -> tuple[str, set[str]]:
    """The colour that a sprite has by itself, "" for several, and all that it has some of."""
    rgb = sprite[..., :3][sprite[..., 3] > 127] / 255
    shares = np.bincount(name_colours(rgb), minlength=len(COLOURS)) / max(len(rgb), 1)
    main, share = find_main_colour(rgb)
    pale = float((rgb.min(1) > 0.85).mean())  # white is no colour of the table, and grey would be said of it
    own = main if share >= OWN_SHARE and pale < 0.15 else ""
    return own, {name for name, part in zip(COLOURS, shares, strict=True) if part >= NATURAL_SHARE}


def list_emoji(raw: Path, concepts: Sequence[Concept]) -> Iterator[tuple[str, str, str, str, np.ndarray]]:
    """(name, family, split, style, sprite) of every emoji that may stand in a scene."""
    draw_of_style = open_emoji_styles(raw)
    for concept in concepts:
        name = concept.label.lower()
        if concept.group not in GROUPS or not is_plain_name(name):
            continue
        for style, draw in draw_of_style.items():
            picture = draw(concept.key, concept.label)
            sprite = None if picture is None else fill_square(picture)
            if sprite is not None:
                yield name, concept.family, concept.split, style, sprite


def is_plain_name(name: str) -> bool:
    """One or two words for one thing that can be counted: no plural, no colour, none of `LEFT_OUT`."""
    noun = name.rpartition(" ")[2]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    return bool(PLAIN_NAME.fullmatch(name)) and not plural and name not in LEFT_OUT and not {*name.split()} & {*COLOURS}


def list_clip_art(raw: Path, families: dict[str, str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, family, sprite) of clip art whose title is a noun of WordNet. families: of the emoji, by name."""
    nouns = read_nouns(raw)
    root = raw / "openclipart-svg" / "usr" / "share" / "openclipart" / "svg"
    if not root.is_dir():
        raise FileNotFoundError(2, "missing", str(root))
    for folder in CLIP_ART_FOLDERS:
        for path in sorted((root / folder).rglob("*.svg")):
            name = read_title(path)
            if name not in nouns or not is_plain_name(name) or path.stat().st_size > LARGEST_SVG:
                continue
            try:
                sprite = fill_square(render_svg(path.read_text("utf-8", "replace")))
            except ValueError:  # some are damaged
                continue
            if sprite is not None:
                yield name, families.get(name, f"clipart:{name}"), sprite


def read_title(path: Path) -> str:
    """`<dc:title>Red_Apple (b and w) 2</dc:title>` → `red apple`."""
    found = re.search(r"<dc:title>(.*?)</dc:title>", path.read_text("utf-8", "replace")[:30_000], re.DOTALL)
    title = html.unescape(found[1]).lower() if found else ""
    title = re.sub(r"\(.*?\)|[_\-]", " ", title)
    return re.sub(r"\s+", " ", re.sub(r"\d+$", "", title.strip())).strip()


def read_nouns(raw: Path) -> set[str]:
    """The nouns of WordNet, several words joined by spaces."""
    index = raw / "wordnet-base" / "usr" / "share" / "wordnet" / "index.noun"
    lines = index.read_text("latin-1").splitlines()
    return {line.split()[0].replace("_", " ") for line in lines if not line.startswith(" ")}


def build_sprites(raw: Path, concepts: Sequence[Concept]) -> tuple[list[Thing], dict[str, np.ndarray]]:
    """The things, and the arrays of their sprites."""
    found: list[tuple[str, str, str, str, np.ndarray]] = []
    for number, entry in enumerate(list_emoji(raw, concepts)):
        found.append(entry)
        if number % 400 == 0:
            print(f"{number} emoji", file=sys.stderr, flush=True)
    # clip art of a concept that is held out is held out, though no emoji of its group stands in scenes
    families = {one.label.lower(): one.family for one in concepts if one.split != "train"}
    families |= {name: family for name, family, *_ in found}
    splits = {one.family: one.split for one in concepts}
    for name, family, sprite in list_clip_art(raw, families):
        rank = hashlib.sha256(f"{SPLIT_SEED}:{family}".encode()).digest()
        own = "heldout" if int.from_bytes(rank[:4], "big") < HELD_OUT_CONCEPTS * 2**32 else "train"
        found.append((name, family, splits.get(family, own), "clipart", sprite))
    for name, body in SHAPES.items():
        markup = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" fill="#909090">{body}</svg>'
        sprite = np.asarray(render_svg(markup, SIDE).convert("RGBA"))
        found.append((name, f"shape:{name}", "train", "shape", sprite))
    things: dict[tuple[str, str], int] = {}
    natural: dict[int, set[str]] = defaultdict(set)
    rows: list[tuple[int, str, str, np.ndarray]] = []
    made: list[tuple[str, str, str]] = []
    for name, family, split, style, sprite in found:
        if not is_whole(sprite):
            continue
        if (name, family) not in things:
            things[name, family] = len(made)
            made.append((name, family, split))
        thing = things[name, family]
        own, has = ("", set()) if style == "shape" else measure_looks(sprite)
        natural[thing] |= has
        rows.append((thing, style, own, sprite))
    listed = [
        Thing(number, name, family, split, tuple(sorted(natural[number])), name not in NOT_PAINTED)
        for number, (name, family, split) in enumerate(made)
    ]
    arrays = {
        "pixels": np.stack([row[3] for row in rows]), "thing": np.array([row[0] for row in rows], np.int32),
        "style": np.array([row[1] for row in rows]), "looks": np.array([row[2] for row in rows]),
    }  # fmt: skip
    return listed, arrays


def make_planner(things: Sequence[Thing], sprites: dict[str, np.ndarray], split: Split) -> Planner:
    """What plans the scenes of a split: of held-out things for `concept`, in the style kept back for `style`."""
    usable: dict[int, list[int]] = defaultdict(list)
    wanted = "heldout" if split == "concept" else "train"
    for row, (thing, style) in enumerate(zip(sprites["thing"].tolist(), sprites["style"].tolist(), strict=True)):
        if things[thing].split == wanted and (style in EVALUATION_STYLES) == (split == "style"):
            usable[thing].append(row)
    return Planner(things, usable, sprites["looks"].tolist())


def plan_all(
    things: Sequence[Thing], sprites: dict[str, np.ndarray], counts: dict[Split, tuple[int, int]]
) -> tuple[list[Scene], list[Scene]]:
    """The pictures and the clips; counts: of both, a split."""
    pictures: list[Scene] = []
    clips: list[Scene] = []
    for split, (num_pictures, num_clips) in counts.items():
        planner = make_planner(things, sprites, split)
        kinds = [None] if split == "train" else list(SHARES)  # to test on: as many of each
        pictures += [planner.plan(number, split, kinds[number % len(kinds)]) for number in range(num_pictures)]
        clips += [planner.plan(number, split, "clip") for number in range(num_clips)]
    return pictures, clips


def describe_split(things: Sequence[Thing], counts: dict[Split, tuple[int, int]]) -> dict[str, object]:
    """What is held out, written out wherever it is a list of reasonable length."""
    families = sorted({thing.family for thing in things if thing.split == "train"})
    kinds = {"colour": list(COLOURS), "count": ["1", "2", "3", "4", "5"], "motion": list(MOTIONS)}
    held = {
        kind: [f"{name} {family}" for family in families for name in names if is_held_out(kind, name, family)]
        for kind, names in kinds.items()
    }
    return {
        "rule": f"sha256('{SPLIT_SEED}/KIND/NAME/FAMILY') below {HELD_OUT_SHARE:g} of its range, KIND/FAMILY/FAMILY in "
        "order of the alphabet for a pair; a colour that a thing has by nature is not held out",
        "styles": list(EVALUATION_STYLES),
        "things": sorted(thing.name for thing in things if thing.split == "heldout"),
        "combinations": held,
        "pictures and clips": {split: list(numbers) for split, numbers in counts.items()},
    }


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    archive = io.BytesIO()  # np.savez dates every member 1980, so equal arrays give equal bytes
    np.savez(archive, **arrays)  # type: ignore[arg-type]
    write_bytes_atomically(path, archive.getvalue())


def write_prepared(
    folder: Path, things: list[Thing], sprites: dict[str, np.ndarray], counts: dict[Split, tuple[int, int]]
) -> None:
    """All files of `OUT/scenes`, the manifest last."""
    pictures, clips = plan_all(things, sprites, counts)
    painter = Painter(sprites["pixels"])
    pixels = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
    for row, scene in enumerate(pictures):
        pixels[row] = painter.draw(scene)
    frames = np.stack([painter.draw_clip(scene) for scene in clips])
    write_json(folder / "things.json", [asdict(thing) for thing in things], indent=0)
    write_arrays(folder / "sprites.npz", **sprites)
    write_scenes(folder / "scenes.jsonl", pictures)
    write_arrays(folder / "scenes.npz", pixels=pixels)
    write_scenes(folder / "moves.jsonl", clips)
    write_arrays(folder / "moves.npz", frames=frames)
    write_json(folder / "split.json", describe_split(things, counts), indent=1)
    hashes = {}
    for path in sorted(folder.glob("*.*")):
        if path.name != "manifest.json" and path.suffix in (".json", ".jsonl", ".npz"):
            with path.open("rb") as stream:
                hashes[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_json(folder / "manifest.json", hashes, indent=1)
    kinds = Counter(f"{scene.split} {scene.kind}" for scene in [*pictures, *clips])
    print(", ".join(f"{count} {kind}" for kind, count in kinds.items()), file=sys.stderr)


def write_folder(
    folder: Path, things: list[Thing], sprites: dict[str, np.ndarray], counts: dict[Split, tuple[int, int]]
) -> None:
    """Scenes as files with conversations, and sheets of them with their captions."""
    pictures, clips = plan_all(things, sprites, counts)
    painter = Painter(sprites["pixels"])
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate([*pictures, *clips]):
        words, draws = SceneWords(scene, things), make_generator("folder", number)
        if scene.kind == "clip":
            name = f"{number:05}.gif"
            frames = torch.from_numpy(painter.draw_clip(scene)).permute(0, 3, 1, 2).float() / 255
            save_video(frames, folder / name, 8.0)
        else:
            name = f"{number:05}.png"
            Image.fromarray(painter.draw(scene)).save(folder / name)
        part = {"type": "video" if scene.kind == "clip" else "image", "path": name}
        turns: list[dict[str, object]] = []
        for question in [*words.ask_all(draws), None]:
            asked = "Describe it." if question is None else question.text
            answer = words.caption(draws) if question is None else question.answer
            content: list[dict[str, str]] = [{"type": "text", "text": asked}]
            turns.append({"role": "user", "content": content if turns else [part, *content]})
            turns.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"messages": turns}))
    write_bytes_atomically(folder / "data.jsonl", ("\n".join(lines) + "\n").encode())
    print(f"wrote {len(lines)} scenes to {folder}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, default=Path("data/prepared"), help="folder with concepts.json to write to")
    parser.add_argument("--pictures", type=int, default=24_000, help="training pictures")
    parser.add_argument("--clips", type=int, default=2_400, help="training clips")
    parser.add_argument(
        "--test", type=int, default=1000, help="pictures of each split to test on; a fifth as many clips"
    )
    parser.add_argument("--folder", type=Path, help="write files to look at here, and nothing else")
    options = parser.parse_args(arguments)
    try:
        concepts = load_concepts(options.out / "concepts.json")
        things, sprites = build_sprites(options.raw, concepts)
    except FileNotFoundError as error:
        fetch = "python tools/fetch_data.py --set images --set clipart --set text"
        print(f"{error.filename} is missing: run `{fetch}` first", file=sys.stderr)
        raise SystemExit(2) from None
    except ValueError as error:
        print(f"prepare_scenes: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"{len(things)} things, {len(sprites['thing'])} sprites, {dict(Counter(sprites['style'].tolist()))}",
        file=sys.stderr,
    )
    counts: dict[Split, tuple[int, int]] = {split: (options.test, options.test // 5) for split in SPLITS}
    counts["train"] = (options.pictures, options.clips)
    if options.folder is not None:
        counts = {split: numbers for split, numbers in counts.items() if split == "train"}
        write_folder(options.folder, things, sprites, counts)
    else:
        write_prepared(options.out / "scenes", things, sprites, counts)


if __name__ == "__main__":
    main()
