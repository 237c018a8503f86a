"""The `unimodal` command. Results go to stdout, progress and notices to stderr.

A user's mistake is one line on stderr and exit status 2; Ctrl-C is 130. Nothing heavy is imported before a command
needs it: every command imports what it uses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unimodal.cli.export import register
from unimodal.cli.serve import serve

if TYPE_CHECKING:
    from unimodal.cli.progress import Reporter
    from unimodal.pipeline import Output, Unimodal

MEDIA = ("image", "audio", "video")
#: what a result of each modality may be saved as; the media modules check again
SUFFIXES = {
    "text": (".txt",),
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
    "video": (".mp4", ".webm", ".gif", ".webp"),
}

app = typer.Typer(
    name="unimodal",
    help="One model that reads and writes text, pictures, sound and video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None, typer.Option("--model", metavar="M", help="A model folder or hub id; by default the nano that is here.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Another seed gives another result.")]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", metavar="G", help="How closely media follow the words; 1 is not at all more."),
]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="At most so many new tokens.")]
Negative = Annotated[str | None, typer.Option("--negative", metavar="WORDS", help="What media should not look like.")]
Decoder = Annotated[
    str | None, typer.Option("--decoder", metavar="D", help="A fast decoder: jacobi, coupled-sjd, token-recycling, …")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="W", help="auto, or bfloat16 or int8: faster on a CPU, a little less exact.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write; its suffix is the format.")]


@app.command()
def doctor(model: Model = None) -> None:
    """Say what is installed, on which device models run, and whether the default model is whole."""
    from unimodal.cli.doctor import doctor_lines

    with _reporter() as report:
        report("looking around")
        lines = list(doctor_lines(model))
    width = max(len(name) for name, _ in lines)
    for name, state in lines:
        print(f"{name.ljust(width)}  {state}")


@app.command()
def models() -> None:
    """List the models on this machine, what they read and write, and their size."""
    from unimodal.cli.doctor import models_table

    print(models_table())


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Without it: an interactive session.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="F", help="A picture to look at; may be repeated.")
    ] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="F", help="A sound to hear; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option(metavar="F", help="A clip to watch; may be repeated.")] = None,
    to: Annotated[str | None, typer.Option(metavar="X", help="Answer with text, image, audio or video.")] = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    tokens: Tokens = None,
    negative: Negative = None,
    decoder: Decoder = None,
    weights: Weights = "auto",
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where media in answers are saved.")] = Path("."),
    pictures: Annotated[
        str, typer.Option(metavar="P", help="How a terminal shows them: auto, kitty, iterm, sixel, blocks or off.")
    ] = "auto",
    mute: Annotated[bool, typer.Option("--mute", help="Save sounds without playing them.")] = False,
    model: Model = None,
) -> None:
    """Ask about pictures, sounds and clips; media in the answer are saved and named."""
    from unimodal.cli.terminal import PICTURE_WAYS, find_screen

    _check_choice("--to", to, ("text", *MEDIA))
    _check_choice("--pictures", pictures, PICTURE_WAYS)
    _check_ways(decoder, weights)
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty; leave it out for an interactive session")
    if not folder.is_dir():
        raise ValueError(f"--folder {folder}: no such folder; create it first")
    files = [(kind, path) for kind, paths in zip(MEDIA, (image, audio, video), strict=True) for path in paths or []]
    for _, path in files:
        _check_file(path)
    screen = find_screen(pictures)  # asks the terminal: before seconds of loading in which the user may type
    with _reporter() as report:
        settings = {"guidance": guidance, "tokens": tokens, "negative": negative, "decoder": decoder}
        loaded = _load(model, report, weights)

        from unimodal.cli.chat import Session
        from unimodal.sequence.document import MEDIA_PARTS

        session = Session(loaded, report, folder, settings, seed, screen, mute)
        for kind, path in files:
            session.attach(MEDIA_PARTS[kind](path=str(path)))
        if prompt is None:
            session.run(to)
        else:
            session.answer(prompt, to)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw, say, film or write.")],
    to: Annotated[str, typer.Option(metavar="image|audio|video|text", help="What to make.")],
    out: Out,
    seed: Seed = 0,
    guidance: Guidance = None,
    tokens: Tokens = None,
    voice: Annotated[str | None, typer.Option(metavar="NAME", help="Who speaks (audio).")] = None,
    negative: Negative = None,
    decoder: Decoder = None,
    search: Annotated[
        str | None, typer.Option(metavar="S", help="Write several, keep the best: best-of-n, beam or lookahead.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Save the coarse pictures on the way, too.")] = False,
    weights: Weights = "auto",
    model: Model = None,
) -> None:
    """Make a picture, a sound, a clip or a text from words, and save it."""
    from unimodal.generation.search import SEARCHES

    _check_choice("--to", to, ("text", *MEDIA))
    _check_choice("--search", search, tuple(SEARCHES))
    _check_ways(decoder, weights)
    _check_out(out, to)
    if partial and to != "image":
        raise ValueError(f"--partial is for pictures, not for {to}; leave it out")
    saved: list[Path] = []

    def save_partial(_: int, output: Output) -> None:
        saved.append(out.with_name(f"{out.stem}-{output.num_codes:02d}{out.suffix}"))
        output.save(saved[-1])

    with _reporter() as report:
        loaded = _load(model, report, weights)
        output = loaded.generate(
            prompt,
            to,
            seed,
            voice,
            search,
            guidance=guidance,
            tokens=tokens,
            negative=negative,
            decoder=decoder,
            on_token=_counting(report, f"making {to}"),
            on_partial=save_partial if partial else None,
        )
        output.save(out)
    for path in (*saved, out):
        print(path)


@app.command()
def tokenize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture, sound or film; its content decides.")],
    out: Annotated[Path, typer.Option("--out", metavar="codes.json", help="The file of codes to write.")],
    model: Model = None,
) -> None:
    """Turn a file into the integer codes that the model sees."""
    _check_file(file)
    _check_folder(out)
    with _reporter() as report:
        codes = _load_coder(model, report).tokenize(file)
        codes.save(out)
    print(f"{out}: {codes.modality}, {len(codes.codes)} codes")


@app.command()
def detokenize(
    codes: Annotated[Path, typer.Argument(metavar="codes.json", help="What `tokenize` wrote.")],
    out: Out,
    model: Model = None,
) -> None:
    """Turn codes back into a picture, a sound or a clip."""
    from unimodal.coder.outputs import MediaCodes

    read = MediaCodes.load(codes)
    _check_out(out, read.modality)
    with _reporter() as report:
        _load_coder(model, report).detokenize(read).save(out)
    print(out)


@app.command()
def evaluate(
    suite: Annotated[list[str], typer.Option("--suite", metavar="S", help="A suite or `all`; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", metavar="report.json", help="The report; finished suites are kept.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="The prepared data.")] = Path("data/prepared"),
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many items of a suite.")] = None,
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Measure the model on held-out data and write a report."""
    from unimodal.evaluation import run_suites, suites_named

    names = suites_named(suite)
    _check_folder(out)
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: give the number of items to try, at least 1")
    if not data.is_dir():
        raise ValueError(f"--data {data}: no such folder; fetch and prepare the data first (make nano)")
    with _reporter() as report:
        loaded = _load(model, report)
        for table in run_suites(names, loaded, data, out, limit, seed, report):
            report.clear()
            print(table, flush=True)


