"""What a user types and pastes at a real pseudo-terminal, and what the chat gets of it."""

import io
import os
import pty
import select
import sys
import time

import pytest

from unimodal.cli.lines import find_history_file, read_entries, split_entry

PROMPT = "\x1b[?2004h"  # the terminal is told that pasted text is to be marked, as this does
PASTE = "\x1b[200~{}\x1b[201~"
PROGRAM = """
import sys
from unimodal.cli.lines import read_entries
try:
    for entry in read_entries(["/image", "/draw"], ["/image"]):
        print(f"<{entry!r}>", flush=True)
    print("<end>", flush=True)
except KeyboardInterrupt:
    print("<stopped>", flush=True)
assert "torch" not in sys.modules
"""


class Person:
    """Somebody at a terminal in which PROGRAM runs."""

    def __init__(self, folder):
        self.unread = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environ = {**os.environ, "XDG_STATE_HOME": str(folder), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "-c", PROGRAM], environ)
        self.wait_for(PROMPT)

    def wait_for(self, text):
        """Read to the end of `text`."""
        end_s = time.monotonic() + 20
        while text not in self.unread:
            left_s = end_s - time.monotonic()
            assert left_s > 0 and select.select([self.terminal], [], [], left_s)[0], (text, self.unread)
            try:
                data = os.read(self.terminal, 65_536)
            except OSError:  # Linux: the other end is closed
                data = b""
            assert data, (text, self.unread)
            self.unread += data.decode()
        self.unread = self.unread.partition(text)[2]

    def type(self, keys, shown):
        os.write(self.terminal, keys.encode())
        self.wait_for(shown)

    def enter(self, keys, entry):
        """Type an entry and wait for the next prompt."""
        self.type(f"{keys}\r", f"<{entry!r}>")
        self.wait_for(PROMPT)

    def leave(self):
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.terminal)
        return status


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path)


def test_at_a_terminal(person, tmp_path):
    person.enter("hello", "hello")
    person.enter(PASTE.format("one\ntwo\n"), "one\ntwo\n")  # two pasted lines are one entry
    person.enter("a\x1b\rb", "a\nb")  # Alt+Enter
    person.type("half", shown="half")
    person.enter("\x03whole", "whole")  # Ctrl-C clears it
    person.enter("\x1b[A" * 2 + "!", "a\nb!")  # earlier entries, line by line
    (tmp_path / "picture.png").touch()
    person.type("/im\t", shown="age")
    person.type(" pic\t", shown="ture.png")
    person.enter("", "/image picture.png")
    person.type("\x04", shown="<end>")  # Ctrl-D
    assert person.leave() == 0
    assert find_mode(tmp_path / "unimodal" / "chat_history") == 0o600
    again = Person(tmp_path)  # earlier chats are remembered
    again.enter("\x1b[A", "/image picture.png")
    again.type("\x03", shown="<stopped>")  # Ctrl-C on an empty prompt
    assert again.leave() == 0


def find_mode(path) -> int:
    return path.stat().st_mode & 0o777


def test_a_history_that_cannot_be_kept_is_of_this_chat_alone(tmp_path):
    (tmp_path / "unimodal").touch()
    person = Person(tmp_path)
    person.enter("hello", "hello")
    person.enter("\x1b[A", "hello")
    person.type("\x04", shown="<end>")
    assert person.leave() == 0


def test_a_pipe_gives_its_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    assert list(read_entries()) == ["one\n", "two"]


def test_pasted_commands_stand_for_themselves_and_the_rest_is_one_question():
    alone = ("/image", "/clear")
    assert split_entry("/clear\n/image a b.png\n\nwhat is\nthis?\n", alone) == [
        "/clear", "/image a b.png", "what is\nthis?"
    ]  # fmt: skip
    assert split_entry("/draw a cat\nand a dog", alone) == ["/draw a cat\nand a dog"]
    assert split_entry("one\n/image a.png", alone) == ["one\n/image a.png"]
    assert split_entry("\n", alone) == [""]


def test_the_history_lies_where_the_system_keeps_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert find_history_file() == tmp_path / "unimodal" / "chat_history"
