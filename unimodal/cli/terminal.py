"""What the terminal can show, and which program plays sound. Imports nothing heavy.

Terminals that are known by their variables are not asked. Others get a query of the kitty graphics protocol, then of
the primary device attributes (DA1), which every terminal answers, so that the end of the replies is known; attribute 4
is sixel. https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://invisible-island.net/xterm/ctlseqs/
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PICTURE_WAYS = ("auto", "kitty", "iterm", "sixel", "blocks", "off")
_KITTY_QUERY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_ATTRIBUTES_QUERY = "\x1b[c"
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_REPLY_S = 1.0  # a terminal answers in milliseconds; this is for a slow line
_TRUE_COLOUR_PROGRAMS = ("iTerm.app", "WezTerm", "ghostty", "vscode", "Hyper", "WarpTerminal")
#: commands that play a WAV file and then end, best first
PLAYERS: tuple[tuple[str, ...], ...] = (
    ("afplay",),
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("play", "-q"),
    ("mpv", "--no-video", "--really-quiet"),
)
_PLAYER_SLACK_S = 5.0


@dataclass(frozen=True)
class Screen:
    """A way to show pictures, and the size of the terminal; cells are the width and height of a character in pixels."""

    way: str  # kitty, iterm, sixel, blocks or off
    columns: int = 80
    lines: int = 24
    cell_width: int = 8
    cell_height: int = 16
    colours: int = 2**24  # of half blocks: 2**24 or 256


def find_screen(wanted: str = "auto", stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> Screen:
    """How pictures are shown on `stream` (by default stdout): "off" if it is no terminal, whatever is wanted.

    It may ask the terminal, so call it before the user is expected to type. Raises ValueError for an unknown way.
    """
    if wanted not in PICTURE_WAYS:
        raise ValueError(f"pictures {wanted!r} is unknown; choose {', '.join(PICTURE_WAYS)}")
    stream, environ = stream or sys.stdout, os.environ if environ is None else environ
    if wanted == "off" or not stream.isatty():
        return Screen("off")
    way = wanted if wanted != "auto" else _find_known_way(environ) or _ask_for_way(stream, environ)
    if wanted == "auto" and way == "blocks" and environ.get("NO_COLOR"):
        way = "off"  # half blocks are nothing but colour
    columns, lines = shutil.get_terminal_size()
    width, height = _measure_cell(stream)
    return Screen(way, columns, lines, width, height, _count_colours(environ))


def _find_known_way(environ: Mapping[str, str]) -> str | None:
    """The way of a terminal that its variables identify; None for a terminal that has to be asked."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if term in ("", "dumb"):
        return "off"
    if _is_multiplexed(environ):
        return None  # the variables may be those of the terminal outside, which pictures do not reach
    if term == "linux" or program == "Apple_Terminal":  # they would print the query
        return "blocks"
    if "KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def _is_multiplexed(environ: Mapping[str, str]) -> bool:
    """Whether we are inside tmux or screen."""
    return "TMUX" in environ or "STY" in environ or environ.get("TERM", "").startswith(("tmux", "screen"))


def _ask_for_way(stream: TextIO, environ: Mapping[str, str]) -> str:
    # tmux and screen would take kitty's query for the title of the window
    query = _ATTRIBUTES_QUERY if _is_multiplexed(environ) else _KITTY_QUERY + _ATTRIBUTES_QUERY
    reply = ask_terminal(stream, query)
    if "\x1b_Gi=31;OK" in reply:
        return "kitty"
    found = _ATTRIBUTES.search(reply)
    return "sixel" if found and "4" in found[1].split(";")[1:] else "blocks"


def ask_terminal(stream: TextIO, query: str, timeout_s: float = _REPLY_S) -> str:
    """The reply of the terminal to a query that ends with DA1; "" if it cannot be asked or does not answer in time.

    stdin and the stream must be the terminal, and this its foreground process. Nothing is asked while typed keys wait,
    so that none is lost.
    """
    try:
        import termios
        import tty

        source, target = sys.stdin.fileno(), stream.fileno()
        if not (os.isatty(source) and os.isatty(target)) or os.tcgetpgrp(source) != os.getpgrp():
            return ""
        before = termios.tcgetattr(source)
    except (ImportError, OSError, ValueError, AttributeError):  # Windows, or streams that are no files
        return ""
    reply = b""
    try:
        tty.setcbreak(source, termios.TCSANOW)
        if select.select([source], [], [], 0)[0]:
            return ""
        os.write(target, query.encode("ascii"))
        end_s = time.monotonic() + timeout_s
        while not _ATTRIBUTES.search(reply.decode("latin-1")):
            if not select.select([source], [], [], max(0.0, end_s - time.monotonic()))[0]:
                break
            reply += os.read(source, 1024)
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
    return reply.decode("latin-1")


def _measure_cell(stream: TextIO) -> tuple[int, int]:
    """Width and height of a character in pixels; 8 and 16 if the terminal does not say."""
    with contextlib.suppress(ImportError, OSError, ValueError, struct.error):
        import fcntl
        import termios

        packed = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        lines, columns, width, height = struct.unpack("HHHH", packed)
        if lines and columns and width >= columns and height >= lines:
            return width // columns, height // lines
    return 8, 16


def _count_colours(environ: Mapping[str, str]) -> int:
    term = environ.get("TERM", "")
    told = environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    known = term.endswith("-direct") or term in ("xterm-kitty", "xterm-ghostty", "alacritty", "foot", "wezterm")
    return 2**24 if told or known or environ.get("TERM_PROGRAM") in _TRUE_COLOUR_PROGRAMS else 256


def find_player(environ: Mapping[str, str] | None = None) -> list[str] | None:
    """The command that plays a WAV file whose name follows it; None if there is none.

    Over ssh there is none, unless sound is forwarded: it would play at the other end.
    """
    environ = os.environ if environ is None else environ
    if ("SSH_CONNECTION" in environ or "SSH_TTY" in environ) and "PULSE_SERVER" not in environ:
        return None
    for name, *options in PLAYERS:
        if (found := shutil.which(name, path=environ.get("PATH"))) is not None:
            return [found, *options]
    return None


def play_sound(path: str | os.PathLike[str], player: list[str], duration_s: float) -> str | None:
    """Plays a file to its end; Ctrl-C ends only the sound. Returns why it could not be played, or None."""
    name = Path(player[0]).name
    try:
        process = subprocess.Popen(
            [*player, os.path.abspath(path)],  # absolute: never taken for an option
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        return f"{name} does not start ({error.strerror})"
    try:
        _, said = process.communicate(timeout=duration_s + _PLAYER_SLACK_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"{name} did not end in time"
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        return None
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
        return f"{name} could not play it ({last[0].strip()})"
    return None
