"""The `unimodal` command. Results go to stdout, progress and notices to stderr.

A user's mistake is one line on stderr and exit status 2; Ctrl-C is 130. Nothing heavy is imported before a command
needs it: every command imports what it uses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimodal._version import __version__
from unimodal.cli.evaluate import evaluate
from unimodal.cli.export import export, push
from unimodal.cli.inspect import inspect
from unimodal.cli.progress import Reporter
from unimodal.cli.serve import serve
from unimodal.cli.shared import (
    BesideFile,
    BesideText,
    Cache,
    Command,
    Compress,
    Decoder,
    Guidance,
    Model,
    Negative,
    Out,
    Seconds,
    Seed,
    Start,
    Temperature,
    TextNetwork,
    Tokens,
    TopK,
    TopP,
    Weights,
    check_choice,
    check_compress,
    check_file,
    check_folder,
    check_model,
    check_of_media,
    check_out,
    check_time,
    check_ways,
    load_coder,
    load_model,
    make_counter,
    open_missing_streams,
    read_source,
    read_voice,
)
from unimodal.cli.text import ManyCommand, text
from unimodal.cli.tokenizers import tokenizers
from unimodal.cli.upgrade import upgrade
from unimodal.media.registry import MEDIA

if TYPE_CHECKING:
    from unimodal.coder.media_coder import Output
    from unimodal.generation.request import CompressionEvent

app = typer.Typer(
    name="unimodal",
    help="One model that reads and writes text, pictures, sound and video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"unimodal {__version__}")
        raise typer.Exit


@app.callback()
def _read_version(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    pass


@app.command("doctor", cls=Command)
def show_installation(model: Model = None) -> None:
    """Say what is installed, on which device models run, and whether the default model is whole."""
    from unimodal.cli.doctor import examine

    with Reporter() as report:
        report("looking around")
        lines = list(examine(model))
    width = max(len(name) for name, _ in lines)
    for name, state in lines:
        print(f"{name.ljust(width)}  {state}")


@app.command("models", cls=Command)
def show_models() -> None:
    """List the models on this machine, what they read and write, and their size."""
    from unimodal.cli.doctor import format_models

    print(format_models())


@app.command(cls=Command)
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Without it: an interactive session.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="F", help="A picture to look at; may be repeated.")
    ] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="F", help="A sound to hear; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option(metavar="F", help="A clip to watch; may be repeated.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(metavar="F", help="A file of any medium; its content decides. May be repeated.")
    ] = None,
    start: Start = 0.0,
    seconds: Seconds = None,
    to: Annotated[str | None, typer.Option(metavar="X", help="Answer with text, image, audio or video.")] = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    tokens: Tokens = None,
    negative: Negative = None,
    decoder: Decoder = None,
    weights: Weights = "auto",
    kv: Cache = "model",
    compress: Compress = None,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where media in answers are saved.")] = Path("."),
    pictures: Annotated[
        str, typer.Option(metavar="P", help="How a terminal shows them: auto, kitty, iterm, sixel, blocks or off.")
    ] = "auto",
    mute: Annotated[bool, typer.Option("--mute", help="Save sounds without playing them.")] = False,
    model: Model = None,
) -> None:
    """Ask about pictures, sounds and clips; media in the answer are saved and named."""
    from unimodal.cli.terminal import PICTURE_WAYS, find_screen

    check_choice("--to", to, ("text", *MEDIA))
    check_choice("--pictures", pictures, PICTURE_WAYS)
    check_ways(decoder, weights, kv)
    methods = check_compress(compress, decoder, weights, kv)
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty; leave it out for an interactive session")
    if prompt is not None:
        check_of_media(to, guidance=guidance, negative=negative)
    if not folder.is_dir():
        raise ValueError(f"--folder {folder}: no such folder; create it first")
    given = {"image": image, "audio": audio, "video": video}
    if prompt is None and Path("-") in [path for paths in (*given.values(), file) for path in paths or []]:
        raise ValueError("a file from stdin needs the question in the same command; give it as PROMPT")
    files = [(kind, read_source(path)) for kind, paths in given.items() for path in paths or []]
    for _, source in files:
        check_file(source)
    sources = [read_source(path) for path in file or []]
    files += [(check_file(source), source) for source in sources]
    check_time(start, seconds, (kind for kind, _ in files))
    check_model(model)
    screen = find_screen(pictures)  # asks the terminal: before seconds of loading in which the user may type
    with Reporter() as report:
        report("starting")
        from unimodal.cli.chat import TerminalChat
        from unimodal.pipeline import AnswerSettings
        from unimodal.pipeline.compression import load_methods
        from unimodal.sequence.document import MEDIA_PARTS

        settings = AnswerSettings(
            to=to,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            tokens=tokens,
            negative=negative,
            decoder=decoder,
            compress=load_methods(methods) if methods else None,
        )
        terminal_chat = TerminalChat(load_model(model, report, weights, kv), report, settings, folder, screen, mute)
        for kind, source in files:
            data, path = (source, None) if isinstance(source, bytes) else (None, str(source))
            terminal_chat.attach(MEDIA_PARTS[kind](path=path, data=data, start_s=start, seconds=seconds))
        if prompt is None:
            terminal_chat.run()
        else:
            terminal_chat.answer(prompt)


@app.command(cls=Command)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw, say, film or write.")],
    to: Annotated[str, typer.Option(metavar="image|audio|video|text", help="What to make.")],
    out: Out,
    seed: Seed = 0,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    tokens: Tokens = None,
    voice: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Who speaks (audio): a name, or a sound of the voice.")
    ] = None,
    negative: Negative = None,
    decoder: Decoder = None,
    search: Annotated[
        str | None, typer.Option(metavar="S", help="Write several, keep the best: best-of-n, beam or lookahead.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Save the coarse pictures on the way, too.")] = False,
    weights: Weights = "auto",
    kv: Cache = "model",
    compress: Compress = None,
    model: Model = None,
) -> None:
    """Make a picture, a sound, a clip or a text from words, and save it."""
    from unimodal.generation.search import SEARCHES

    check_choice("--to", to, ("text", *MEDIA))
    check_choice("--search", search, tuple(SEARCHES))
    check_ways(decoder, weights, kv)
    methods = check_compress(compress, decoder, weights, kv)
    check_out(out, to)
    check_of_media(to, guidance=guidance)
    if partial and to != "image":
        raise ValueError(f"--partial is for pictures, not for {to}; leave it out")
    check_model(model)
    saved: list[Path] = []

    def save_partial(_: int, output: Output) -> None:
        saved.append(out.with_name(f"{out.stem}-{output.num_codes:02d}{out.suffix}"))
        output.save(saved[-1])

    with Reporter() as report:
        report("starting")
        from unimodal.pipeline import AnswerSettings
        from unimodal.pipeline.compression import describe_kept, load_methods

        settings = AnswerSettings(
            to=to,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            tokens=tokens,
            negative=negative,
            decoder=decoder,
            voice=read_voice(voice),
            search=search,
            compress=load_methods(methods) if methods else None,
        )
        kept: list[CompressionEvent] = []
        output = load_model(model, report, weights, kv).generate(
            prompt,
            settings=settings,
            on_token=make_counter(report, f"making {to}"),
            on_partial=save_partial if partial else None,
            on_compressed=kept.append,
        )
        output.save(out)
    for event in kept:
        print(describe_kept(settings.methods, event.num_tokens, event.num_kept), file=sys.stderr)
    for path in (*saved, out):
        print(path)


@app.command(cls=Command)
def tokenize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture, sound or film, or - for stdin.")],
    out: Annotated[Path, typer.Option("--out", metavar="codes.json", help="The file of codes to write.")],
    start: Start = 0.0,
    seconds: Seconds = None,
    text: BesideText = None,
    condition: BesideFile = None,
    text_network: TextNetwork = None,
    model: Model = None,
) -> None:
    """Turn a file into the integer codes that the model sees."""
    from unimodal.coder.beside import Beside

    check_folder(out)
    source = read_source(file)
    check_time(start, seconds, [check_file(source)])
    notes: list[str] = []
    beside = Beside(text, condition, text_network)
    with Reporter() as report:
        codes = load_coder(model, report).tokenize(source, start, seconds, notes.append, beside)
        codes.save(out)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{out}: {codes.modality}, {len(codes.codes)} codes")


@app.command(cls=Command)
def detokenize(
    codes: Annotated[Path, typer.Argument(metavar="codes.json", help="What `tokenize` wrote.")],
    out: Out,
    text: BesideText = None,
    condition: BesideFile = None,
    text_network: TextNetwork = None,
    model: Model = None,
) -> None:
    """Turn codes back into a picture, a sound or a clip."""
    from unimodal.coder.beside import Beside
    from unimodal.coder.outputs import MediaCodes

    read = MediaCodes.load(codes)
    check_out(out, read.modality)
    with Reporter() as report:
        load_coder(model, report).detokenize(read, Beside(text, condition, text_network)).save(out)
    print(out)


for command in (evaluate, export, push, serve, upgrade):
    app.command(cls=Command)(command)
app.command(cls=ManyCommand)(inspect)
app.add_typer(tokenizers)
app.add_typer(text)


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits with its status: 0, 2 after a user's mistake, 130 after Ctrl-C, 1 without memory."""
    open_missing_streams()
    try:
        status = app(args=argv, prog_name="unimodal", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing more to write
        status = 1
    except (ValueError, OSError) as error:
        status = _complain(str(error).replace("<bytes>", "- (stdin)"))  # of a command, no other file is bytes
    except typer.TyperException as error:
        status = _complain(error.format_message())
    except (MemoryError, RuntimeError) as error:
        from unimodal.generation.kinds import is_memory_short

        if not is_memory_short(error):
            raise
        _complain("out of memory; --kv int8 and --weights int8 take less, and so do fewer --tokens or a smaller model")
        status = 1
    if status == 130:
        print("interrupted", file=sys.stderr)
    raise SystemExit(status or 0)


def _complain(message: str) -> int:
    print(f"unimodal: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
