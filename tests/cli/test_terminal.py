"""Which way of pictures a terminal gets, asked through a real pseudo-terminal; and what plays a sound."""

import io
import os
import pty
import re
import select
import signal
import stat
import sys
import threading
import time

import pytest

from unimodal.cli.terminal import PICTURE_WAYS, PLAYERS, find_player, find_screen, play_sound


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def way(environ, wanted="auto"):
    return find_screen(wanted, Terminal(), environ).way


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),  # through ssh
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "linux"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "x", "KITTY_WINDOW_ID": "1", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "screen", "STY": "x", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "dumb"}, "off"),
        ({}, "off"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "off"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "kitty"),
    ],
)
def test_terminals_known_by_their_variables(environ, expected):
    assert way(environ) == expected


@pytest.mark.parametrize("wanted", PICTURE_WAYS[1:])
def test_what_is_asked_for_is_done_on_a_terminal_and_never_elsewhere(wanted):
    assert way({"TERM": "dumb", "NO_COLOR": "1"}, wanted) == wanted
    assert find_screen(wanted, io.StringIO(), {"TERM": "xterm-kitty"}).way == "off"


def test_an_unknown_way():
    with pytest.raises(ValueError, match="pictures 'ascii' is unknown; choose auto, kitty"):
        find_screen("ascii", Terminal(), {})


@pytest.mark.parametrize(
    ("environ", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, 2**24),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, 2**24),
        ({"TERM": "xterm-direct"}, 2**24),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, 2**24),
        ({"TERM": "xterm-256color"}, 256),
        ({"TERM": "xterm", "TERM_PROGRAM": "Apple_Terminal"}, 256),
    ],
)
def test_how_many_colours(environ, colours):
    assert find_screen("blocks", Terminal(), environ).colours == colours


# ---- asking, as a terminal hears it

CHILD = """
import sys
from unimodal.cli.terminal import find_screen
sys.stdin.readline()
screen = find_screen("auto")
print("WAY", screen.way, screen.columns, screen.lines, screen.cell_width, screen.cell_height)
print("TYPED", repr(input()))
"""


def talk(replies, environ, typed_early=b""):
    """Runs the child in a pseudo-terminal that answers queries: (what the terminal was sent, the child's lines)."""
    import fcntl
    import struct
    import termios

    pid, master = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", CHILD], {**environ, "PYTHONPATH": os.getcwd(), "PATH": ""})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 900, 600))
    os.write(master, b"go\n" + typed_early)
    seen, end_s, asked, told = b"", time.monotonic() + 60, False, False
    while time.monotonic() < end_s and not re.search(rb"TYPED .*\n", seen):
        if select.select([master], [], [], 0.05)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
        if not asked and b"\x1b[c" in seen:
            asked = True
            for reply in replies:  # in pieces, as a line brings them
                os.write(master, reply)
                time.sleep(0.02)
        if not told and b"WAY" in seen:
            told = True
            os.write(master, b"word\n")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)
    lines = dict(re.findall(r"(WAY|TYPED) ([^\r\n]*)\r\n", seen.decode("latin-1")))
    return seen, lines


XTERM = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("replies", "environ", "expected"),
    [
        ([b"\x1b_Gi=31;OK\x1b\\", b"\x1b[?62;", b"c"], XTERM, "kitty"),
        ([b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\\x1b[?62;4c"], XTERM, "sixel"),
        ([b"\x1b[?63;1;2;", b"4;6;22c"], XTERM, "sixel"),
        ([b"\x1b[?64;1;2;6;22c"], XTERM, "blocks"),
        ([b"\x1b[?4c"], XTERM, "blocks"),  # a VT132, not a terminal with sixel
        ([b"\x1b[?1;2;4c"], {"TERM": "tmux-256color", "TMUX": "x"}, "sixel"),
        ([], XTERM, "blocks"),  # no answer
    ],
)
def test_other_terminals_are_asked(replies, environ, expected):
    seen, lines = talk(replies, environ)
    assert lines["WAY"] == f"{expected} 100 30 9 20"
    assert lines["TYPED"] == "'word'"  # the terminal is left as it was, and no reply is taken for a word
    assert (b"\x1b_G" in seen) == ("TMUX" not in environ)


def test_what_was_typed_before_is_not_lost():
    _, lines = talk([b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c"], XTERM, typed_early=b"early ")
    assert lines["WAY"].startswith("blocks") and lines["TYPED"] == "'early word'"


# ---- sound


@pytest.fixture
def programs(tmp_path):
    """Makes players that note what they are told to play."""

    def make(name, script):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def test_the_first_player_found_is_taken(programs):
    folder = programs("ffplay", "").parent
    assert find_player({"PATH": str(folder)}) == [str(folder / "ffplay"), *PLAYERS[4][1:]]
    programs("aplay", "")
    assert find_player({"PATH": str(folder)}) == [str(folder / "aplay"), "-q"]
    assert find_player({"PATH": ""}) is None


def test_nothing_plays_at_the_far_end_of_a_line(programs):
    path = str(programs("aplay", "").parent)
    assert find_player({"PATH": path, "SSH_CONNECTION": "x"}) is None
    assert find_player({"PATH": path, "SSH_CONNECTION": "x", "PULSE_SERVER": "tcp:here"}) is not None


def test_a_sound_is_played_by_its_whole_path(programs, tmp_path, monkeypatch):
    player = programs("aplay", f'echo "$@" > {tmp_path}/told')
    monkeypatch.chdir(tmp_path)
    assert play_sound("-x.wav", [str(player), "-q"], 1.0) is None
    assert (tmp_path / "told").read_text() == f"-q {tmp_path}/-x.wav\n"


def test_a_player_that_fails_is_told(programs, monkeypatch):
    failing = programs("aplay", "echo first >&2; echo 'no sound card' >&2; exit 1")
    assert play_sound("x.wav", [str(failing)], 1.0) == "aplay could not play it (no sound card)"
    assert play_sound("x.wav", [str(programs("silent", "exit 3"))], 1.0) == "silent could not play it (status 3)"
    assert "does not start" in play_sound("x.wav", [str(failing.with_name("gone"))], 1.0)
    monkeypatch.setattr("unimodal.cli.terminal._PLAYER_SLACK_S", 0.2)
    begun_s = time.monotonic()
    assert play_sound("x.wav", [str(programs("hung", "exec sleep 60"))], 0.1) == "hung did not end in time"
    assert time.monotonic() - begun_s < 10


def test_ctrl_c_ends_the_sound_only(programs):
    player = programs("aplay", "exec sleep 60")
    threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    begun_s = time.monotonic()
    assert play_sound("x.wav", [str(player)], 60.0) is None and time.monotonic() - begun_s < 20
