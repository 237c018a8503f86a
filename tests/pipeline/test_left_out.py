"""What is left out of a file is told wherever a file is given: Python, the command line, the server."""

import base64
import os
import pickle
import sys
import warnings

import PIL.Image
import pytest
import torch

from tests.media.test_formats import film
from tests.serve.conftest import serving
from tests.tiny_model import tiny_folder
from unimodal.cli.app import main
from unimodal.coder.outputs import MediaCodes
from unimodal.corpus.code_cache import CodeCache
from unimodal.corpus.record_cache import RecordCache
from unimodal.data.messages import Conversation
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.pipeline import load
from unimodal.sequence.document import Document, Image, Turn, Video, make_part


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "long.mp4"
    path.write_bytes(film("mp4", "libx264", 120, fps=10, sound=True))
    return path


@pytest.fixture(scope="module")
def model():
    return load(tiny_folder(), device="cpu")


def run(capsys, monkeypatch, *words, stdin: bytes | None = None):
    monkeypatch.setattr(sys, "argv", ["unimodal", *map(str, words)])
    if stdin is not None:
        reader, writer = os.pipe()
        with open(writer, "wb") as stream:
            stream.write(stdin)
        monkeypatch.setattr(sys, "stdin", open(reader))  # noqa: SIM115
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code or 0
    out, err = capsys.readouterr()
    return status, out, err


def test_a_part_says_what_its_file_had_more(model, long_film):
    [part] = model.user_turn([Video(path=str(long_film)), "What?"]).parts[:1]
    assert len(part.notes) == 2 and all(note.startswith(f"{long_film}: ") for note in part.notes)
    assert "its sound is left out" in part.notes[0] and "frames stand for 12.0 s" in part.notes[1]
    [chosen] = model.user_turn([Video(path=str(long_film), start_s=2, seconds=0.5), "What?"]).parts[:1]
    assert [note for note in chosen.notes if "stand for" in note] == []
    assert not torch.equal(torch.tensor(part.codes), torch.tensor(chosen.codes))


def test_a_part_of_a_file_is_told_apart_and_survives_copies():
    one, other = Video(path="a.mp4", start_s=1), Video(path="a.mp4")
    assert one != other and pickle.loads(pickle.dumps(one)) == one
    assert make_part("video", path="a.mp4", start_s=1) == one
    with pytest.raises(ValueError, match="no part of a file"):
        Video(path="a.mp4", seconds=0)


