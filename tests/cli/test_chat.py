"""The interactive chat: commands, what they write, and that a mistake does not end it."""

import io
import sys

import pytest
import torch

from tests.tiny_model import tiny_folder, tiny_model
from unimodal.cli import app as cli
from unimodal.cli.chat import HELP, TerminalChat
from unimodal.cli.progress import Reporter
from unimodal.cli.terminal import Screen
from unimodal.compression.learned import DecoderShape
from unimodal.compression.tokens.fit import FIT
from unimodal.compression.trained import save_compressor
from unimodal.media.audio import save_audio
from unimodal.media.image import load_image, save_image
from unimodal.media.registry import MEDIA
from unimodal.model_folder.find import MODEL_VARIABLE
from unimodal.pipeline.requests import fit_history
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Audio, Document, Image, Text, Turn

pytestmark = pytest.mark.sweep("commands")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)), "my picture.png")
    save_audio(torch.zeros(2_000), "a.wav", 16_000)


@pytest.fixture
def chat(tmp_path):
    return TerminalChat(tiny_model(), Reporter(), AnswerSettings(), tmp_path)


def converse(monkeypatch, capsys, chat, text):
    """Runs the chat on lines of input: (stdout, stderr)."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat.run()
    return capsys.readouterr()


def test_attached_files_are_asked_about_in_the_next_question(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    out, _ = converse(monkeypatch, capsys, chat, "/image 'my picture.png'\n/audio a.wav\nwhat are these?\n")
    assert len(out.splitlines()) == 1
    question = chat.history[0]
    assert [type(part) for part in question.parts] == [Image, Audio, Text] and question.text == "what are these?"
    assert chat.history[1].role == "assistant" and chat.pending == []


@pytest.mark.parametrize(
    "text", ["/image my picture.png\n\n", "/image my picture.png\n"]
)  # return, or the end of input
def test_without_words_the_trained_question_is_asked(monkeypatch, capsys, chat, text):
    chat.settings = AnswerSettings(to="text", tokens=3)
    converse(monkeypatch, capsys, chat, text)
    assert chat.history[0].text == "What is this?" and len(chat.history) == 2


def test_media_are_made_saved_and_named(monkeypatch, capsys, chat, tmp_path):
    out, _ = converse(
        monkeypatch, capsys, chat, "/draw a cat\n/save my cat.webp\n/say hello there\n/film a cat\n/quit\nno\n"
    )
    names = ["picture-1.png", "sound-1.wav", "clip-1.gif"]
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [names[0], "my cat.webp", *names[1:]]
    assert torch.equal(load_image("my cat.webp"), load_image("picture-1.png"))
    assert [turn.text for turn in chat.history if turn.role == "user"][-1] == "A clip of a cat."


def test_the_seed_moves_on_with_every_answer(monkeypatch, capsys, chat):
    converse(monkeypatch, capsys, chat, "/draw a cat\n/clear\n/draw a cat\n")
    assert not torch.equal(load_image("picture-1.png"), load_image("picture-2.png"))


def test_a_mistake_is_one_line_and_the_chat_goes_on(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    lines = [
        "/image nowhere.png", "/image a.wav", "/image", "/sing la", "/save x.png", "/draw", "word " * 3_000, "hello",
    ]  # fmt: skip
    out, err = converse(monkeypatch, capsys, chat, "\n".join(lines) + "\n")
    assert len(out.splitlines()) == 1 and "Traceback" not in err
    for message in (
        "nowhere.png: no such file", "pass it as audio", "/image needs the name of a file", "/sing is no command",
        "nothing to save yet", "the prompt is empty", "the prompt is too long",
    ):  # fmt: skip
        assert sum(message in line for line in err.splitlines()) == 1, message


def test_what_was_attached_stays_after_a_failed_question(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    converse(monkeypatch, capsys, chat, "/image my picture.png\n" + "word " * 3_000 + "\nhello\n")
    assert [type(part) for part in chat.history[0].parts] == [Image, Text]


def test_pasted_lines_are_one_question_about_the_file_above_them(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    entries = ["/image my picture.png\nwhat is\nthis?", "/image nowhere.png\nand this?"]
    monkeypatch.setattr("unimodal.cli.chat.read_entries", lambda *_: iter(entries))
    chat.run()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and chat.history[0].text == "what is\nthis?" and chat.pending == []
    assert "nowhere.png: no such file" in err  # and its question is not asked without it


def test_clear_forgets_and_help_goes_to_stderr(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    out, err = converse(monkeypatch, capsys, chat, "hello\n/image my picture.png\n/clear\n/help\n")
    assert chat.history == [] and chat.pending == []
    assert HELP in err and HELP not in out


def fit(chat, turn):
    """The earlier turns that go with this one."""
    document = fit_history(chat.model, [*chat.history, turn], AnswerSettings(to="text"))
    return list(document.turns[:-1])


def test_the_oldest_exchanges_make_room(chat):
    old = [Turn(role, "word " * 100) for role in ("user", "assistant")]
    new = [Turn("user", "hello"), Turn("assistant", "hello")]
    chat.history = [*old, *old, *new]
    turn = Turn("user", "and?")
    kept = fit(chat, turn)
    assert kept == chat.history[len(chat.history) - len(kept) :] and new == kept[-2:] and len(kept) < 6
    chat.history = new * 3
    assert fit(chat, turn) == new * 3


def test_a_conversation_shows_as_many_exchanges_as_the_model_was_trained_to_see(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(to="text", tokens=3)
    monkeypatch.setattr(chat.model, "processor", chat.model.processor.model_copy(update={"history_turns": 4}))
    lines = [f"hello {number}" for number in range(7)]
    for answered, line in enumerate(lines, start=1):
        converse(monkeypatch, capsys, chat, f"{line}\n")
        shown = [turn.text for turn in chat.history if turn.role == "user"]
        assert shown == lines[max(0, answered - 5) : answered]  # four exchanges, and the question


def test_settings_without_a_medium_are_of_words_too(monkeypatch, capsys, chat):
    chat.settings = AnswerSettings(tokens=60, temperature=2.0, top_k=1)
    greedy = AnswerSettings(tokens=60, temperature=0.0, allow=("text", *chat.model.writable))
    converse(monkeypatch, capsys, chat, "hello\n")
    [expected] = chat.model.answers([Document([Turn("user", "hello")])], greedy)
    assert chat.history[1].parts == tuple(output.part for output in expected)


def test_ctrl_c_stops_the_answer_and_not_the_chat(monkeypatch, capsys, chat):
    calls = []

    def stop(*_, **__):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.model.engine, "generate", stop)
    _, err = converse(monkeypatch, capsys, chat, "hello\nhello\n")
    assert len(calls) == 2 and err.count("stopped") == 2 and chat.history == []


def test_an_empty_answer_is_told(monkeypatch, capsys, chat):
    monkeypatch.setattr(chat.model.engine, "generate", lambda prompts, *_: [[] for _ in prompts])
    out, err = converse(monkeypatch, capsys, chat, "hello\n")
    assert out == "" and "nothing to say" in err


def on_terminal(monkeypatch, chat, words, to):
    """What a terminal is sent for an answer."""
    out = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", out)
    chat.answer(words, to)
    return out.getvalue()


def test_on_a_terminal_words_stream(monkeypatch, chat):
    chat.settings = AnswerSettings(to="text", tokens=8)
    written = on_terminal(monkeypatch, chat, "hello", "text")
    assert written.strip() == chat.history[1].text.strip() and written.endswith("\n")


@pytest.mark.parametrize("way,mark", [("blocks", "▀"), ("kitty", "\x1b_G"), ("iterm", "\x1b]1337"), ("sixel", "\x1bP")])
def test_on_a_terminal_pictures_and_clips_are_drawn_above_their_names(monkeypatch, chat, way, mark):
    chat.screen = Screen(way, 80, 40)
    for to, name in (("image", "picture-1.png"), ("video", "clip-1.gif")):
        drawn, _, named = on_terminal(monkeypatch, chat, "a cat", to).rstrip("\n").rpartition("\n")
        assert mark in drawn and named.endswith(name)


def test_without_a_screen_only_names_are_written(monkeypatch, chat):
    written = on_terminal(monkeypatch, chat, "a cat", "image")
    assert "\x1b" not in written and written.count("\n") == 1


def test_a_sound_is_played_on_a_terminal_and_a_failure_told(monkeypatch, capsys, chat):
    played = []

    def play(path, player, duration_s):
        played.append((path.name, player, duration_s))
        return "aplay could not play it (no sound card)"

    monkeypatch.setattr("unimodal.cli.chat.find_player", lambda: ["aplay"])
    monkeypatch.setattr("unimodal.cli.chat.play_sound", play)
    converse(monkeypatch, capsys, chat, "/say hello\n")
    assert played == []  # stdout is no terminal
    assert "sound-2.wav" in on_terminal(monkeypatch, chat, "hello", "audio")
    [(name, player, duration_s)] = played
    assert (name, player) == ("sound-2.wav", ["aplay"]) and 0 < duration_s < 5
    assert "no sound card" in capsys.readouterr().err
    chat.mute = True
    on_terminal(monkeypatch, chat, "hello", "audio")
    assert len(played) == 1


def test_an_unknown_way_of_pictures_is_a_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", "hello", "--pictures", "ascii"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("unimodal: --pictures 'ascii' is unknown; choose auto, kitty")


def test_the_command_without_a_prompt_is_the_chat(monkeypatch, capsys):
    monkeypatch.setenv(MODEL_VARIABLE, str(tiny_folder()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is it?\n"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", "--image", "my picture.png", "--to", "text", "--tokens", "3"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and len(out.splitlines()) == 1 and "image attached" in err


def test_what_is_compressed_is_told_beside_the_answer(monkeypatch, capsys, tmp_path):
    settings = AnswerSettings(to="text", tokens=3, compress=("divprune:0.25", "snapkv:0.5"))
    chat = TerminalChat(tiny_model(), Reporter(), settings, tmp_path)
    out, err = converse(monkeypatch, capsys, chat, "/image 'my picture.png'\nwhat is it?\nand now?\n/clear\n")
    told = [line for line in err.splitlines() if line.startswith("compressed by divprune:0.25,snapkv:0.5: ")]
    assert len(out.splitlines()) == len(told) == 2 and "tokens of the prompt are kept" in told[0]


def test_the_folder_of_a_trained_compressor_is_named_like_a_method(monkeypatch, capsys, tmp_path):
    decoder = tiny_model().engine.model.config
    method = FIT(0.5, reader=FIT.make_part(DecoderShape.of(decoder)))
    save_compressor(tmp_path / "fit", method, DecoderShape.of(decoder))
    asked = ["--image", "my picture.png", "--to", "text", "--tokens", "3", "--compress", f"{tmp_path / 'fit'}:0.25"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", "what is it?", "--model", str(tiny_folder()), *asked])
    assert stop.value.code == 0 and "compressed by fit:0.25: " in capsys.readouterr().err


COMMANDS = {
    "chat": ["chat", "hello"],
    "generate": ["generate", "a cat", "--to", "image", "--out", "a.png"],
    "serve": ["serve", "--port", "0"],
    "evaluate": ["evaluate", "--suite", "picture_naming", "--out", "a.json", "--data", "."],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compress", "divprun:0.5"], "did you mean divprune"),
        (["--compress", ""], "no compression method ''"),
        (["--compress", "divprune:0"], "keep is 0"),
        (["--compress", "pvc"], "learned"),
        (["--compress", "no/such/folder:0.5"], "no such folder"),
    ],
)
def test_wrong_compression_is_one_line_before_a_model_is_loaded(command, options, message, capsys, monkeypatch):
    monkeypatch.setattr("unimodal.pipeline.load", None)
    with pytest.raises(SystemExit) as caught:
        cli.main([*COMMANDS[command], "--model", str(tiny_folder()), *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unimodal: ")]
    assert caught.value.code == 2 and len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "jacobi"], "leave one out"),
        (["--weights", "int8"], "leave one of them out"),
        (["--kv", "int8"], "leave one of them out"),
    ],
)
def test_what_does_not_go_with_compression_is_one_line(command, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*COMMANDS[command], "--model", str(tiny_folder()), "--compress", "stride:0.5", *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unimodal: ")]
    assert caught.value.code == 2 and len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("to", ["text", *MEDIA])
def test_generate_says_what_compression_left(to, capsys, tmp_path):
    out = tmp_path / ("a.txt" if to == "text" else MEDIA[to].saved_as)
    asked = ["generate", "a cat", "--to", to, "--out", str(out), "--compress", "divprune:0.25", "--compress", "h2o"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, "--model", str(tiny_folder())])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compressed by divprune:0.25,h2o")]
    assert stop.value.code == 0 and out.exists() and len(told) == 1 and "nothing to shorten" in told[0]


@pytest.mark.parametrize(
    ("command", "option"), [("chat", "--guidance"), ("chat", "--negative"), ("generate", "--guidance")]
)
def test_options_of_media_are_not_passed_over_for_words(command, option, capsys, monkeypatch):
    monkeypatch.setattr("unimodal.pipeline.load", None)
    asked = [command, "hello", "--to", "text", option, "3"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, *(["--out", "a.txt"] if command == "generate" else []), "--model", str(tiny_folder())])
    assert stop.value.code == 2 and f"{option} 3" in (told := capsys.readouterr().err) and told.count("\n") == 1


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("command", ["chat", "chat in lines", "generate"])
def test_a_stream_that_is_closed_is_no_trouble(closed, command, monkeypatch, tmp_path):
    monkeypatch.setenv(MODEL_VARIABLE, str(tiny_folder()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("/draw a cat\n"))
    monkeypatch.setattr(sys, closed, None)
    with pytest.raises(SystemExit) as stop:
        cli.main([*COMMANDS.get(command, ["chat"]), *(["--to", "text", "--tokens", "2"] if command == "chat" else [])])
    wrote = command == "generate" or (command == "chat in lines" and closed != "stdin")
    assert stop.value.code == 0 and len(list(tmp_path.glob("*-1.png")) + list(tmp_path.glob("a.png"))) == wrote
