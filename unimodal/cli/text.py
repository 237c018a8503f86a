"""`unimodal text train`, `report` and `compare`: tokenizers of plain text, trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unimodal.cli.progress import Reporter
from unimodal.cli.shared import Command, check_choice, check_folder

text = typer.Typer(
    name="text",
    help="Tokenizers of plain text: train one, measure one, compare several.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KINDS = (
    "bpe",
    "unigram",
    "wordpiece",
    "sentencepiece-bpe",
    "sentencepiece-unigram",
    "characters",
    "bytes",
    "less-is-better",
)
DIGITS = ("free", "single", "left", "right")


class ManyCommand(Command):
    """A command whose options that may be repeated also take several values at once: `--corpus a.txt b.txt`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # as `Command`
        many = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        option = None
        for word in args:
            if word in many:
                option = word
            elif word.startswith("-") and word != "-":
                option = None
                spread.append(word)
            elif option is not None:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


Corpus = Annotated[
    list[Path], typer.Option("--corpus", metavar="FILE…", help="UTF-8 text, plain or gzipped; one or more files.")
]
Parallel = Annotated[
    list[Path] | None,
    typer.Option("--parallel", metavar="A B…", help="Files whose lines translate each other; premiums are over A."),
]
Segments = Annotated[
    Path | None,
    typer.Option("--segments", metavar="FILE", help="Words and their morphemes: a word, a tab, parts with spaces."),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers, too.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the tables, too.")]


@text.command("train", cls=Command)
def train_tokenizer(
    corpora: Annotated[list[Path], typer.Argument(metavar="CORPUS...", help="UTF-8 text, plain or gzipped.")],
    kind: Annotated[str, typer.Option("--kind", metavar="K", help=f"What to learn: {', '.join(KINDS)}.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder, which AutoTokenizer opens.")],
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", help="Rows; may be left out for characters and bytes.")
    ] = None,
    digits: Annotated[
        str, typer.Option("--digits", metavar="D", help="Numbers: free, single digits, threes from left or right.")
    ] = "free",
    superwords: Annotated[
        float, typer.Option("--superwords", metavar="S", help="The share of the rows learned across spaces (bpe).")
    ] = 0.0,
    segmenter: Annotated[
        str | None,
        typer.Option("--segmenter", metavar="MODULE:FUNCTION", help="Cuts words into morphemes before learning."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", help="The longest piece, in characters.")
    ] = None,
    byte_fallback: Annotated[
        bool, typer.Option("--byte-fallback/--no-byte-fallback", help="Spell rare characters by their bytes.")
    ] = True,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Another seed reads otherwise (less-is-better).")
    ] = 0,
) -> None:
    """Train a tokenizer on text, and save it as a folder that transformers opens."""
    check_choice("--kind", kind, KINDS)
    check_choice("--digits", digits, DIGITS)
    from unimodal.text.corpora import read_lines
    from unimodal.text.trainers import TrainingSettings, check_target, save, train

    settings = TrainingSettings(
        kind=kind,
        size=size,
        digits=digits,  # type: ignore[arg-type]  # checked above
        superwords=superwords,
        segmenter=segmenter,
        max_length=max_length,
        byte_fallback=byte_fallback,
        seed=seed,
    )
    settings.check()
    check_target(out)
    with Reporter() as report:
        report("reading")
        lines = read_lines(corpora)
        report(f"training {kind} on {len(lines):,} lines")
        data = train(lines, settings)
        save(data, out, settings, lines)
    print(f"{out}: {kind}, {len(data['model']['vocab']):,} rows")


@text.command("report", cls=ManyCommand)
def report_tokenizer(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="A folder, a tokenizer.json or a hub id.")],
    corpus: Corpus,
    parallel: Parallel = None,
    segments: Segments = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option("--mixture", metavar="NAME=FILE…", help="Samples of what it may have been trained on (BPE)."),
    ] = None,
    merges: Annotated[
        int, typer.Option("--merges", metavar="N", help="For --mixture: at most so many of its merges.")
    ] = 1000,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", metavar="FILE", help="Ids that a model wrote, one JSON list a line: are they canonical?"),
    ] = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Measure a tokenizer on text: fertility, premium, entropies, scripts, numbers, round trip, rows, mixture."""
    _check_outputs(html, json)
    if merges < 1:
        raise ValueError(f"--merges {merges}: give one or more")
    from unimodal.text.reports.layout import format_report
    from unimodal.text.reports.opened import open_tokenizer
    from unimodal.text.reports.report import make_report, read_input

    with Reporter() as report:
        report("reading")
        given = read_input(corpus, parallel or (), mixture or (), segments, ids, merges)
        made = make_report(open_tokenizer(tokenizer), given, report)
    _write(tokenizer, made, html, json)
    print(format_report(made))


@text.command("compare", cls=ManyCommand)
def compare_tokenizers(
    tokenizers: Annotated[list[str], typer.Argument(metavar="TOKENIZER...", help="Folders, files or hub ids.")],
    corpus: Corpus,
    parallel: Parallel = None,
    segments: Segments = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Measure tokenizers on one text, side by side in one table."""
    _check_outputs(html, json)
    from unimodal.text.reports.layout import format_rows, list_rows
    from unimodal.text.reports.opened import open_tokenizer
    from unimodal.text.reports.report import compare, read_input

    with Reporter() as report:
        report("reading")
        given = read_input(corpus, parallel or (), (), segments)
        table = compare([open_tokenizer(name) for name in tokenizers], given, report)
    made: dict[str, dict[str, object]] = {"comparison": dict(table)}
    _write(", ".join(tokenizers), made, html, json)
    print(format_rows(list_rows(made["comparison"])))


def _check_outputs(html: Path | None, json: Path | None) -> None:
    """Raises ValueError, before anything is computed, for files that cannot be written."""
    for path in (html, json):
        if path is not None:
            check_folder(path)


def _write(title: str, made: dict[str, dict[str, object]], html: Path | None, json: Path | None) -> None:
    from unimodal.files import write_json, write_text_atomically
    from unimodal.text.reports.layout import write_html

    if json is not None:
        write_json(json, made)
    if html is not None:
        write_text_atomically(html, write_html(title, made))