def test_python_warns(model, long_film):
    with pytest.warns(UserWarning, match=r"long\.mp4: \d+ frames stand for 12\.0 s"):
        model.tokenize(long_film)
    with pytest.warns(UserWarning, match="its sound is left out"):
        model.chat([Video(path=str(long_film)), "What?"], to="text", tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.answers([Document([model.user_turn("hello")])], to="text", tokens=2)


def test_commands_tell_on_stderr_and_take_a_part(capsys, monkeypatch, long_film, tmp_path):
    status, out, err = run(
        capsys, monkeypatch, "tokenize", long_film, "--out", tmp_path / "a.json", "--model", tiny_folder()
    )
    assert status == 0 and f"{long_film}: its sound is left out" in err and "stand for 12.0 s" in err
    part = tmp_path / "b.json"
    cut = ("--start", "3", "--seconds", "0.5")
    status, out, err = run(capsys, monkeypatch, "tokenize", long_film, "--out", part, *cut, "--model", tiny_folder())
    assert status == 0 and "stand for" not in err
    assert MediaCodes.load(part).codes.tolist() != MediaCodes.load(tmp_path / "a.json").codes.tolist()
    status, out, err = run(
        capsys,
        monkeypatch,
        "chat",
        "What?",
        "--to",
        "text",
        "--video",
        long_film,
        "--tokens",
        "20",
        "--model",
        tiny_folder(),
    )
    assert status == 0 and "stand for 12.0 s" in err and "stand for" not in out


def test_a_file_may_come_from_stdin_once(capsys, monkeypatch, tmp_path):
    save_image(torch.rand(3, 20, 20), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    words = ("tokenize", "-", "--out", tmp_path / "a.json", "--model", tiny_folder())
    status, out, err = run(capsys, monkeypatch, *words, stdin=data)
    assert status == 0 and MediaCodes.load(tmp_path / "a.json").modality == "image"
    status, out, err = run(capsys, monkeypatch, *words, stdin=b"")
    assert status == 2 and "nothing is left there" in err.splitlines()[-1]
    ask = ("chat", "What?", "--image", "-", "--tokens", "20", "--to", "text", "--model", tiny_folder())
    status, out, err = run(capsys, monkeypatch, *ask, stdin=data)
    assert status == 0
    status, out, err = run(capsys, monkeypatch, *ask, "--image", "-", stdin=data)
    assert status == 2 and "nothing is left there" in err.splitlines()[-1]
    status, out, err = run(capsys, monkeypatch, "chat", "--image", "-", "--model", tiny_folder(), stdin=data)
    assert status == 2 and "needs the question in the same command" in err.splitlines()[-1]


def test_the_server_names_it_in_its_answer(long_film):
    url = "data:video/mp4;base64," + base64.b64encode(long_film.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}]
    ask = {
        "model": "tiny",
        "modalities": ["text"],
        "max_tokens": 20,
        "messages": [{"role": "user", "content": content}],
    }
    with serving() as served:
        for _ in range(2):  # the second time the codes are remembered
            answer = served.client().chat.completions.create(**{**ask, "model": served.service.name})
            assert any("stand for 12.0 s" in note for note in answer.model_extra["notes"])
        chunks = list(served.client().chat.completions.create(**{**ask, "model": served.service.name}, stream=True))
        assert any("its sound is left out" in note for note in chunks[0].model_extra["notes"])


def test_a_part_of_a_film_has_codes_of_its_own_in_training(model, long_film, tmp_path):
    codes = CodeCache(model.coder, RecordCache(tmp_path / "records"), model.vocabulary)
    whole, end = Video(path=str(long_film)), Video(path=str(long_film), start_s=8, seconds=1)
    for part in (whole, end, whole):
        assert codes.encode_part(part) == model.coder.encode_part(part)
    assert codes.encode_part(whole) != codes.encode_part(end)


def test_a_part_of_a_file_stays_in_json():
    document = Document([Turn("user", [Video(path="a.mp4", start_s=30, seconds=1)])])
    text = Conversation.from_document(document).model_dump_json()
    assert Conversation.model_validate_json(text).to_document() == document
    for part in (
        {"type": "image", "path": "a.png", "start_s": 3}, {"type": "video", "codes": [1], "seconds": 3},
        {"type": "video", "path": "a.mp4", "start_s": -1}, {"type": "video", "path": "a.mp4", "seconds": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="start_s|seconds"):
            Conversation(messages=[{"role": "user", "content": [part]}])


def test_a_part_that_no_file_has_is_refused(capsys, monkeypatch, long_film, tmp_path):
    picture, codes = tmp_path / "a.png", tmp_path / "a.json"
    save_image(torch.zeros(3, 8, 8), picture)
    for words, message in (
        (("chat", "what?", "--image", picture, "--start", 3), "none is given"),
        (("tokenize", picture, "--seconds", 3, "--out", codes), "none is given"),
        (("tokenize", long_film, "--seconds", 0, "--out", codes), "--seconds 0: give more than 0"),
        (("tokenize", long_film, "--seconds", "inf", "--out", codes), "--seconds inf"),
        (("tokenize", long_film, "--start", -1, "--out", codes), "--start -1: give 0 or more"),
    ):
        status, _, err = run(capsys, monkeypatch, *words)
        assert status == 2 and message in err.splitlines()[-1]
    status, _, err = run(capsys, monkeypatch, "tokenize", "-", "--out", codes, stdin=b"no medium, but words " * 9)
    assert status == 2 and err.splitlines()[-1].startswith("unimodal: - (stdin) is a text file")


def test_the_server_drops_no_note(long_film):
    url = {"url": "data:video/mp4;base64," + base64.b64encode(long_film.read_bytes()).decode()}
    turn = {"role": "user", "content": [{"type": "video_url", "video_url": url}, {"type": "text", "text": "what?"}]}
    earlier = [turn, {"role": "assistant", "content": "grey"}, {"role": "user", "content": "and then?"}]
    with serving() as server:
        chat = server.post(
            "/v1/chat/completions", {"messages": earlier, "modalities": ["text"], "max_tokens": 3}
        ).json()
        codes = server.post("/v1/tokenize", url).json()
    for answer in (chat, codes):
        assert any("9 frames stand for" in note for note in answer["notes"])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_that_is_shown_as_one_says_so(model, tmp_path, capsys, monkeypatch, kind):
    frames = [PIL.Image.new("RGB", (16, 16), (80 * number, 0, 0)) for number in range(3)]
    path = tmp_path / f"moving.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=100)
    [part] = model.user_turn([Image(path=str(path)), "What?"]).parts[:1]
    assert part.notes == (f"{path}: its first frame is shown; give the file as video to have the others seen",)
    asked = ["chat", "What?", "--to", "text", "--tokens", "2", "--model", str(tiny_folder())]
    status, _, err = run(capsys, monkeypatch, *asked, "--image", path)
    assert status == 0 and part.notes[0] in err
    frames[0].save(path, kind)
    assert model.user_turn([Image(path=str(path)), "What?"]).parts[0].notes == ()


def test_a_part_too_short_to_hold_anything_is_one_line(model, tmp_path):
    path = tmp_path / "a.wav"
    save_audio(torch.zeros(2_000), path, 16_000)
    with pytest.raises(ValueError, match="a.wav: nothing lies in so short a part; take more seconds"):
        model.coder.read(path, "audio", seconds=1e-9)
