"""The chat in a terminal: one answer, or a conversation with commands.

Words and the names of saved files go to stdout, everything else to stderr. On a terminal words appear as they are
written, pictures and clips are drawn, and sounds are played.
"""

from __future__ import annotations

import sys
from pathlib import Path

from unimodal.cli.lines import read_entries, split_entry
from unimodal.cli.progress import Reporter
from unimodal.cli.terminal import Screen, find_player, play_sound
from unimodal.cli.terminal_pictures import draw, draw_clip
from unimodal.files import join_lines
from unimodal.generation.request import CompressionEvent, TokenEvent
from unimodal.media.registry import MEDIA
from unimodal.pipeline import AnswerSettings, Output, Unimodal
from unimodal.pipeline.compression import describe_kept
from unimodal.pipeline.requests import fit_history
from unimodal.sequence.document import MEDIA_PARTS, Media, Part, Turn

HELP = """\
Type a question; Alt+Enter begins another line of it. Commands:
  /image F, /audio F, /video F   show the model a file; then ask, or press return for its usual question
  /draw WORDS                    a picture
  /say WORDS                     speech
  /film WORDS                    a clip
  /save FILE                     save the last picture, sound or clip under another name
  /clear                         forget what was said and shown
  /help, /quit"""

#: the media that a terminal shows
DRAWERS = {"image": draw, "video": draw_clip}


def describe_commands() -> str:
    """`HELP`, with a line for every medium that it does not name."""
    further = [medium for medium in MEDIA.values() if f"/{medium.name} F" not in HELP]
    lines = [
        f"  /{medium.name} F, /{medium.ask} WORDS".ljust(33) + f"show a {medium.noun}, make one" for medium in further
    ]
    return "\n".join([HELP, *lines])


