"""What the commands share: options, loading a model with progress, and checks made before heavy imports."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from unimodal.media.registry import MEDIA, find_medium, load_plugins

if TYPE_CHECKING:
    from unimodal.cli.progress import Reporter
    from unimodal.coder.media_coder import MediaCoder
    from unimodal.pipeline import Unimodal


class Command(TyperCommand):
    """A command that loads the plugins of `$UNIMODAL_PLUGINS`; its `--help` does not."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's own, under its public name
        load_plugins()
        return super().invoke(ctx)


Model = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="A model's folder, name or hub id; by default the nano that is here."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Another seed gives another result.")]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", metavar="G", help="How closely media follow the words; 1 turns guidance off."),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="How freely tokens are drawn; 0 takes the likeliest."),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="N", help="Draw only from the N likeliest tokens; 0 is all.")
]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Draw only from the likeliest of this share; 1 is all.")
]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="At most so many new tokens.")]
Start = Annotated[float, typer.Option("--start", metavar="S", help="Where sounds and films begin, in seconds.")]
Seconds = Annotated[float | None, typer.Option("--seconds", metavar="S", help="How much of them to take.")]
BesideText = Annotated[
    str | None,
    typer.Option("--text", metavar="WORDS", help="The caption, or what is said, for a tokenizer that reads it."),
]
BesideFile = Annotated[
    Path | None,
    typer.Option(
        "--condition",
        metavar="FILE",
        help="What the tokenizer reads beside: a text (.txt), vectors (.npy), or the picture, film or sound before.",
    ),
]
TextNetwork = Annotated[
    str | None,
    typer.Option("--text-network", metavar="FOLDER", help="The text model that the tokenizer reads captions through."),
]
Negative = Annotated[str | None, typer.Option("--negative", metavar="WORDS", help="What media should not look like.")]
Decoder = Annotated[
    str | None, typer.Option("--decoder", metavar="D", help="A fast decoder: jacobi, coupled-sjd, token-recycling, …")
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights", metavar="W", help="auto, or bfloat16, int8 or int4: faster on a CPU, a little less exact."
    ),
]
Cache = Annotated[
    str, typer.Option("--kv", metavar="K", help="Keys and values: model, or bfloat16 or int8: a half or a quarter.")
]
Compress = Annotated[
    list[str] | None,
    typer.Option(
        "--compress",
        metavar="M[:SHARE]",
        help="Read media in fewer tokens: divprune:0.25, or the folder of a trained one; may be repeated.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write; its suffix is the format.")]


# ---- streams


def open_missing_streams() -> None:
    """Opens those of stdin, stdout and stderr that the caller has closed: they hold nothing and take everything.

    In this order, so that they get the descriptors that other files would otherwise be written into.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


# ---- loading


def load_model(name: str | None, report: Reporter, weights: str = "auto", kv: str = "model") -> Unimodal:
    """A model by folder, hub id or default. Raises ValueError, before anything heavy is imported, for a wrong name."""
    check_model(name)
    report("starting")
    from unimodal.pipeline import load

    return load(name, on_step=report, weights=weights, kv=kv)


def load_coder(name: str | None, report: Reporter) -> MediaCoder:
    """The media tokenizers of a model without its decoder, of a folder of tokenizers, or one tokenizer alone.

    Raises ValueError as `load_model` does.
    """
    from unimodal.model_folder.find import find_coder

    folder = find_coder(name)
    report("starting")
    from unimodal.coder import media_coder

    return media_coder.load_coder(folder, on_step=report)


def make_counter(report: Reporter, text: str) -> Callable[[object], None]:
    """A function to call with every new token, which reports `text` and the number of tokens."""
    count = 0

    def on_token(_: object) -> None:
        nonlocal count
        count += 1
        report(text, count)

    return on_token


# ---- checks


def check_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is not one of the choices; None passes."""
    if value is not None and value not in choices:
        raise ValueError(f"{option} {value!r} is unknown; choose {', '.join(choices)}")


