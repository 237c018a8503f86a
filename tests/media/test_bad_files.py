"""Every file that cannot be used gives one line that names it and the fix, and nothing else on the terminal."""

import errno
import io
import os
import random
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from unimodal.media import image as image_module
from unimodal.media.audio import load_audio, save_audio
from unimodal.media.files import silence_stderr
from unimodal.media.image import load_image, save_image
from unimodal.media.kind import detect_kind
from unimodal.media.limits import MediaLimits
from unimodal.media.video import load_video, save_video


def load_film(source):
    return load_video(source, 8)


LOADERS = {"image": load_image, "audio": load_audio, "video": load_film}


def picture_bytes(format_name: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, format_name, **options)
    return memory.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """One small valid file of each kind, by suffix."""
    folder = tmp_path_factory.mktemp("good")
    found = {".png": picture_bytes("PNG"), ".jpg": picture_bytes("JPEG"), ".still.gif": picture_bytes("GIF")}
    found |= {".still.webp": picture_bytes("WEBP"), ".progressive.jpg": picture_bytes("JPEG", progressive=True)}
    sound = 0.4 * torch.sin(torch.arange(8000) * 0.17)
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        save_audio(sound, folder / f"a{suffix}", 16000)
        found[suffix] = (folder / f"a{suffix}").read_bytes()
    clip = torch.rand(5, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    for suffix in (".mp4", ".webm", ".gif", ".webp"):
        save_video(clip, folder / f"a{suffix}", 8)
        found[suffix] = (folder / f"a{suffix}").read_bytes()
    return found


KIND_OF = {
    **dict.fromkeys([".png", ".jpg", ".progressive.jpg", ".still.gif", ".still.webp"], "image"),
    **dict.fromkeys([".wav", ".flac", ".ogg", ".mp3"], "audio"),
    **dict.fromkeys([".mp4", ".webm", ".gif", ".webp"], "video"),
}


def refusal(use, source) -> str:
    """The one line with which `use` refuses `source`."""
    with pytest.raises(ValueError) as caught:
        use(source)
    message = str(caught.value)
    assert "\n" not in message and message == message.strip() and ";" in message  # what is wrong; what to do
    return message


@pytest.mark.parametrize("suffix", KIND_OF)
def test_kind_is_told_by_content_not_by_name(suffix, good, tmp_path):
    path = tmp_path / "renamed.txt"
    path.write_bytes(good[suffix])
    assert detect_kind(path) == detect_kind(good[suffix]) == KIND_OF[suffix]
    assert LOADERS[KIND_OF[suffix]](path).numel() > 0


@pytest.mark.parametrize("suffix", KIND_OF)
def test_the_wrong_loader_says_what_the_file_is(suffix, good, tmp_path):
    path = tmp_path / "mystery.png"
    path.write_bytes(good[suffix])
    for kind, load in LOADERS.items():
        if kind == KIND_OF[suffix] or suffix in (".gif", ".webp", ".still.gif", ".still.webp") and kind != "audio":
            continue
        message = refusal(load, path)
        assert str(path) in message and f"pass it as {KIND_OF[suffix]}" in message


def test_a_wav_named_png_says_so(good, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(good[".wav"])
    assert refusal(load_image, path) == f"{path} is a WAV sound, not a picture; pass it as audio"


FOREIGN = {
    b"hello, this is not a picture\n": "a text file",
    "naïve text".encode() * 1000: "a text file",
    b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n": "a text file",
    b"ffconcat version 1.0\nfile '/etc/passwd'\n": "a text file",
    b"<!DOCTYPE html><html>404</html>": "a web page",
    b"<?xml version='1.0'?>\n<svg width='9'></svg>": "an SVG drawing",
    b"%PDF-1.7 ...": "a PDF document",
    b"PK\3\4......": "a ZIP archive",
    b"\x1f\x8b\x08\x00......": "a gzip archive",
    b"\0" * 500: "a file of zero bytes",
    bytes(range(128, 256)) * 4: "a file of unknown type",
    b"\x93": "a file of unknown type",
}


@pytest.mark.parametrize("data,words", FOREIGN.items(), ids=range(len(FOREIGN)))
@pytest.mark.parametrize("suffix", [".png", ".wav", ".mp4"])
def test_foreign_files_are_named(data, words, suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    for use in (*LOADERS.values(), detect_kind):
        assert refusal(use, path).startswith(f"{path} is {words}, not a ")


BROKEN = {
    b"BM......": ("image", "a BMP picture"),
    b"II*\0......": ("image", "a TIFF picture"),
    b"\0\0\0\x18ftypavif\0\0\0\0": ("image", "an AVIF picture"),
    b"\0\0\0\x18ftypheic\0\0\0\0": ("image", "a HEIC picture"),
    b"FORM\0\0\0\0AIFF": ("audio", "an AIFF sound"),
    b"\xff\xf1......": ("audio", "an AAC sound"),
    b"RIFF\0\0\0\0AVI LIST": ("video", "an AVI film"),
    (b"G" + b"\0" * 187) * 3: ("video", "an MPEG transport stream"),
}


@pytest.mark.parametrize("data,kind,words", [(data, *what) for data, what in BROKEN.items()], ids=range(len(BROKEN)))
def test_a_start_alone_is_named_and_called_damaged(data, kind, words, tmp_path):
    path = tmp_path / "file.png"
    path.write_bytes(data)
    for other, load in LOADERS.items():
        message = refusal(load, path)
        if other == kind or (other, kind) == ("audio", "video"):  # the sound of a film
            assert message.startswith(f"{path} is {words}, but damaged (")
        else:
            assert message == f"{path} is {words}, not a {NOUNS[other]}; pass it as {kind}"


NOUNS = {"image": "picture", "audio": "sound", "video": "film"}


def test_what_is_not_read_is_told_from_what_is_another_medium(tmp_path):
    path = tmp_path / "a.amr"
    path.write_bytes(b"#!AMR\n......")
    assert refusal(load_audio, path) == f"{path} is an AMR sound, which is not read here; convert it to WAV"
    assert "is an AMR sound, not a picture" in refusal(load_image, path)


def test_missing_empty_and_odd_paths(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "two\nlines.png").write_text("x")
    cases = {
        tmp_path / "none.png": "no such file",
        tmp_path: "is a folder",
        tmp_path / "empty.png": "is empty (0 bytes)",
        tmp_path / "pipe.png": "not a regular file",
        tmp_path / "empty.png" / "a.png": "cannot be opened",
        tmp_path / "two\nlines.png": "two\\nlines.png",
        tmp_path / "zero\0byte.png": "zero\\x00byte.png",
        tmp_path / ("n" * 300): "cannot be opened",
        b"": "is empty (0 bytes)",
    }
    for source, words in cases.items():
        for use in (*LOADERS.values(), detect_kind):
            assert words in refusal(use, source)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").chmod(0)
    assert "access rights" in refusal(load_image, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", KIND_OF)
def test_truncated_files_are_refused(suffix, good, tmp_path, capfd, recwarn):
    """Cut anywhere: what cannot be told from a whole file is only an MP3, which is a row of independent frames."""
    data = good[suffix]
    for part in (0.02, 0.3, 0.5, 0.9, 0.99):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[: max(1, int(len(data) * part))])
        if suffix == ".mp3" and part >= 0.9:  # all samples are still there; the rest is what its encoder added
            continue
        assert str(path) in refusal(LOADERS[KIND_OF[suffix]], path)
    out, err = capfd.readouterr()
    assert out == "" and err == "" and not recwarn


@pytest.mark.parametrize("suffix", KIND_OF)
def test_damage_gives_a_result_or_one_line_and_never_noise(suffix, good, capfd, recwarn):
    generator = random.Random(suffix)
    load, data = LOADERS[KIND_OF[suffix]], good[suffix]
    for attempt in range(20):
        damaged = bytearray(data)
        reach = len(data) if attempt % 2 else min(len(data), 64)
        for _ in range(generator.choice([1, 3, 10])):
            damaged[generator.randrange(12, reach)] = generator.randrange(256)
        try:
            result = (
                load(bytes(damaged), limits=SMALL)
                if load is not load_film
                else load_video(bytes(damaged), 8, limits=SMALL)
            )
            assert torch.isfinite(result.float()).all()
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("<bytes> ")
    out, err = capfd.readouterr()
    assert out == "" and err == "" and not recwarn


SMALL = MediaLimits(max_pixels=1 << 20, max_seconds=20, max_frames=500, max_clip_pixels=1 << 22)


def png_header(width: int, height: int) -> bytes:
    """A PNG of the given size whose data, if it were read, would be zeros."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(bytes(1 << 20))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_files() -> dict[str, tuple[bytes, str]]:
    jpeg = bytearray(picture_bytes("JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    gif = bytearray(picture_bytes("GIF"))
    gif[6:10] = struct.pack("<HH", 65000, 65000)
    gif_frame = bytearray(picture_bytes("GIF"))  # a small screen with a huge frame
    gif_frame[gif_frame.index(b"\x2c\0\0\0\0") + 5 : gif_frame.index(b"\x2c\0\0\0\0") + 9] = struct.pack(
        "<HH", 65000, 65000
    )
    webp = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16383).to_bytes(3, "little") * 2
    lossless = bytearray(picture_bytes("WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    return {
        "png": (png_header(30000, 30000), "30,000×30,000 = 900,000,000 pixels"),
        "jpeg": (bytes(jpeg), "65,000×65,000"),
        "gif": (bytes(gif), "65,000×65,000"),
        "gif frame": (bytes(gif_frame), "65,000×65,000"),
        "webp": (b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, "16,384×16,384"),
        "lossless webp": (bytes(lossless), "16,384×16,384"),
    }


@pytest.mark.parametrize("name", huge_files())
def test_huge_pictures_are_refused_before_any_decoder_sees_them(name, monkeypatch):
    def decoder(stream, filename=None):
        raise AssertionError("a decoder was opened")

    monkeypatch.setattr(image_module, "_PLUGINS", dict.fromkeys(image_module._PLUGINS, decoder))
    data, size = huge_files()[name]
    start_s = time.process_time()
    message = refusal(load_image, data)
    assert time.process_time() - start_s < 1
    assert size in message and "over the limit max_pixels=67,108,864" in message


def test_limits_of_pictures_and_sounds_are_settings(good):
    assert "max_pixels=1,999" in refusal(lambda s: load_image(s, MediaLimits(max_pixels=1999)), good[".png"])
    assert load_image(good[".png"], MediaLimits(max_pixels=2000)).shape == (3, 40, 50)
    assert "max_bytes=99" in refusal(lambda s: detect_kind(s, MediaLimits(max_bytes=99)), good[".png"])
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        message = refusal(lambda s: load_audio(s, limits=MediaLimits(max_seconds=0.4)), good[suffix])
        assert "lasts 0.5 s, over the limit max_seconds=0.4" in message
    assert "max_sample_rate_hz" in refusal(
        lambda s: load_audio(s, limits=MediaLimits(max_sample_rate_hz=8000)), good[".wav"]
    )
    memory = io.BytesIO()
    soundfile.write(memory, np.zeros((10, 3)), 16000, format="WAV")
    assert "has 3 channels" in refusal(lambda s: load_audio(s, limits=MediaLimits(max_channels=2)), memory.getvalue())
    with pytest.raises(ValueError, match="max_seconds=0"):
        MediaLimits(max_seconds=0)


def test_a_huge_sound_is_refused_by_its_header():
    """A WAV that declares 90 minutes, and one that a program piped without knowing the length."""
    memory = io.BytesIO()
    soundfile.write(memory, np.zeros(100), 16000, format="WAV")
    data = bytearray(memory.getvalue())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", 16000 * 2 * 5400)
    assert "cut short" in refusal(load_audio, bytes(data))
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF):
        data[at + 4 : at + 8] = struct.pack("<I", unknown)
        assert load_audio(bytes(data)).shape == (100,)


def test_a_flac_of_eleven_minutes_in_a_few_bytes_is_refused(monkeypatch):
    memory = io.BytesIO()
    soundfile.write(memory, np.zeros(8000 * 660, np.int16), 8000, format="FLAC")
    assert len(memory.getvalue()) < 60_000
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("it was decoded"))
    assert "lasts 660.0 s, over the limit max_seconds=600" in refusal(load_audio, memory.getvalue())


def test_pillows_own_bomb_warning_does_not_come_out(good, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in (".gif", ".webp"):  # 768 pixels a frame
            assert load_film(good[suffix]).shape == (5, 3, 24, 32)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
        for suffix in (".png", ".jpg", ".still.gif", ".still.webp"):  # 2,000 pixels
            assert load_image(good[suffix]).shape == (3, 40, 50)


def test_warning_filters_and_stderr_are_restored(good, capfd):
    before = list(warnings.filters)
    load_image(good[".png"])
    load_audio(good[".mp3"])
    assert warnings.filters == before
    with silence_stderr():
        os.write(2, b"hidden\n")
        with silence_stderr():
            os.write(2, b"hidden\n")
        os.write(2, b"hidden\n")
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(torch.zeros(3, 4, 4), path)
    old = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for save in (
        lambda: save_image(torch.ones(3, 4, 4), path),
        lambda: save_audio(torch.ones(4), tmp_path / "a.wav", 16000),
        lambda: save_video(torch.ones(2, 3, 4, 4), tmp_path / "a.gif", 8),
    ):
        with pytest.raises(ValueError, match="cannot be written .No space left"):
            save()
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_writing_is_flushed_before_it_is_moved_and_interrupts_leave_nothing(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    old = (tmp_path / "a.png").read_bytes()
    assert calls[:2] == ["fsync", "replace"]

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_image(torch.ones(3, 4, 4), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_folders_and_devices_are_never_replaced(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "folder.png")
    (tmp_path / "null.png").symlink_to(os.devnull)
    save_image(torch.zeros(3, 4, 4), tmp_path / "null.png")
    assert (tmp_path / "null.png").is_symlink() and (tmp_path / "null.png").is_char_device()


def test_a_pipe_gets_the_whole_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe.png").read_bytes()))
    reader.start()
    save_image(torch.zeros(3, 4, 4), tmp_path / "pipe.png")
    reader.join(10)
    assert load_image(got[0]).shape == (3, 4, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.png"]