class TerminalChat:
    """A conversation in a terminal: what was said and shown so far, and how answers are given.

    settings: of every answer. Without `to` the model chooses; each answer has the next seed. folder: where media in
    answers are saved. screen: how they are drawn. mute: sounds are saved and not played.
    """

    def __init__(
        self,
        model: Unimodal,
        report: Reporter,
        settings: AnswerSettings,
        folder: Path = Path(),
        screen: Screen | None = None,
        mute: bool = False,
    ) -> None:
        self.model, self.report, self.settings, self.folder = model, report, settings, folder
        self.screen, self.mute = screen or Screen("off"), mute
        # what was read for one turn is not read again for the next, unless it is compressed
        self.memory = None if settings.compress else model.engine.open_session()
        self.history: list[Turn] = []
        self.pending: list[Part] = []
        self.last: Output | None = None

    # ---- the loop

    def run(self) -> None:
        """Answers entries until /quit or the end of the input; then answers a question about files that are still
        pending.

        Raises KeyboardInterrupt for a Ctrl-C on an empty prompt.
        """
        self.report.clear()
        if sys.stdin.isatty():
            _notify(f"{self.model.folder.name} is here. /help lists the commands, /quit ends.")
        for part in self.pending:
            assert isinstance(part, Media)
            _notify(f"{part.modality} attached; ask about it, or press return.")
        with_file = ["/save", *(f"/{name}" for name in MEDIA)]
        alone = ["/help", "/clear", "/quit", "/exit", *with_file]  # a question in the lines below is not theirs
        for entry in read_entries([*alone, *(f"/{medium.ask}" for medium in MEDIA.values())], with_file):
            try:
                if not all(self.follow(line) for line in split_entry(entry, alone)):
                    return
            except (ValueError, OSError) as error:
                self.report.clear()
                _notify(join_lines(str(error)))
            except KeyboardInterrupt:  # stops this answer
                self.report.clear()
                _notify("stopped")
        if self.pending:
            self.answer("")

    def follow(self, line: str) -> bool:
        """Does what a line says; returns False to end the chat. Raises ValueError for a mistake in it."""
        line = line.strip()
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if not line.startswith("/"):
            if line or self.pending:
                self.answer(line)
        elif command in ("/quit", "/exit"):
            return False
        elif command == "/help":
            _notify(describe_commands())
        elif command == "/clear":
            self.history.clear()
            self.pending.clear()
            if self.memory is not None:
                self.memory.clear()
            _notify("forgotten")
        elif command.removeprefix("/") in MEDIA:
            self.attach(MEDIA_PARTS[command.removeprefix("/")](path=_read_path(command, rest)))
            _notify("attached; ask about it, or press return.")
        elif (asked := next((name for name, medium in MEDIA.items() if command == f"/{medium.ask}"), None)) is not None:
            self.answer(self.model.wording.phrase_request(rest, asked), asked)
        elif command == "/save":
            self.save(_read_path(command, rest))
        else:
            raise ValueError(f"{command} is no command; /help lists them")
        return True

    def attach(self, part: Part) -> None:
        """Reads and encodes a file for the next question. Raises ValueError if it cannot be used."""
        encoded = self.model.coder.encode_part(part)
        self.pending.append(encoded)
        self.report.clear()
        for note in encoded.notes if isinstance(encoded, Media) else ():
            _notify(note)

    def save(self, path: str) -> None:
        """Saves the last picture, sound or clip again. Raises ValueError if there is none."""
        if self.last is None:
            raise ValueError("there is nothing to save yet; make a picture with /draw, speech with /say")
        self.last.save(path)
        print(path, flush=True)

    # ---- one answer

    def answer(self, words: str, to: str | None = None) -> None:
        """Asks about what is pending; prints words, saves and names media. After an error the pending files stay.

        to: the medium of this answer, in place of the one in the settings.
        """
        model, settings = self.model, self._choose_settings(to)
        to = settings.to
        if to in model.vocabulary.media and words and not self.pending:
            words = model.wording.phrase_request(words, to)
        turn = model.user_turn([*self.pending, *([words] if words else [])])
        document = fit_history(model, [*self.history, turn], settings)
        writer = _TokenPrinter(model, self.report)
        kept: list[CompressionEvent] = []
        outputs = model.answers([document], settings, session=self.memory, on_token=writer, on_compressed=kept.append)[
            0
        ]
        self.settings = self.settings.replace(seed=self.settings.seed + 1)
        self.report.clear()
        writer.finish()
        for event in kept:
            _notify(describe_kept(settings.methods, event.num_tokens, event.num_kept))
        self.pending.clear()
        self.history = [*document.turns, Turn("assistant", [output.part for output in outputs])]
        if not outputs:
            _notify("the model has nothing to say to that; ask in other words")
        for output in outputs:
            if output.media is not None:
                self._show(output)
            elif not writer.live:
                print(output.text, flush=True)

    def _choose_settings(self, to: str | None) -> AnswerSettings:
        """The settings of one answer: those of words too, if the model chooses; a negative prompt only for media."""
        settings = self.settings if to is None else self.settings.replace(to=to)
        if settings.to is None:
            return settings.replace(allow=("text", *self.model.writable))
        return settings.replace(negative=None) if settings.to == "text" else settings

    def _show(self, output: Output) -> None:
        assert output.media is not None
        name = Path(MEDIA[output.modality].saved_as)
        number = 1
        while (path := self.folder / f"{name.stem}-{number}{name.suffix}").exists():
            number += 1
        output.save(path)
        self.last = output
        if self.screen.way != "off" and output.modality in DRAWERS:
            print(DRAWERS[output.modality](output.media, self.screen))
        print(path, flush=True)
        if output.modality == "audio" and not self.mute and sys.stdout.isatty():
            self._play(path, len(output.media) / float(output.rate or 16_000))

    def _play(self, path: Path, duration_s: float) -> None:
        player = find_player()
        trouble = None if player is None else play_sound(path, player, duration_s)
        if trouble is not None:
            _notify(f"{trouble}; the sound is saved")


class _TokenPrinter:
    """Takes every new token: on a terminal, words appear at once; all else is counted on stderr."""

    def __init__(self, model: Unimodal, report: Reporter) -> None:
        self.live = sys.stdout.isatty() and sys.stdin.isatty()
        self._vocabulary, self._stream, self._report = model.vocabulary, model.template.text.stream(), report
        self._count, self._written = 0, ""

    def __call__(self, event: TokenEvent) -> None:
        self._count += 1
        if self.live and event.modality == "text":
            if self._vocabulary.is_text(event.id):
                self._write(self._stream.push(event.id))
        else:
            self._report(f"writing {event.modality}", self._count)

    def _write(self, text: str) -> None:
        if not self._written:
            text = text.lstrip()
            self._report.clear()
        self._written += text
        sys.stdout.write(text)
        sys.stdout.flush()

    def finish(self) -> None:
        if self.live:
            self._write(self._stream.finish())
            if self._written:
                print(flush=True)


def _read_path(command: str, rest: str) -> str:
    """The file name behind a command, without the quotes that a file manager puts around it.

    Raises ValueError if there is none.
    """
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "'\"":
        rest = rest[1:-1]
    if not rest:
        raise ValueError(f"{command} needs the name of a file")
    return str(Path(rest).expanduser())


def _notify(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