register(app)  # export, push
app.command()(serve)


# ---- what the commands share


def _reporter() -> Reporter:
    from unimodal.cli.progress import Reporter

    return Reporter()


def _load(model: str | None, report: Reporter, weights: str = "auto") -> Unimodal:
    from unimodal.model_folder.find import find_model

    find_model(model)  # a wrong name is told before seconds of imports
    report("starting")
    from unimodal.pipeline import load

    return load(model, on_step=report, weights=weights)


def _load_coder(model: str | None, report: Reporter) -> Any:
    from unimodal.model_folder.find import find_model

    folder = find_model(model)
    report("starting")
    from unimodal.coder.media_coder import load_coder

    return load_coder(folder, on_step=report)


def _counting(report: Reporter, text: str) -> Any:
    """Called with every new token: says how many there are."""
    count = 0

    def on_token(_: int) -> None:
        nonlocal count
        count += 1
        report(text, count)

    return on_token


def _check_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{option} {value!r} is unknown; choose {', '.join(choices)}")


def _check_ways(decoder: str | None, weights: str) -> None:
    from unimodal.generation import DECODERS

    _check_choice("--decoder", decoder, (*DECODERS, "plain"))
    _check_choice("--weights", weights, ("auto", "float32", "bfloat16", "int8"))


def _check_file(path: Path) -> None:
    """What can be told about an input before anything heavy is imported: is it there, and is it a medium at all?"""
    from unimodal.media.limits import media_kind

    media_kind(path)


def _check_out(path: Path, modality: str) -> None:
    if path.suffix.lower() not in SUFFIXES[modality]:
        raise ValueError(f"--out {path}: {modality} is saved as {', '.join(SUFFIXES[modality])}; change the suffix")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out {path}: the folder {path.parent} may not be written; save elsewhere")


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits with its status: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    try:
        status = app(args=argv, prog_name="unimodal", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing more to write
        status = 1
    except (ValueError, OSError) as error:
        status = _complain(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # not typer's own: a defect of ours, shown in full
            raise
        status = _complain(error.format_message())
    if status == 130:
        print("interrupted", file=sys.stderr)
    raise SystemExit(status or 0)


def _complain(message: str) -> int:
    print(f"unimodal: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
