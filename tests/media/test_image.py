import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.campaigns import examples
from unimodal.media.image import fit_image, load_image, save_image

PICTURES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (3, *s)))
quick = examples(15)


def encode(image: Image.Image, format_name: str, **options) -> bytes:
    memory = io.BytesIO()
    image.save(memory, format_name, **options)
    return memory.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixel_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@given(pixels=PICTURES)
@quick
def test_png_and_webp_keep_every_value(suffix, pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / f"a{suffix}"
    picture = torch.from_numpy(pixels)
    save_image(picture.float() / 255, path)
    assert torch.equal(load_image(path), picture)
    save_image(picture, path)
    assert torch.equal(load_image(path.read_bytes()), picture)


def test_jpeg_is_close_on_a_smooth_picture(tmp_path):
    ramp = torch.linspace(0, 1, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.3)])
    save_image(picture, tmp_path / "a.JPG")
    assert (load_image(tmp_path / "a.JPG") / 255 - picture).abs().max() < 0.03


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, format_name):
    """The stored picture is made so that a viewer shows red at top left, green at top right, blue at bottom left."""
    upright = np.full((16, 32, 3), 128, np.uint8)
    upright[:8, :8], upright[:8, -8:], upright[-8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {  # inverse of what the EXIF standard says each value means
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), format_name, exif=exif, quality=95)
    shown = load_image(data)
    assert shown.shape == (3, 16, 32)
    assert (shown.float() - pixel_first(upright)).abs().mean() < 6


def test_damaged_exif_does_not_matter(recwarn):
    data = encode(Image.fromarray(noise(8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fnonsense")
    assert load_image(data).shape == (3, 8, 8)
    assert not recwarn


@given(rgba=hnp.arrays(np.uint8, (3, 4, 4)))
@quick
def test_transparency_is_composited_on_white(rgba):
    shown = load_image(encode(Image.fromarray(rgba), "PNG")).numpy().transpose(1, 2, 0)
    alpha = rgba[:, :, 3:].astype(float) / 255
    assert np.abs(shown - (rgba[:, :, :3] * alpha + 255 * (1 - alpha))).max() <= 0.5 + 1e-9


def test_grey_with_alpha():
    shown = load_image(encode(Image.fromarray(np.array([[[0, 0], [0, 255], [100, 51]]], np.uint8)), "PNG"))
    assert shown[:, 0].tolist() == [[255, 0, 224]] * 3  # 100 · 0.2 + 255 · 0.8


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP"])
def test_transparent_palette_entry_is_white(format_name):
    picture = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    options = {"lossless": True} if format_name == "WEBP" else {}
    if format_name == "WEBP":
        picture.info["transparency"] = 0
        picture = picture.convert("RGBA")
    data = encode(picture, format_name, transparency=0, **options)
    expected = [[[255, 255, 255], [200, 0, 0]], [[0, 0, 200], [255, 255, 255]]]
    assert load_image(data).permute(1, 2, 0).tolist() == expected


def test_palette_with_an_alpha_for_each_entry(recwarn):
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    picture.putpalette([100, 100, 100] * 3)
    shown = load_image(encode(picture, "PNG", transparency=bytes([0, 51, 255])))
    assert shown[0, 0].tolist() == [255, 224, 100]
    assert not recwarn


@pytest.mark.parametrize("mode,key", [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_colour_key_transparency(mode, key):
    picture = Image.fromarray(np.array([[0 if mode == "1" else 7, 255]], np.uint8)).convert(mode)
    shown = load_image(encode(picture, "PNG", transparency=key))
    assert shown.permute(1, 2, 0).tolist() == [[[255] * 3, [255] * 3]]
    assert load_image(encode(picture, "PNG"))[0, 0, 0] < 8  # without the key it is dark


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = [0, 128, 257, 32768, 65535]
    shown = load_image(png(5, 1, 16, 0, b"\0" + struct.pack(">5H", *values)))
    assert shown[0, 0].tolist() == [round(v / 257) for v in values]
    keyed = load_image(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 301), chunk(b"tRNS", struct.pack(">H", 300))))
    assert keyed[0, 0].tolist() == [255, 1]


def test_sixteen_bit_colour():
    shown = load_image(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 65535, 32896, 0)))
    assert shown[:, 0, 0].tolist() == [255, 128, 0]
    key = chunk(b"tRNS", struct.pack(">3H", 65535, 32896, 0))
    assert load_image(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 65535, 32896, 0), key)).min() == 255
    translucent = load_image(png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0, 0, 0, 51 * 257)))
    assert translucent[:, 0, 0].tolist() == [204] * 3


