"""The preparation tools: joined by code point, split by family, on white, reproducible to the byte."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tools import prepare_clips, prepare_images
from unimodal.data.emoji_clips import MIN_MOTION, measure_motion
from unimodal.data.emoji_concepts import choose_held_out_families, find_family, put_on_white

SKIN = "1F3FD"


def png(colour, size=64, mode="RGBA") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def raw(tmp_path):
    """Five emoji, of which a flag and a component are left out, as the packages lay them out."""
    folder = tmp_path / "raw"

    def put(path, data):
        path = folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    groups = {"0": "smileys-emotion", "1": "people-body", "2": "component", "8": "symbols", "9": "flags"}
    put("emojibase-data/package/meta/groups.json", json.dumps({"groups": groups}))
    rows = [("00A9-FE0F", "copyright", 8), ("1F600", "grinning face", 0), ("1F468-200D-2695-FE0F", "man doctor", 1),
            ("1F1E6-1F1E8", "flag: Ascension", 9), (SKIN, "medium skin tone", 2)]  # fmt: skip
    entries = [{"hexcode": code, "label": label, "group": group, "order": order, "tags": [label]}
               for order, (code, label, group) in enumerate(rows)]  # fmt: skip
    entries.append({"hexcode": "1F1E6", "label": "regional indicator A"})
    put("emojibase-data/package/en/data.json", json.dumps(entries))
    google = "emoji-datasource-google/package/img/google/64"
    put(f"{google}/00a9-fe0f.png", png((255, 0, 0, 255)))
    put(f"{google}/1f600.png", png((0, 0, 0, 0)))  # transparent: becomes white
    put(f"{google}/1f468-200d-2695-fe0f.png", png((0, 0, 255, 255)))
    put(f"{google}/1f1e6-1f1e8.png", png((9, 9, 9, 255)))
    put("lobehub-fluent-emoji-3d/package/assets/1f600.webp", png((0, 255, 0, 255), 256))
    icons = {"grinning-face": {"body": '<rect width="32" height="32" fill="#ff0000"/>'},
             "half": {"body": '<rect width="16" height="32" fill="#0000ff"/>'}}  # fmt: skip
    icon_set = {"icons": icons, "aliases": {"copyright": {"parent": "half", "hFlip": True}}, "width": 32, "height": 32}
    put("iconify-json-fluent-emoji-flat/package/icons.json", json.dumps(icon_set))
    put("iconify-json-fluent-emoji-flat/package/chars.json", json.dumps({"1f600": "grinning-face"}))
    rectangle = '<rect width="36" height="36" fill="#00ff00"/>'
    square = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">{rectangle}</svg>'
    put("twemoji-svg/package/a9.svg", square)
    for number in (1, 2, 3, 4):
        (folder / f"lobehub-fluent-emoji-anim-{number}/package/assets").mkdir(parents=True)
    return folder


def test_pictures_are_joined_on_the_code_point(raw, tmp_path):
    pytest.importorskip("resvg_py")
    out = tmp_path / "out"
    prepare_images.main(["--raw", str(raw), "--out", str(out)])
    concepts = json.loads((out / "concepts.json").read_text())
    assert [concept["key"] for concept in concepts] == ["00a9", "1f600", "1f468-200d-2695"]
    assert [concept["id"] for concept in concepts] == [0, 1, 2]
    assert concepts[2]["family"] == "1f9d1-200d-2695"
    data = np.load(out / "images.npz")
    pixels = data["pixels"]
    got = {(concepts[c]["key"], str(s)): p for c, s, p in zip(data["concept"], data["style"], pixels, strict=True)}
    colours = {
        ("00a9", "noto"): (255, 0, 0),
        ("00a9", "twemoji"): (0, 255, 0),  # named `a9.svg` there
        ("1f600", "noto"): (255, 255, 255),
        ("1f600", "fluent3d"): (0, 255, 0),
        ("1f600", "fluentflat"): (255, 0, 0),
        ("1f468-200d-2695", "noto"): (0, 0, 255),
    }
    for key, colour in colours.items():
        assert (got.pop(key) == colour).all(), key
    mirrored = got.pop(("00a9", "fluentflat"))  # found by its label, drawn as the mirror image of its parent
    assert (mirrored[:, :30] == 255).all() and (mirrored[:, 34:] == (0, 0, 255)).all()
    assert not got and pixels.shape[1:] == (64, 64, 3) and pixels.dtype == np.uint8
    again = tmp_path / "again"
    prepare_images.main(["--raw", str(raw), "--out", str(again)])
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_a_missing_package_is_one_line_and_exit_status_2(tmp_path, capsys):
    for tool in (prepare_images, prepare_clips):
        with pytest.raises(SystemExit) as stop:
            tool.main(["--raw", str(tmp_path), "--out", str(tmp_path)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def animation(path, motion: bool, still_for: int = 0, num_frames: int = 72) -> None:
    """24 frames a second: a square that moves (from a given frame on) or does not."""
    frames = []
    for number in range(num_frames):
        picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        left = 3 * max(0, number - still_for) if motion else 0
        picture.paste((255, 0, 0, 255), (left % 192, 64, left % 192 + 64, 192))
        frames.append(picture)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=42, lossless=True, minimize_size=False)


def test_clips_move_and_keep_the_concept(raw, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    keys = ["00a9", "1f600", "1f601", "1f602"]
    (out / "concepts.json").write_text(json.dumps([{"id": number, "key": key} for number, key in enumerate(keys)]))
    assets = [raw / f"lobehub-fluent-emoji-anim-{number}" / "package" / "assets" for number in (1, 2, 3, 4)]
    animation(assets[0] / "1f600.webp", motion=True)
    animation(assets[1] / "1f601.webp", motion=False)
    animation(assets[2] / "00a9-fe0f.webp", motion=True, still_for=24)
    (assets[3] / "1f602.webp").write_bytes(png((255, 0, 0, 255)))  # a single frame
    animation(assets[3] / "1f603.webp", motion=True)  # no such concept
    prepare_clips.main(["--raw", str(raw), "--out", str(out)])
    data = np.load(out / "clips.npz")
    frames, concept = data["frames"], data["concept"]
    assert concept.tolist() == [0, 1] and frames.shape == (2, 9, 64, 64, 3) and frames.dtype == np.uint8

    def left_edge(frame):  # in source pixels
        return 4 * int(np.flatnonzero((frame[:, :, 1] < 128).any(0))[0])

    # 8 frames a second of 24: three source frames, so 9 source pixels, a step (the reduced picture shows it to 4)
    steps = np.diff([left_edge(frame) for frame in frames[1]])
    assert left_edge(frames[1][0]) == 0 and steps.sum() == pytest.approx(72, abs=4) and (abs(steps - 9) <= 4).all()
    # the one that is still for a second starts later, where it moves
    assert measure_motion(frames[0]) > MIN_MOTION and left_edge(frames[0][-1]) > 60


def test_genders_and_directions_are_one_family():
    assert find_family("1f468-200d-1f33e", "man farmer") == find_family("1f9d1-200d-1f33e", "farmer")
    assert find_family("1f926-200d-2640", "woman facepalming") == find_family("1f926", "person facepalming") == "1f926"
    assert find_family("1f6b6-200d-2642-200d-27a1", "man walking: facing right") == "1f6b6"
    assert find_family("1f46c", "men holding hands") == find_family(
        "1f9d1-200d-1f91d-200d-1f9d1", "people holding hands"
    )
    assert find_family("1f469-200d-2764-200d-1f469", "couple with heart: woman, woman") == "1f491"
    assert find_family("2764-200d-1f525", "heart on fire") == "2764-200d-1f525"
    assert find_family("1f467", "girl") == find_family("1f466", "boy") != find_family("1f468", "man")


def test_the_split_is_5_percent_and_does_not_move_when_families_are_added():
    families = {f"family {number}" for number in range(1400)}
    held_out = choose_held_out_families(families)
    assert len(held_out) == 70 and held_out <= families
    more = choose_held_out_families(families | {f"new {number}" for number in range(14)})
    assert len(held_out & more) >= 65


def test_alpha_on_white_and_not_square():
    pixels = put_on_white(Image.new("RGBA", (32, 16), (0, 0, 0, 128)))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:12] == 255).all() and (pixels[-12:] == 255).all() and abs(int(pixels[32, 32, 0]) - 127) <= 1
