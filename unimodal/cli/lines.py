"""The entries that a user of the terminal chat types, one after the other. Imports nothing heavy.

On a terminal, prompt_toolkit edits the entry: pasted text (bracketed paste) is one entry, however many lines it has;
Alt+Enter begins another line, the arrow keys bring back earlier entries, Tab completes commands and names of files.
From a pipe or a file, every line is an entry.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY_FILE = "unimodal/chat_history"  # in $XDG_STATE_HOME, by default ~/.local/state


def read_entries(words: Iterable[str] = (), with_file: Iterable[str] = ()) -> Iterator[str]:
    """Entries of stdin, to its end; on a terminal with a prompt, until Ctrl-D.

    words: commands that Tab completes. with_file: those of them that take the name of a file. Ctrl-C clears a prompt;
    on an empty one it raises KeyboardInterrupt.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    session = _make_session(words, with_file)
    while True:
        try:
            yield session.prompt("> ")
        except EOFError:
            return


def split_entry(entry: str, commands: Sequence[str]) -> list[str]:
    """Splits an entry of several lines into what is done one after the other.

    Lines at its beginning that are one of `commands` stand for themselves; the rest is one question.
    """
    lines: list[str] = []
    rest = entry.strip()
    while "\n" in rest and rest.split(maxsplit=1)[0] in commands:
        line, _, rest = rest.partition("\n")
        lines.append(line)
        rest = rest.strip()
    return [*lines, rest]


def find_history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / HISTORY_FILE


def _make_session(words: Iterable[str], with_file: Iterable[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession

    return PromptSession(
        multiline=True,  # with a key of our own for the end of an entry
        key_bindings=_make_keys(),
        history=_open_history(find_history_file()),
        completer=_make_completer(sorted(words), frozenset(with_file)),
        complete_while_typing=False,
        prompt_continuation="  ",
    )


def _make_completer(words: Sequence[str], with_file: Collection[str]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class CommandCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            command, space, rest = text.partition(" ")
            if space and command in with_file:
                yield from paths.get_completions(Document(rest.lstrip()), complete_event)
            elif text.startswith("/") and not space:
                yield from (Completion(word, -len(text)) for word in words if word.startswith(text))

    return CommandCompleter()


def _make_keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def _open_history(path: Path) -> History:
    """The entries of earlier chats, in a file that only the user can read; of this chat alone if it cannot be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()

    class KeptHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk must not end the chat
                super().store_string(string)

    return KeptHistory(path)