def test_cmyk_jpeg_and_one_bit_png():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    red = load_image(encode(cmyk, "JPEG", quality=95))
    assert red[0].float().mean() > 200 and red[1:].float().mean() < 60
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert load_image(encode(bits, "PNG"))[:, 0].tolist() == [[0, 255]] * 3


@pytest.mark.parametrize("format_name", ["GIF", "WEBP"])
def test_an_animated_file_gives_its_first_frame(format_name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(data)[:, 3, 3].tolist() == [255, 0, 0]


def test_fit_keeps_a_picture_of_the_right_size_and_a_flat_colour():
    picture = pixel_first(noise(32, 32))
    for mode in ("pad", "crop", "stretch"):
        assert torch.equal(fit_image(picture, 32, mode), picture.float() / 255)
        flat = fit_image(torch.full((3, 50, 50), 51, dtype=torch.uint8), 16, mode)
        assert flat.dtype == torch.float32 and (flat - 0.2).abs().max() < 1e-5


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40))
@quick
def test_pad_shows_the_whole_picture_between_white_bars(height, width, size):
    fitted = fit_image(torch.zeros(3, height, width, dtype=torch.uint8), size)
    assert fitted.shape == (3, size, size)
    dark = fitted[0] < 0.5
    rows, columns = dark.any(1), dark.any(0)
    assert rows.sum() == max(1, round(height * size / max(height, width)))
    assert columns.sum() == max(1, round(width * size / max(height, width)))
    assert torch.equal(dark, rows[:, None] & columns[None])  # one box, and white is exactly white elsewhere
    assert (fitted[:, ~dark] == 1).all()
    first = rows.nonzero()[0].item()
    assert abs(first - (size - first - rows.sum().item())) <= 1  # centred


def test_crop_takes_the_centre_and_stretch_takes_all():
    picture = torch.zeros(3, 20, 60, dtype=torch.uint8)
    picture[:, :, 20:40] = 255
    assert fit_image(picture, 20, "crop").min() == 1
    thirds = fit_image(picture, 30, "stretch").mean(dim=(0, 1))
    assert thirds[:8].max() < 0.05 and thirds[13:17].min() > 0.95 and thirds[22:].max() < 0.05


def test_shrinking_is_antialiased():
    stripes = torch.zeros(3, 256, 256, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert (fit_image(stripes, 32) - 0.5).abs().max() < 0.02


def test_one_pixel_works(tmp_path):
    save_image(torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1), tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert picture.tolist() == [[[255]], [[0]], [[0]]]
    assert torch.equal(fit_image(picture, 8), torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize(
    "tensor,name,message",
    [
        (torch.zeros(3, 4, 4), "a.txt", "cannot save a picture as '.txt'"),
        (torch.zeros(3, 4, 4), "a", "a name without suffix"),
        (torch.zeros(4, 4), "a.png", r"expected a picture \[3, H, W\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "a.png", "float or uint8"),
        (torch.full((3, 4, 4), torch.nan), "a.png", "not numbers"),
        (torch.zeros(3, 2, 70000), "a.jpg", "cannot hold 70000×2 pixels"),
        (torch.zeros(3, 4, 4), "missing/a.png", "create it first"),
    ],
)
def test_what_cannot_be_saved_says_so_and_leaves_nothing(tensor, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_image(tensor, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests():
    with pytest.raises(ValueError, match="use load_image"):
        fit_image(torch.zeros(3, 4, 4), 8)
    with pytest.raises(ValueError, match="size=0"):
        fit_image(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)
    with pytest.raises(ValueError, match="choose pad, crop or stretch"):
        fit_image(torch.zeros(3, 4, 4, dtype=torch.uint8), 8, "squeeze")  # type: ignore[arg-type]
