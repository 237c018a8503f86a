"""Every format that telephones, browsers, recorders and pipes write, against what it was made of."""

import io
import math
import struct

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms

from unimodal.media.audio import load_audio
from unimodal.media.hdr import HLG, PQ, map_tones, read_hlg, read_pq
from unimodal.media.image import load_image
from unimodal.media.kind import detect_kind
from unimodal.media.limits import MediaLimits
from unimodal.media.video import load_video

RATE_HZ = 16_000


def tone(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone that rises, so that what is cut or shifted shows: float32 [T]."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (200 * t + 40 * t**2))).astype(np.float32)


class Pipe(io.RawIOBase):
    """Where a program writes that cannot go back: the header keeps what it was given first."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += data
        return len(data)


def encode_sound(
    samples: np.ndarray, container: str, codec: str, rate_hz: int = RATE_HZ, pipe=False, **options
) -> bytes:
    target = Pipe() if pipe else io.BytesIO()
    with av.open(target, "w", format=container, options=options.pop("muxer", {})) as file:
        stream = file.add_stream(codec, rate=rate_hz, options=options)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.format, stream.layout, rate_hz, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate_hz
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(ready))
        file.mux([packet for packet in stream.encode() if packet.size])  # FLAC's last one holds only its header
    return bytes(target.data) if pipe else target.getvalue()


def similarity(loaded: torch.Tensor, samples: np.ndarray) -> float:
    """The correlation at the best of small shifts: coders delay a little."""
    a, best = loaded.double().numpy(), 0.0
    for shift in range(-1500, 1501, 4):
        one, other = a[max(0, shift) :], samples[max(0, -shift) :]
        count = min(len(one), len(other)) - 1600
        best = max(best, float(np.corrcoef(one[800:count], other[800:count])[0, 1]))
    return best


# ---- sounds


@pytest.mark.parametrize("seconds", [0.8, 21.3])
@pytest.mark.parametrize("options", [{"b": "64k"}, {"b": "32k"}, {"q": "4"}], ids=lambda o: "-".join(*o.items()))
@pytest.mark.parametrize("header", ["xing", "none", "id3"])
def test_an_mp3_is_read_to_its_end_whatever_its_header_says(seconds, options, header):
    muxer = {"write_xing": "1" if header == "xing" else "0", "id3v2_version": "3" if header == "id3" else "0"}
    data = encode_sound(tone(seconds), "mp3", "libmp3lame", muxer=muxer, pipe=header != "xing", **options)
    loaded = load_audio(data)
    assert abs(len(loaded) / RATE_HZ - seconds) < 0.12  # what an encoder adds, where no header says how much
    assert detect_kind(data) == "audio"


SOUNDS = {
    "m4a": ("ipod", "aac", False),
    "mov": ("mov", "aac", False),
    "aac": ("adts", "aac", False),
    "webm": ("webm", "libopus", False),
    "webm, piped": ("webm", "libopus", True),
    "mkv": ("matroska", "flac", False),
    "ogg flac": ("ogg", "flac", False),
    "opus": ("ogg", "libopus", False),
    "flac, piped": ("flac", "flac", True),
    "wav, piped": ("wav", "pcm_s16le", True),
    "aiff": ("aiff", "pcm_s16be", False),
    "au": ("au", "pcm_s16be", False),
    "caf": ("caf", "pcm_s16le", False),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_every_sound_is_read_whole(name):
    container, codec, pipe = SOUNDS[name]
    rate_hz = 48_000 if codec == "libopus" else RATE_HZ
    data = encode_sound(tone(1.5, rate_hz), container, codec, rate_hz, pipe)
    loaded = load_audio(data)
    assert detect_kind(data) == "audio"
    assert -0.02 < len(loaded) / RATE_HZ - 1.5 < 0.13  # AAC begins and ends in whole frames of 1,024
    assert similarity(loaded, tone(1.5)) > 0.98


@pytest.mark.parametrize("size", [0, 2_000_000_000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_of_a_stream_is_read_to_its_end(size):
    memory = io.BytesIO()
    soundfile.write(memory, tone(1.5), RATE_HZ, format="WAV", subtype="PCM_16")
    data = bytearray(memory.getvalue())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    assert np.array_equal(load_audio(bytes(data)).numpy(), load_audio(memory.getvalue()).numpy())


def test_a_sound_that_would_cost_too_much_is_refused_before_it_is_decoded(monkeypatch):
    """A FLAC of 8 channels at 192 kHz and ten minutes, in a few bytes: by its header."""
    memory = io.BytesIO()
    soundfile.write(memory, np.zeros((4096, 8), np.int16), 192_000, format="FLAC", subtype="PCM_16")
    data = bytearray(memory.getvalue())
    declared = 599 * 192_000
    data[21] = data[21] & 0xF0 | declared >> 32
    data[22:26] = struct.pack(">I", declared & 0xFFFFFFFF)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(ValueError, match=r"115,008,000 samples in each of 8 channels, over the limit max_samples"):
        load_audio(bytes(data))


# ---- pictures


def picture(width=48, height=32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 5, y * 7, 255 - x * 5], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    memory = io.BytesIO()
    image.save(memory, format=kind, **options)
    return memory.getvalue()


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "AVIF", "HEIF"])
def test_every_picture_is_read(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="the extra heic is not installed").register_heif_opener()
    data = saved(picture(), kind, **({} if kind in ("BMP", "TIFF") else {"quality": 100}))
    loaded = load_image(data).permute(1, 2, 0).int()
    assert (loaded - torch.from_numpy(np.array(picture())).int()).abs().max() <= (0 if kind in ("BMP", "TIFF") else 12)
    assert detect_kind(data) == "image"


def profile_of(gamma: float, primaries: tuple[tuple[float, float], ...]) -> bytes:
    """A matrix profile (ICC.1:2001-04) of a gamma and of primaries by xy, white D50 after Bradford from D65."""
    xy = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    d65, d50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])
    rgb_to_xyz = xy * np.linalg.solve(xy, d65)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford
    columns = (adapt @ rgb_to_xyz).T

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    name = b"wide test colours"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": desc, b"wtpt": xyz(d50), b"cprt": b"text\0\0\0\0none\0"}
    tags |= {key: xyz(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        data += bytes(-len(data) % 4)
        table += key + struct.pack(">II", at, len(data))
        body, at = body + data, at + len(data)
    head = struct.pack(">I4sI4s4s4s", at, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", *(round(v * 65536) for v in d50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


ADOBE = (2.19921875, ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)))
PROPHOTO = (1.8, ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)))


@pytest.mark.parametrize("space", [ADOBE, PROPHOTO], ids=["AdobeRGB", "ProPhoto"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_those_that_the_profile_means(space, kind, alpha):
    """Colours in the profile's space, saved with it, are read as the sRGB that they mean: over 35 dB."""
    if alpha and kind == "JPEG":
        pytest.skip("JPEG has no transparency")
    profile = profile_of(*space)
    meant = Image.fromarray(np.random.default_rng(0).integers(60, 196, (8, 8, 3), np.uint8)).resize((64, 64), 0)
    wide = ImageCms.profileToProfile(
        meant, ImageCms.createProfile("sRGB"), ImageCms.getOpenProfile(io.BytesIO(profile)), outputMode="RGB"
    )
    if alpha:
        wide.putalpha(255)
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "TIFF": {}, "WEBP": {"lossless": True}}[kind]
    loaded = load_image(saved(wide, kind, icc_profile=profile, **options)).permute(1, 2, 0).double()
    mean_square = (loaded - torch.from_numpy(np.array(meant)).double()).square().mean()
    assert 10 * math.log10(255**2 / float(mean_square)) > 35
    plain = load_image(saved(wide, kind, icc_profile=None, **options)).permute(1, 2, 0).double()
    assert (plain - torch.from_numpy(np.array(meant)).double()).square().mean() > 10 * mean_square