def check_model(name: str | None) -> None:
    """Raises ValueError for a model that is missing or incomplete. Downloads one that is named by its hub id."""
    from unimodal.model_folder.find import find_model

    find_model(name)


def check_ways(decoder: str | None, weights: str, kv: str = "model") -> None:
    """Raises ValueError for an unknown fast decoder or an unknown kind of weights or cache."""
    from unimodal.generation import DECODERS
    from unimodal.generation.kinds import CACHES, WEIGHTS

    check_choice("--decoder", decoder, (*DECODERS, "plain"))
    check_choice("--weights", weights, ("auto", *WEIGHTS))
    check_choice("--kv", kv, CACHES)


def check_compress(
    asked: list[str] | None, decoder: str | None = None, weights: str = "auto", kv: str = "model"
) -> tuple[str, ...] | None:
    """The methods of `--compress`; None without. Raises ValueError for what does not go with them."""
    from unimodal.generation.kinds import NARROW

    if not asked:
        return None
    if decoder not in (None, "plain"):
        raise ValueError(f"--decoder {decoder} needs the whole prompt, which --compress shortens; leave one out")
    if weights in NARROW:
        raise ValueError(f"--weights {weights} are not read under --compress; leave one of them out")
    if kv != "model":
        raise ValueError(f"--kv {kv} is not the cache of --compress; leave one of them out")
    return tuple(asked)


def check_of_media(to: str | None, **given: float | str | None) -> None:
    """Raises ValueError for options of media beside `--to text`."""
    for name, value in given.items():
        if to == "text" and value is not None:
            raise ValueError(f"--{name} {value} is for media, and --to text writes words; leave it out")


def check_file(source: Path | bytes) -> str:
    """The medium of a file, by its first bytes. Raises ValueError for a file that is missing or holds none."""
    from unimodal.media.kind import detect_kind

    return detect_kind(source)


def read_voice(voice: str | None) -> str | Path | None:
    """A name as it is, a path where a file of sound is meant. Raises ValueError for one that is not there."""
    if voice is None or not (Path(voice).suffix or os.sep in voice):
        return voice
    check_file(Path(voice))
    return Path(voice)


def read_source(path: Path) -> Path | bytes:
    """The file or, for `-`, the content of stdin.

    Raises ValueError if stdin is a terminal, too large, or empty because it was read already.
    """
    from unimodal.media.limits import DEFAULT_LIMITS

    if str(path) != "-":
        return path
    if sys.stdin.isatty():
        raise ValueError("- reads a file from stdin, and that is a terminal; pipe a file into the command")
    data = sys.stdin.buffer.read(DEFAULT_LIMITS.max_bytes + 1)
    if not data:
        raise ValueError("- reads a file from stdin, and nothing is left there; give - once, with a file piped in")
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise ValueError(f"- (stdin) holds more than {DEFAULT_LIMITS.max_bytes:,} bytes; make the file smaller")
    return data


def check_time(start: float, seconds: float | None, kinds: Iterable[str]) -> None:
    """Raises ValueError for a start or length that no input has. kinds: the media of the inputs."""
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"--start {start:g}: give 0 or more seconds")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"--seconds {seconds:g}: give more than 0 seconds")
    if (start > 0 or seconds is not None) and not any("t" in MEDIA[kind].axes for kind in kinds):
        raise ValueError("--start and --seconds choose a part of a sound or a film, and none is given; leave them out")


def check_out(path: Path, modality: str) -> None:
    """Raises ValueError for a file to write whose suffix does not fit the modality, or whose folder cannot be used."""
    suffixes = (".txt",) if modality == "text" else find_medium(modality).saved_suffixes
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out {path}: {modality} is saved as {', '.join(suffixes)}; change the suffix")
    check_folder(path)


def check_folder(path: Path, option: str = "--out") -> None:
    """Raises ValueError for a file to write that is a folder, or whose folder is missing or cannot be written."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {path.parent} may not be written; save elsewhere")
