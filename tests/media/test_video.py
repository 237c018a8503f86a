import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.campaigns import examples
from unimodal.media.audio import load_audio
from unimodal.media.kind import detect_kind
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import MEDIA
from unimodal.media.video import load_video, save_video


def moving_square(num_frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """[T, 3, H, W]: a coloured square that moves right over a soft ramp."""
    clip = torch.linspace(0.2, 0.8, width).expand(num_frames, 3, height, width).clone()
    for t in range(num_frames):
        clip[t, :, 16:32, 4 * t : 4 * t + 16] = torch.tensor([0.9, 0.3, 0.1])[:, None, None]
    return clip


def gif(levels: list[int], durations_ms: list[int], size: tuple[int, int] = (8, 8)) -> bytes:
    """An animated GIF of flat grey frames."""
    images = [Image.new("L", size, level) for level in levels]
    memory = io.BytesIO()
    images[0].save(memory, "GIF", save_all=True, append_images=images[1:], duration=durations_ms)
    return memory.getvalue()


def film(levels: list[int], times_ms: list[int], container_format: str = "mp4", size: int = 32) -> bytes:
    """A film of flat grey frames shown at the given times."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container_format) as container:
        codec = {"mp4": "libx264", "webm": "libvpx-vp9"}[container_format]
        stream = container.add_stream(codec, rate=10, options={"crf": "5"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time_ms in zip(levels, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return memory.getvalue()


def sound_only(container_format: str, codec: str) -> bytes:
    memory = io.BytesIO()
    with av.open(memory, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate = 48000
        resampler = av.AudioResampler(stream.format, stream.layout, 48000, frame_size=stream.frame_size or 960)
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(ready))
        container.mux(stream.encode())
    return memory.getvalue()


def levels_of(clip: torch.Tensor) -> list[int]:
    return (clip.mean(dim=(1, 2, 3)) * 255).round().int().tolist()


@pytest.mark.parametrize("suffix,tolerance", [(".mp4", 0.02), (".webm", 0.02), (".gif", 0.02), (".webp", 0.003)])
def test_what_is_saved_is_what_is_loaded(suffix, tolerance, tmp_path):
    clip = moving_square()
    save_video(clip, tmp_path / f"a{suffix}", 8)
    loaded = load_video(tmp_path / f"a{suffix}", 8)
    assert loaded.shape == clip.shape and loaded.dtype == torch.float32
    assert loaded.min() >= 0 and loaded.max() <= 1
    assert (loaded - clip).abs().mean(dim=(1, 2, 3)).max() < tolerance  # every frame, so none is shifted in time
    assert torch.equal(load_video((tmp_path / f"a{suffix}").read_bytes(), 8), loaded)
    assert detect_kind(tmp_path / f"a{suffix}") == "video"
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_webp_is_exact(tmp_path):
    clip = torch.randint(0, 256, (4, 3, 9, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_video(clip, tmp_path / "a.webp", 8)
    assert torch.equal((load_video(tmp_path / "a.webp", 8) * 255).round().to(torch.uint8), clip)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for suffix in MEDIA["video"].saved_suffixes:
        save_video(moving_square(3), tmp_path / f"a{suffix}", 8)
        save_video(moving_square(3), tmp_path / f"b{suffix}", 8)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", MEDIA["video"].saved_suffixes)
def test_a_still_clip_keeps_its_length(suffix, tmp_path):
    """GIF and WebP merge equal frames into one long frame."""
    clip = torch.full((9, 3, 16, 16), 0.5)
    save_video(clip, tmp_path / f"a{suffix}", 8)
    loaded = load_video(tmp_path / f"a{suffix}", 8)
    assert loaded.shape == clip.shape and (loaded - clip).abs().max() < 0.02


@pytest.mark.parametrize("suffix", MEDIA["video"].saved_suffixes)
@pytest.mark.parametrize("height,width", [(1, 1), (15, 17)])
def test_odd_sizes_and_a_single_frame(suffix, height, width, tmp_path):
    save_video(torch.full((1, 3, height, width), 0.25), tmp_path / f"a{suffix}", 8)
    loaded = load_video(tmp_path / f"a{suffix}", 8, num_frames=2)
    even = (height + height % 2, width + width % 2) if suffix in (".mp4", ".webm") else (height, width)
    assert loaded.shape == (2, 3, *even) and (loaded - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
@pytest.mark.parametrize("fps", [7, 12, 29.97, 30])
def test_frame_times_do_not_drift(suffix, fps, tmp_path):
    """Formats that count in 10 ms or 1 ms must still end on time."""
    clip = torch.linspace(0, 1, 25)[:, None, None, None].expand(25, 3, 16, 16)
    save_video(clip, tmp_path / f"a{suffix}", fps)
    loaded = load_video(tmp_path / f"a{suffix}", fps)
    assert len(loaded) == 25
    assert (loaded.mean(dim=(1, 2, 3)) - clip[:, 0, 0, 0]).abs().max() < 0.02


def test_a_denser_film_gives_the_nearest_frames():
    levels = [10 * i for i in range(25)]
    clip = film(levels, [33 * i for i in range(25)])  # 30.3 frames a second, 0.825 s
    shown = levels_of(load_video(clip, 8))
    times_ms = [round(1000 * k / 8) for k in range(len(shown))]
    nearest = [levels[min(range(25), key=lambda i, t=t: abs(33 * i - t))] for t in times_ms]
    assert len(shown) == 7  # 0.825 s · 8, rounded
    assert np.abs(np.array(shown) - nearest).max() <= 3


def test_a_sparser_film_holds_each_frame_until_the_next():
    assert levels_of(load_video(gif([0, 100, 200], [500, 500, 500]), 8)) == [0] * 4 + [100] * 4 + [200] * 4


@pytest.mark.parametrize("container_format", ["mp4", "webm"])
def test_varying_frame_rate(container_format):
    times_ms, levels = [0, 100, 700, 800, 900, 1500], [20, 60, 100, 140, 180, 220]
    shown = levels_of(load_video(film(levels, times_ms, container_format), 10, num_frames=16))
    expected = [20] + [60] * 6 + [100, 140] + [180] * 6 + [220]
    assert np.abs(np.array(shown) - expected).max() <= 3


def test_merged_frames_are_not_shown_early():
    """Frames 1 and 2 are equal, so the file has one of twice the length."""
    assert levels_of(load_video(gif([0, 50, 50, 200], [120, 130, 120, 130]), 8)) == [0, 50, 50, 200]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.sampled_from([1, 4, 8, 10, 24, 50]))
@example([3, 29, 11], 50)  # half a frame left, of delays whose sum in floats is less
@examples(12)
def test_the_frame_rule_against_its_definition(durations_cs, fps):
    levels = [40 * i for i in range(len(durations_cs))]
    shown = levels_of(load_video(gif(levels, [10 * d for d in durations_cs]), fps))
    starts = [sum(durations_cs[:i]) / 100 for i in range(len(durations_cs))]
    total = max(1, round(Fraction(sum(durations_cs), 100) * fps))
    expected = []
    for k in range(max(total, len(shown))):
        index = 0
        for i in range(1, len(starts)):
            early = min((starts[i] - starts[i - 1]) / 2, 1 / (2 * fps))
            if k / fps + early >= starts[i] - 1e-6:
                index = i
        expected.append(levels[index])
    assert len(shown) in (total, total + 1)  # a last frame that came early is shown, whatever the rounding
    assert shown == expected[: len(shown)]


def test_num_frames_cuts_or_holds_the_last_frame():
    clip = gif([0, 100, 200], [250, 250, 250])
    assert levels_of(load_video(clip, 4, num_frames=2, seconds=0.5)) == [0, 100]
    assert levels_of(load_video(clip, 4, num_frames=6)) == [0, 100, 200, 200, 200, 200]
    assert levels_of(load_video(clip, 4)) == [0, 100, 200]


def test_size_fits_with_white_bars(tmp_path):
    save_video(torch.zeros(3, 3, 16, 64), tmp_path / "a.mp4", 8)
    loaded = load_video(tmp_path / "a.mp4", 8, size=32)
    assert loaded.shape == (3, 3, 32, 32)
    assert (loaded[:, :, :12] == 1).all() and (loaded[:, :, 20:] == 1).all() and loaded[:, :, 13:19].max() < 0.05


def test_transparent_frames_are_on_white():
    frames = [Image.new("RGBA", (4, 4), (255, 0, 0, alpha)) for alpha in (0, 255)]
    memory = io.BytesIO()
    frames[0].save(memory, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    loaded = load_video(memory.getvalue(), 10)
    assert loaded[:, :, 0, 0].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_film_stored_sideways_is_turned_upright():
    """A telephone's portrait film: the track header's matrix says to turn by a quarter clockwise."""
    clip = torch.zeros(2, 3, 32, 64)
    clip[:, :, :16, :16] = 1  # top left; turned clockwise it is at the top right
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in clip:
            pixels = (frame * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(memory.getvalue())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    track = data.index(b"tkhd")
    matrix = data.index(upright, track)
    data[matrix : matrix + 36] = quarter
    loaded = load_video(bytes(data), 8)
    assert loaded.shape == (2, 3, 64, 32)
    assert loaded[0, :, 2:14, 18:30].min() > 0.9 and loaded[0, :, 2:14, 2:14].max() < 0.1
    assert loaded[0, :, 34:].max() < 0.1


@pytest.mark.parametrize("container_format,codec", [("mp4", "aac"), ("webm", "libopus")])
def test_sound_in_a_film_container_is_a_sound(container_format, codec, tmp_path):
    """What telephones and MediaRecorder save: m4a, and WebM without pictures."""
    path = tmp_path / f"voice.{container_format}"
    path.write_bytes(sound_only(container_format, codec))
    assert detect_kind(path) == "audio"
    with pytest.raises(ValueError, match=r"voice\.\w+ holds sound but no moving pictures; pass it as audio"):
        load_video(path, 8)
    assert len(load_audio(path)) >= 300


def test_a_film_without_frames_says_so(tmp_path):
    for container_format in ("mp4", "webm"):
        memory = io.BytesIO()
        with av.open(memory, "w", format=container_format, options={"movflags": "empty_moov"}) as container:
            stream = container.add_stream({"mp4": "libx264", "webm": "libvpx-vp9"}[container_format], rate=8)
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
            container.start_encoding()
        path = tmp_path / f"none.{container_format}"
        path.write_bytes(memory.getvalue())
        with pytest.raises(ValueError, match=r"none\.\w+ (holds no frames|is an? .* damaged)"):
            load_video(path, 8)


def test_a_still_picture_is_not_a_film_but_a_still_gif_is_one_frame():
    memory = io.BytesIO()
    Image.new("RGB", (4, 4)).save(memory, "PNG")
    with pytest.raises(ValueError, match="is a PNG picture, not a film; pass it as image"):
        load_video(memory.getvalue(), 8)
    assert load_video(gif([77], [100]), 8, num_frames=3).shape == (3, 3, 8, 8)
    assert detect_kind(gif([77], [100])) == "image"
    assert detect_kind(gif([77, 90], [100, 100])) == "video"


def test_declared_length_is_checked_before_decoding(monkeypatch):
    clip = film([0, 0], [0, 700_000])
    monkeypatch.setattr("av.container.InputContainer.decode", None, raising=False)
    with pytest.raises(ValueError, match=r"lasts 700\.\d s, over the limit max_seconds=600"):
        load_video(clip, 8)
    with pytest.raises(ValueError, match=r"lasts 700\.\d s, over the limit max_seconds=600"):
        load_video(gif([0, 1, 2], [350_000, 350_000, 100]), 8)


def test_real_length_is_checked_while_decoding():
    """The header claims 0.2 s, the frames go on for 20 s."""
    data = bytearray(film([0, 9, 18], [0, 10_000, 20_000], "webm"))
    at = data.index(b"\x44\x89")  # the duration element: 8 bytes of float follow, in milliseconds
    assert data[at + 2] == 0x88 and struct.unpack(">d", data[at + 3 : at + 11])[0] >= 20_000
    data[at + 3 : at + 11] = struct.pack(">d", 200.0)
    with pytest.raises(ValueError, match="over the limit max_seconds=5"):
        load_video(bytes(data), 1, limits=MediaLimits(max_seconds=5))
    assert len(load_video(bytes(data), 1, limits=MediaLimits(max_seconds=60))) >= 20


@pytest.mark.parametrize(
    "make", [lambda: film([0] * 9, [100 * i for i in range(9)]), lambda: gif([0, 9] * 4, [100] * 8)]
)
def test_every_limit_is_a_setting(make):
    data = make()
    for limits, words in [
        (MediaLimits(max_bytes=100), "max_bytes=100"),
        (MediaLimits(max_pixels=63), "max_pixels=63"),
        (MediaLimits(max_seconds=0.5), "max_seconds=0.5"),
        (MediaLimits(max_frames=4), "max_frames=4"),
        (MediaLimits(max_clip_pixels=100), "max_clip_pixels=100"),
    ]:
        with pytest.raises(ValueError, match=words):
            load_video(data, 8, limits=limits)
    assert len(load_video(data, 8)) > 5


@pytest.mark.parametrize(
    "tensor,name,fps,message",
    [
        (torch.zeros(2, 3, 4, 4), "a.avi", 8, "cannot save a film as '.avi'"),
        (torch.zeros(3, 4, 4), "a.mp4", 8, r"expected a film \[T, 3, H, W\]"),
        (torch.zeros(0, 3, 4, 4), "a.mp4", 8, r"expected a film \[T, 3, H, W\]"),
        (torch.zeros(2, 3, 4, 4), "a.mp4", 0, "fps=0"),
        (torch.zeros(2, 3, 4, 4), "a.gif", 60, "too fast for .gif"),
        (torch.full((2, 3, 4, 4), torch.nan), "a.mp4", 8, "not numbers"),
        (torch.zeros(2, 3, 2, 20000), "a.mp4", 8, "cannot be encoded as .mp4"),
    ],
)
def test_what_cannot_be_saved_says_so_and_leaves_nothing(tensor, name, fps, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_video(tensor, tmp_path / name, fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("request_", [{"fps": 0}, {"fps": float("nan")}, {"num_frames": 0}, {"size": 0}])
def test_bad_requests(request_):
    with pytest.raises(ValueError, match=f"{next(iter(request_))}="):
        load_video(gif([0], [100]), **{"fps": 8, **request_})
