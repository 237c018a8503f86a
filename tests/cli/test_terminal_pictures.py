"""What is written for a terminal, read back as a terminal reads it."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from unimodal.cli.terminal import Screen
from unimodal.cli.terminal_pictures import draw, draw_clip, draw_half_blocks, draw_sixel, find_nearest_of_256, fit_cells
from unimodal.media.image import resize


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def smooth(height: int, width: int) -> torch.Tensor:
    down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([down, across, 1 - down * across])


def enlarged(picture: torch.Tensor, times: int) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy().repeat(times, axis=0).repeat(times, axis=1)


# ---- terminals, small ones


def kitty_picture(text: str) -> tuple[np.ndarray, dict[str, str]]:
    """The picture and the keys of its first chunk."""
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == text  # nothing between them
    settings = [dict(key.split("=") for key in keys.split(",")) for keys, _ in chunks]
    assert [chunk["m"] for chunk in settings] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in chunks)
    assert all(set(later) == {"m"} for later in settings[1:])
    png = base64.b64decode("".join(data for _, data in chunks), validate=True)
    return np.array(Image.open(io.BytesIO(png))), settings[0]


def iterm_picture(text: str) -> tuple[np.ndarray, dict[str, str]]:
    found = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\a", text)
    assert found
    settings = dict(key.split("=") for key in found[1].split(";"))
    png = base64.b64decode(found[2], validate=True)
    assert int(settings["size"]) == len(png)
    return np.array(Image.open(io.BytesIO(png))), settings


def sixel_picture(text: str) -> np.ndarray:
    """Interprets DEC sixel: raster attributes, colour registers in percent, repeats, `$` and `-`."""
    found = re.fullmatch(r'\x1bP[\d;]*q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found
    width, height = int(found[1]), int(found[2])
    canvas = np.full((height + 5, width, 3), -1)
    colours: dict[int, tuple[int, ...]] = {}
    x, y, colour = 0, 0, None
    for define, number, repeat, letter, control in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|(?:!(\d+))?([?-~])|([$-])", found[3]
    ):
        if define:
            register, _, *percent = map(int, define.split(";"))
            assert register < 256 and max(percent) <= 100
            colours[register] = tuple(round(value * 255 / 100) for value in percent)
        elif number:
            colour = colours[int(number)]
        elif letter:
            count = int(repeat or 1)
            for bit in range(6):
                if ord(letter) - 63 >> bit & 1:
                    canvas[y + bit, x : x + count] = colour
            x += count
            assert x <= width
        elif control == "$":
            x = 0
        else:
            x, y = 0, y + 6
    assert (canvas[height:] == -1).all() and (canvas[:height] >= 0).all()  # every pixel, and none below the picture
    return canvas[:height]


def block_pixels(text: str, width: int) -> list[list[str]]:
    """Interprets half blocks: rows of colours as they are named in the escapes, two rows for each line."""
    rows: list[list[str]] = []
    for line in text.split("\n"):
        assert line.endswith("\x1b[0m")
        upper, lower, colours = [], [], {}
        for codes, letter in re.findall(r"\x1b\[([\d;]+)m|(▀)", line):
            if letter:
                upper.append(colours["38"])
                if "48" in colours:
                    lower.append(colours["48"])
            elif codes == "0":
                colours = {}
            else:
                colours.update(re.findall(r"([34]8);(2;\d+;\d+;\d+|5;\d+)", codes))
        assert len(upper) == width
        rows += [upper, lower] if lower else [upper]
    return rows


def rgb_of_256(number: int) -> tuple[int, int, int]:
    """xterm's colour table above the 16 that users choose."""
    assert 16 <= number <= 255
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    steps = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return tuple(0 if step == 0 else 55 + 40 * step for step in steps)


# ---- each way


def test_kitty_gets_the_picture_enlarged_in_whole_pixels():
    picture = noise(64, 64)
    shown, keys = kitty_picture(draw(picture, Screen("kitty", 100, 40, 10, 20)))
    assert np.array_equal(shown, enlarged(picture, 4))
    assert (keys["a"], keys["f"], keys["q"], keys["c"], keys["r"]) == ("T", "100", "2", "26", "13")


def test_iterm_gets_the_same():
    picture = noise(64, 48)
    shown, keys = iterm_picture(draw(picture, Screen("iterm", 100, 40)))
    assert np.array_equal(shown, enlarged(picture, 5)) and keys["inline"] == "1"
    assert (keys["width"], keys["height"]) == ("30", "20")


@pytest.mark.parametrize("height,width", [(64, 64), (7, 5), (1, 1), (13, 200)])
def test_sixel_shows_every_pixel(height, width):
    picture = (smooth(height, width) * 255).round().to(torch.uint8)
    shown = sixel_picture(draw_sixel(picture))
    assert shown.shape == (height, width, 3)
    error = np.abs(shown - picture.permute(1, 2, 0).numpy().astype(int))
    assert error.mean() < 10  # 256 colours of thousands, and percent


