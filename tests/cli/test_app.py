"""Every command through `main`: what it prints where, what it writes, and how it refuses."""

import io
import json
import runpy
import shutil
import struct
import sys
import zlib

import av
import numpy as np
import pytest
import soundfile
import torch

from tests.tiny_model import tiny_folder
from unimodal._torchaudio import find_problem
from unimodal._version import __version__
from unimodal.cli import app as cli
from unimodal.media.audio import load_audio, save_audio
from unimodal.media.image import load_image, save_image
from unimodal.media.video import load_video, save_video
from unimodal.model_folder.find import MODEL_VARIABLE

pytestmark = pytest.mark.sweep("commands")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """The tiny model is the default, and nothing but what a command writes lies around."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(MODEL_VARIABLE, str(tiny_folder()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_image(torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0)), folder / "a.png")
    save_audio(0.3 * torch.sin(torch.arange(6_000) * 0.2), folder / "a.wav", 16_000)
    save_video(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), folder / "a.mp4", 8)
    (folder / "notes.png").write_text("these are words and no picture\n" * 9)
    (folder / "empty.wav").touch()
    save_image(torch.zeros(3, 1, 1), folder / "one.png")
    save_audio(torch.zeros(4_000), folder / "silent.wav", 16_000)
    soundfile.write(folder / "eight_bit.wav", np.sin(np.arange(3_000) * 0.3) / 2, 8_000, subtype="PCM_U8")
    (folder / "huge.png").write_bytes(png_of_size(30_000, 30_000))
    with av.open(str(folder / "no_pictures.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4_096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def run(capsys):
    """Runs a command: (status, stdout, stderr)."""

    def call(*argv):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def refusal(result) -> str:
    """The last line on stderr of a command that must have refused: one line, status 2, nothing on stdout."""
    status, out, err = result
    assert status == 2 and out == "" and "Traceback" not in err
    lines = err.strip().splitlines()
    assert sum(line.startswith("unimodal: ") for line in lines) == 1 and lines[-1].startswith("unimodal: ")
    return lines[-1].removeprefix("unimodal: ")


# ---- what works


@pytest.mark.parametrize(
    ("to", "name", "load"),
    [
        ("image", "a.png", load_image),
        ("audio", "a.wav", load_audio),
        ("video", "a.gif", lambda path: load_video(path, 8)),
    ],
)
def test_generate_writes_the_file_and_prints_its_name(run, tmp_path, to, name, load):
    status, out, err = run("generate", "a red apple", "--to", to, "--out", name, "--seed", 3, "--guidance", 1.5)
    assert (status, out) == (0, f"{name}\n")
    assert "loading the model" in err  # plain lines where stderr is no terminal
    assert load(name).numel() > 0
    first = (tmp_path / "here" / name).read_bytes()
    assert run("generate", "a red apple", "--to", to, "--out", name, "--seed", 3, "--guidance", 1.5)[0] == 0
    assert (tmp_path / "here" / name).read_bytes() == first
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]  # no temporary file is left


@pytest.mark.parametrize("options", [("--top-k", 1), ("--top-p", 1e-6)])
def test_tokens_are_drawn_as_the_options_say(run, tmp_path, options):
    """From one candidate alone, however freely: the likeliest."""
    make = ("generate", "a red apple", "--to", "image")
    assert run(*make, "--out", "likeliest.png", "--temperature", 0)[0] == 0
    assert run(*make, "--out", "one.png", "--temperature", 2, *options)[0] == 0
    files = tmp_path / "here"
    assert (files / "one.png").read_bytes() == (files / "likeliest.png").read_bytes()
    assert "is not usable" in refusal(run(*make, "--out", "b.png", "--temperature", -1))


def test_generate_writes_words_too(run, tmp_path):
    assert run("generate", "hello", "--to", "text", "--out", "a.txt", "--tokens", 4)[:2] == (0, "a.txt\n")
    assert (tmp_path / "here" / "a.txt").read_text().endswith("\n")


@pytest.mark.parametrize(("option", "name"), [("--image", "a.png"), ("--audio", "a.wav"), ("--video", "a.mp4")])
def test_chat_answers_about_a_file_with_words_alone_on_stdout(run, files, option, name):
    status, out, err = run("chat", "what is this?", option, files / name, "--to", "text", "--tokens", 4)
    assert status == 0 and len(out.splitlines()) == 1
    assert "loading" in err and "unimodal:" not in err


@pytest.mark.parametrize("name", ["one.png", "silent.wav", "eight_bit.wav"])
def test_odd_but_valid_files_are_answered(run, files, name):
    option = "--image" if name.endswith(".png") else "--audio"
    assert run("chat", "what is this?", option, files / name, "--to", "text", "--tokens", 4)[0] == 0


def test_chat_saves_and_names_media(run, tmp_path):
    status, out, _ = run("chat", "a red apple", "--to", "image")
    assert (status, out) == (0, "picture-1.png\n")
    run("chat", "a red apple", "--to", "image")  # never overwrites
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["picture-1.png", "picture-2.png"]


def test_a_prompt_that_spells_a_media_token_is_only_text(run):
    assert run("chat", "what does <|image_0003|> say?", "--to", "text", "--tokens", 4)[0] == 0


@pytest.mark.parametrize(
    ("name", "modality", "count", "back"),
    [("a.png", "image", 64, "b.webp"), ("a.wav", "audio", 12, "b.flac"), ("a.mp4", "video", 192, "b.mp4")],
)
def test_tokenize_and_detokenize(run, files, name, modality, count, back, tmp_path):
    assert run("tokenize", files / name, "--out", "codes.json")[:2] == (
        0,
        f"codes.json: {modality}, {count} codes\n",
    )
    written = json.loads((tmp_path / "here" / "codes.json").read_text())
    assert set(written) == {"format", "modality", "tokenizer_sha256", "grid", "seconds", "codes"}
    assert len(written["codes"]) == count
    assert run("detokenize", "codes.json", "--out", back)[:2] == (0, f"{back}\n")
    assert (tmp_path / "here" / back).stat().st_size > 0


def test_doctor_tells_what_is_here_and_what_is_wrong(run, tmp_path, monkeypatch):
    status, out, _ = run("doctor")
    lines = {line[:15].strip(): line[15:].strip() for line in out.splitlines()}
    assert status == 0 and "torch" in lines and "cpu" in lines["device"] or "cuda" in lines["device"]
    assert lines["sound"] == "WAV, FLAC, OGG, MP3" and "524 rows" in lines["model"]
    for name in ("text", "image", "audio", "video"):
        assert lines[f"{name} tokenizer"].startswith("sha256 ")
    assert ("mismatch: " in lines["torchaudio"]) == ("pip install" in lines["torchaudio"]) == bool(find_problem())
    shutil.copytree(tiny_folder(), tmp_path / "copy")
    manifest = (tmp_path / "copy" / "vocabulary.json").read_text()
    broken = manifest.replace(lines["audio tokenizer"].removeprefix("sha256 "), "0" * 64)
    (tmp_path / "copy" / "vocabulary.json").write_text(broken)
    (tmp_path / "copy" / "video_tokenizer" / "model.safetensors").unlink()
    status, out, _ = run("doctor", "--model", tmp_path / "copy")
    assert status == 0 and "audio tokenizer  mismatch" in out and "video tokenizer  broken" in out
    monkeypatch.setenv(MODEL_VARIABLE, "nowhere")
    assert "missing: " in run("doctor")[1]


def test_models_lists_what_is_found(run):
    status, out, _ = run("models")
    assert status == 0
    [line] = [line for line in out.splitlines() if line.endswith(str(tiny_folder()))]
    assert line.startswith("tiny ") and "text image audio video" in line and " MB " in line


def test_the_version_is_printed(run):
    assert run("--version")[:2] == (0, f"unimodal {__version__}\n")


def test_python_dash_m_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unimodal", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("unimodal", run_name="__main__")
    assert not stop.value.code
    out = capsys.readouterr().out
    assert all(name in out for name in ("doctor", "models", "chat", "generate", "tokenize", "detokenize", "evaluate"))


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("notes.png", "--image", "notes.png"),
        ("empty.wav", "--audio", "is empty (0 bytes)"),
        ("huge.png", "--image", "30,000×30,000"),
        ("a.wav", "--image", "WAV sound, not a picture; pass it as audio"),
        ("missing.png", "--image", "no such file"),
        (".", "--image", "is a folder"),
    ],
)
def test_bad_files_are_refused_by_chat_and_tokenize(run, files, tmp_path, name, option, message):
    assert message in refusal(run("chat", "what is this?", option, files / name))
    if name != "a.wav":
        assert message in refusal(run("tokenize", files / name, "--out", "codes.json"))
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "word " * 10_000, "--to", "image", "--out", "a.png"], "40,009 tokens"),
        (["generate", "a cat", "--to", "image", "--out", "a.wav"], "image is saved as .png"),
        (["generate", "a cat", "--to", "smell", "--out", "a.png"], "'smell' is unknown; choose text, image"),
        (["generate", "a cat", "--to", "image", "--out", "nowhere/a.png"], "there is no folder nowhere"),
        (["generate", "a cat", "--to", "image", "--out", "a.png", "--tokens", "9"], "9 tokens are too few"),
        (["generate", "a cat", "--to", "image", "--out", "a.png", "--voice", "joe"], "a voice speaks"),
        (["generate", "a cat", "--to", "image", "--out", "a.png", "--seed", "x"], "--seed"),
        (["generate", "a cat", "--to", "image"], "--out"),
        (["generate", "a cat", "--too", "image"], "--too"),
        (["generate", "a cat", "--to", "image", "--out", "a.png", "--model", "nowhere"], "model 'nowhere'"),
        (["chat", "word " * 10_000], "40,005 tokens"),
        (["chat", "hello", "--to", "smell"], "'smell'"),
        (["chat", " "], "the prompt is empty"),
        (["chat", "hello", "--folder", "nowhere"], "nowhere"),
        (["detokenize", "missing.json", "--out", "a.png"], "missing.json: no such file"),
        (["evaluate", "--suite", "picture_namin", "--out", "r.json"], "did you mean picture_naming?"),
        (["evaluate", "--suite", "all", "--out", "r.json", "--data", "nowhere"], "nowhere: no such folder"),
        (["evaluate", "--suite", "all", "--out", "r.json", "--limit", "0"], "--limit 0"),
        (["sing"], "sing"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, argv, message):
    assert message in refusal(run(*argv))
    assert list((tmp_path / "here").iterdir()) == []


def test_codes_of_another_tokenizer_are_refused(run, files, tmp_path):
    run("tokenize", files / "a.png", "--out", "codes.json")
    path = tmp_path / "here" / "codes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_sha256": "1" * 64}))
    assert "1" * 64 in refusal(run("detokenize", "codes.json", "--out", "a.png"))
    assert "image is saved as" in refusal(run("detokenize", "codes.json", "--out", "a.wav"))
    assert not (tmp_path / "here" / "a.png").exists()


def test_a_wrong_manifest_is_refused(run, tmp_path):
    shutil.copytree(tiny_folder(), tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / "vocabulary.json").read_text())
    manifest["blocks"][0]["sha256"] = "2" * 64
    (tmp_path / "copy" / "vocabulary.json").write_text(json.dumps(manifest))
    assert "2" * 64 in refusal(run("chat", "hello", "--model", tmp_path / "copy"))


def test_a_full_disk_leaves_the_old_file(run, tmp_path, monkeypatch):
    target = tmp_path / "here" / "a.png"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in refusal(run("generate", "a cat", "--to", "image", "--out", "a.png"))
    assert target.read_bytes() == b"old" and list(target.parent.iterdir()) == [target]


def test_ctrl_c_is_130_and_writes_nothing(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", stop)
    status, out, err = run("generate", "a cat", "--to", "image", "--out", "a.png")
    assert (status, out) == (130, "") and "Traceback" not in err
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
def test_a_lack_of_memory_is_one_line_that_says_what_helps(run, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "load_model", fail)
    status, out, err = run("generate", "a cat", "--to", "image", "--out", "a.png")
    assert (status, out) == (1, "") and "Traceback" not in err
    assert [line for line in err.splitlines() if "--kv int8" in line] == err.splitlines()[-1:]
    assert list((tmp_path / "here").iterdir()) == []


def test_our_own_defects_are_not_hidden(monkeypatch):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(cli, "load_model", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["chat", "hello"])


def test_a_reader_that_went_away_is_no_traceback(monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    with open("out.txt", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr("unimodal.cli.doctor.format_models", gone)
        with pytest.raises(SystemExit) as stop:
            cli.main(["models"])
    assert stop.value.code == 1


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    from unimodal.cli.progress import Reporter

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Reporter() as report:
            for _ in report.track(range(3), "counting", 3):
                pass
            report("done")
        text = stream.getvalue()
        assert "counting" in text
        assert ("\x1b[" in text) == stream.isatty()
        if not stream.isatty():
            assert text.splitlines() == ["counting: 0/3", "counting: 3/3", "done"]