def test_a_broken_profile_leaves_the_picture_as_it_is():
    loaded = load_image(saved(picture(), "PNG", icc_profile=b"no profile at all"))
    assert np.array_equal(loaded.permute(1, 2, 0).numpy(), np.array(picture()))


def test_a_large_picture_of_16_bits_takes_memory_after_its_result():
    import tracemalloc

    values = np.arange(1500 * 1500, dtype=np.uint16).reshape(1500, 1500)
    data = saved(Image.fromarray(values), "PNG")
    tracemalloc.start()
    loaded = load_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * loaded.numel()
    assert np.array_equal(loaded[0].numpy(), ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))


# ---- films


def levels_of(clip: torch.Tensor) -> list[int]:
    return (clip.mean(dim=(1, 2, 3)) * 255).round().int().tolist()


def film(container: str, codec: str, num_frames: int, fps: int, sound: bool = False, gop: int = 12) -> bytes:
    """Grey that rises by one level of 2 a frame, 32×32."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps, options={"g": str(gop)})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        voice = file.add_stream("aac", rate=16_000) if sound else None
        for index in range(num_frames):
            pixels = np.full((32, 32, 3), 20 + 200 * index // num_frames, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if voice is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="flt", layout="mono")
            frame.sample_rate = 16_000
            resampler = av.AudioResampler(voice.format, voice.layout, 16_000, frame_size=voice.frame_size)
            for ready in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(voice.encode(ready))
            file.mux(voice.encode())
    return memory.getvalue()


FILMS = {
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "mpeg2video"),
    "mkv": ("matroska", "libx264"),
    "mov": ("mov", "mpeg4"),
}


@pytest.mark.parametrize("name", [*FILMS])
def test_every_film_is_read(name):
    data = film(*FILMS[name], num_frames=50, fps=25)
    assert detect_kind(data) == "video"
    levels = levels_of(load_video(data, 25))
    assert abs(len(levels) - 50) <= 1 and np.abs(np.array(levels[:49]) - [20 + 4 * k for k in range(49)]).max() <= 4


@pytest.mark.parametrize("container,codec", [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
@pytest.mark.parametrize("seconds_long", [6, 40])
def test_a_long_film_is_seen_whole_and_that_is_told(container, codec, seconds_long):
    """Nine frames stand for all of it, whether the reader jumps or decodes all; the one for a part are of that part."""
    num = seconds_long * 10
    data = film(container, codec, num, fps=10, gop=25)
    notes: list[str] = []
    levels = levels_of(load_video(data, 8, num_frames=9, tell=notes.append))
    wanted = [20 + 200 * (k * num / 9) / num for k in range(9)]
    assert np.abs(np.array(levels) - wanted).max() <= 4 + 200 / num
    [note] = notes
    assert note.startswith(f"9 frames stand for {seconds_long}.0 s")
    notes.clear()
    part = levels_of(load_video(data, 8, num_frames=9, start_s=3, seconds=1.125, tell=notes.append))
    wanted = [20 + 200 * (30 + k * 10 / 8) / num for k in range(9)]
    assert np.abs(np.array(part) - wanted).max() <= 5 + 200 / num
    assert notes == []


def test_a_start_behind_the_end_is_refused():
    data = film("mp4", "libx264", 20, fps=10)
    with pytest.raises(ValueError, match=r"lasts 2\.0 s, so nothing starts at 2\.5 s; start earlier"):
        load_video(data, 8, num_frames=9, start_s=2.5)


def test_the_sound_of_a_film_is_told_and_can_be_heard_by_itself():
    data = film("mp4", "libx264", 10, fps=10, sound=True)
    notes: list[str] = []
    load_video(data, 8, tell=notes.append)
    assert any("its sound is left out" in note for note in notes)
    assert abs(len(load_audio(data)) - 16_000) < 3000


def animation(kind: str, durations_ms: list[int], **options) -> bytes:
    frames = [Image.new("RGB", (16, 16), (40 * k, 40 * k, 40 * k)) for k in range(len(durations_ms))]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=durations_ms, loop=0, **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("declared_ms", [0, 10])
def test_frames_without_a_time_are_shown_for_a_tenth_of_a_second(kind, declared_ms):
    data = animation(kind, [declared_ms] * 6, **({"lossless": True} if kind == "WEBP" else {}))
    assert levels_of(load_video(data, 10)) == [0, 40, 80, 120, 160, 200]


def test_an_animated_png_is_a_film_and_its_first_frame_a_picture():
    data = animation("PNG", [500, 250, 250])
    assert detect_kind(data) == "video"
    assert levels_of(load_video(data, 4)) == [0, 0, 40, 80]
    assert load_image(data).unique().tolist() == [0]
    still = Image.new("RGB", (16, 16), "white")  # shown where animations are not
    frames = [Image.new("RGB", (16, 16), (9, 9, 9)), Image.new("RGB", (16, 16), (99, 99, 99))]
    data = saved(still, "PNG", save_all=True, append_images=frames, default_image=True, duration=250)
    assert levels_of(load_video(data, 4)) == [9, 99]
    assert load_image(data).unique().tolist() == [255]


def test_a_webp_frame_smaller_than_the_canvas_lies_on_white():
    """The second frame covers a corner only, and nothing announces transparency."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)

    def frame(image: Image.Image) -> bytes:
        size = (image.width - 1).to_bytes(3, "little") + (image.height - 1).to_bytes(3, "little")
        body = bytes(6) + size + (100).to_bytes(3, "little") + b"\x03"  # disposed of to the background, not blended
        return chunk(b"ANMF", body + saved(image, "WEBP", lossless=True)[12:])

    canvas = (31).to_bytes(3, "little") * 2
    chunks = chunk(b"VP8X", b"\2\0\0\0" + canvas) + chunk(b"ANIM", bytes(6))
    chunks += frame(Image.new("RGB", (32, 32), "red")) + frame(Image.new("RGB", (8, 8), "blue"))
    clip = load_video(chunk(b"RIFF", b"WEBP" + chunks), 10)
    assert clip[0, :, 20, 20].tolist() == [1, 0, 0]
    assert clip[1, :, 4, 4].tolist() == [0, 0, 1] and clip[1, :, 20, 20].tolist() == [1, 1, 1]