def test_sixel_is_exact_up_to_percent_for_few_colours():
    colours = noise(1, 100, seed=1)[:, 0]  # [3, 100]
    picture = colours[:, torch.randint(0, 100, (20, 31))]
    error = np.abs(sixel_picture(draw_sixel(picture)) - picture.permute(1, 2, 0).numpy().astype(int))
    assert error.max() <= 3


def test_sixel_of_a_plain_colour_is_short():
    text = draw_sixel(torch.zeros(3, 256, 256, dtype=torch.uint8))
    assert len(text) < 500 and (sixel_picture(text) == 0).all()


@pytest.mark.parametrize("height,width", [(6, 5), (7, 4), (1, 1)])
def test_half_blocks_show_every_pixel(height, width):
    picture = noise(height, width)
    shown = block_pixels(draw_half_blocks(picture, width), width)
    assert shown == [[f"2;{r};{g};{b}" for r, g, b in row] for row in picture.permute(1, 2, 0).tolist()]


def test_half_blocks_in_256_colours_are_the_nearest_ones():
    table = np.array([rgb_of_256(number) for number in range(16, 256)])
    picture = noise(9, 30)
    shown = block_pixels(draw_half_blocks(picture, 30, colours=256), 30)
    pixels = picture.permute(1, 2, 0).numpy().astype(int)
    for row, names in zip(pixels, shown, strict=True):
        for pixel, name in zip(row, names, strict=True):
            assert name.startswith("5;")
            distance = ((table - pixel) ** 2).sum(axis=1)
            chosen = ((np.array(rgb_of_256(int(name[2:]))) - pixel) ** 2).sum()
            assert chosen == distance.min()


def test_the_table_of_256_colours_maps_to_itself():
    colours = torch.tensor([rgb_of_256(number) for number in range(16, 256)], dtype=torch.uint8).T[:, None]
    found = [rgb_of_256(number) for number in find_nearest_of_256(colours)[0].tolist()]
    assert found == [tuple(colour) for colour in colours[:, 0].T.tolist()]


def test_half_blocks_keep_proportions_and_save_escapes():
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 40, 80)
    text = draw_half_blocks(red, 20)
    assert text.count("\n") == 4 and text.count("\x1b[38") == 5  # one colour a line


# ---- the size of the screen


@pytest.mark.parametrize("columns,lines", [(80, 24), (200, 60), (20, 10), (3, 3), (1, 1)])
@pytest.mark.parametrize("height,width", [(64, 64), (64, 16), (16, 64), (900, 1200)])
def test_a_picture_fits_the_screen(columns, lines, height, width):
    screen = Screen("kitty", columns, lines, 9, 18)
    pixels, wide, high = fit_cells(noise(height, width), screen)
    assert wide <= columns and high <= max(1, lines - 2)
    assert (wide - 1) * 9 < pixels.shape[2] <= wide * 9 and (high - 1) * 18 < pixels.shape[1] <= high * 18
    if columns >= 20:
        assert abs(np.log(pixels.shape[2] / pixels.shape[1] * height / width)) < 0.1
    rows = draw(noise(height, width), Screen("blocks", columns, lines)).split("\n")
    assert rows[0].count("▀") <= columns and (columns < 20 or len(rows) <= lines - 2)


@pytest.mark.parametrize("num_frames,columns,shown", [(9, 120, 5), (9, 80, 4), (9, 30, 1), (3, 120, 3), (1, 80, 1)])
def test_a_clip_is_a_strip_from_its_first_frame_on(num_frames, columns, shown):
    clip = torch.stack([torch.full((3, 16, 16), index / 10) for index in range(num_frames)])
    picture, _ = kitty_picture(draw_clip(clip, Screen("kitty", columns, 40)))
    side = picture.shape[0]
    assert picture.shape[1] == shown * side
    values = [int(picture[0, index * side, 0]) for index in range(shown)]
    assert values == sorted(set(values)) and values[0] == 0
    assert shown == 1 or values[-1] == round((num_frames - 1) * 25.5)
    blocks = draw_clip(clip, Screen("blocks", columns, 40))
    assert blocks.split("\n")[0].count("▀") == min(columns, shown * 40)


def test_a_large_picture_is_made_smaller():
    picture = (smooth(900, 1200) * 255).round().to(torch.uint8)
    shown, _ = iterm_picture(draw(picture, Screen("iterm", 50, 30, 8, 16)))
    assert shown.shape == (300, 400, 3)
    assert np.abs(shown - (resize(picture, 300, 400) * 255).permute(1, 2, 0).numpy()).max() < 2


def test_nothing_where_pictures_are_off():
    assert draw(noise(4, 4), Screen("off")) == "" == draw_clip(noise(4, 4)[None], Screen("off"))


def test_bad_requests():
    with pytest.raises(ValueError, match="width=0"):
        draw_half_blocks(noise(2, 2), 0)
    with pytest.raises(ValueError, match="not numbers"):
        draw(torch.full((3, 2, 2), float("nan")), Screen("kitty"))