# ---- high dynamic range


def test_transfer_functions_meet_the_published_points():
    """ITU-R BT.2100 and BT.2408: PQ at 58% is 203 cd/m², at 75.2% 1,000; HLG at 75% is 203 on a screen of 1,000."""
    assert float(read_pq(np.array([0.5807]))[0]) == pytest.approx(203, rel=0.01)
    assert float(read_pq(np.array([0.7518]))[0]) == pytest.approx(1000, rel=0.01)
    assert float(read_pq(np.array([1.0]))[0]) == pytest.approx(10_000, rel=1e-6)
    assert float(read_hlg(np.full((1, 1, 3), 0.75))[0, 0, 0]) == pytest.approx(203, rel=0.01)
    assert float(read_hlg(np.full((1, 1, 3), 1.0))[0, 0, 0]) == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("transfer,white", [(PQ, 0.5807), (HLG, 0.75)])
def test_a_bright_film_looks_as_an_ordinary_one(transfer, white):
    def show(signal) -> np.ndarray:
        return map_tones((np.array(signal)[None, None] * 65535).astype(np.uint16), transfer)[0, 0].astype(int)

    assert (show([white] * 3) > 225).all() and np.ptp(show([white] * 3)) <= 1
    ramp = [show([v] * 3)[0] for v in np.linspace(0, 1, 40)]
    assert ramp == sorted(ramp) and ramp[0] == 0 and ramp[-1] == 255
    assert show([white, 0.2, 0.2])[0] > show([white, 0.2, 0.2])[1] + 100


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_film_of_high_dynamic_range_is_tone_mapped(transfer):
    memory = io.BytesIO()
    white = {PQ: 0.5807, HLG: 0.75}[transfer]
    with av.open(memory, "w", format="mp4") as file:
        stream = file.add_stream("libx265", rate=8, options={"x265-params": "log-level=none", "preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
        for _ in range(4):
            luma = np.full((96, 64), round(64 + white * 876), np.uint16)
            luma[64:] = 512
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, values in zip(frame.planes, (luma[:64], luma[64:80, :32], luma[80:, :32]), strict=True):
                rows = np.zeros((len(values) if plane.height == 64 else 32, plane.line_size // 2), np.uint16)
                rows[:, : plane.width] = 512 if plane.height == 32 else values
                plane.update(rows.tobytes())
            frame.colorspace, frame.color_trc, frame.color_primaries = 9, transfer, 9
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    level = float(load_video(memory.getvalue(), 8).mean()) * 255
    assert 225 < level < 250


def test_limits_hold_for_every_way_in():
    data = encode_sound(tone(1.5), "ipod", "aac")
    with pytest.raises(ValueError, match="max_seconds=1"):
        load_audio(data, limits=MediaLimits(max_seconds=1))
    data = film("avi", "mpeg4", 20, fps=10)
    with pytest.raises(ValueError, match="max_pixels=100"):
        load_video(data, 8, limits=MediaLimits(max_pixels=100))


SMALL = MediaLimits(max_seconds=3, max_frames=40, max_samples=4 * RATE_HZ)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "mp4", "wide"])
def test_a_part_of_a_sound_that_is_over_the_limits_is_read_when_the_part_fits(suffix):
    samples = (np.random.default_rng(0).normal(size=8 * RATE_HZ) * 0.1).astype(np.float32)
    memory = io.BytesIO()
    if suffix in ("mp3", "mp4"):
        memory.write(encode_sound(samples, suffix, {"mp3": "libmp3lame", "mp4": "aac"}[suffix]))
    elif suffix == "wide":  # three channels, which go through libav
        soundfile.write(memory, np.stack([samples] * 3, 1), RATE_HZ, format="WAV")
    else:
        soundfile.write(memory, samples, RATE_HZ, format=suffix.upper())
    data = memory.getvalue()
    with pytest.raises(ValueError, match="max_seconds=3"):
        load_audio(data, 8000, SMALL)
    whole = load_audio(data, 8000)
    for start_s, seconds in ((0.0, 2.0), (4.3, 2.0), (6.5, 3.0), (5.25, None)):
        if suffix == "wide":  # 4 s of samples, over three channels
            seconds = min(seconds or 9.0, 1.2)
        part = load_audio(data, 8000, SMALL, start_s, seconds)
        begin = round(start_s * 8000)
        wanted = whole[begin : None if seconds is None else begin + round(seconds * 8000)]
        assert part.shape == wanted.shape and torch.allclose(part, wanted, atol=1e-5)
    for start_s, seconds, reason in ((1.0, None, "max_seconds=3"), (2.0, 4.0, "max_seconds=3"), (9.0, 1.0, "lasts 8")):
        with pytest.raises(ValueError, match=reason):
            load_audio(data, 8000, SMALL, start_s, seconds)
    if suffix in ("mp3", "mp4", "wide"):  # decoded from the beginning
        with pytest.raises(ValueError, match="max_skipped_seconds=1"):
            load_audio(data, 8000, MediaLimits(max_skipped_seconds=1), 5.0, 1.0)


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_a_part_of_a_film_that_is_over_the_limits_is_read_when_the_part_fits(container, codec):
    data, limits = film(container, codec, 100, 10), MediaLimits(max_seconds=3, max_frames=80)
    with pytest.raises(ValueError, match="max_seconds=3|max_frames=80"):
        load_video(data, 5, limits=limits)
    whole = load_video(data, 5)
    for start_s in (0.0, 2.2, 4.6):
        part = load_video(data, 5, limits=limits, start_s=start_s, seconds=2)
        begin = round(start_s * 5)
        assert part.shape[0] == 10 and torch.equal(part, whole[begin : begin + 10])
    with pytest.raises(ValueError, match="max_seconds=3"):
        load_video(data, 5, limits=limits, start_s=1, seconds=5)
